"""The paper's first experiment: three Gaussians, Deep Embedded Clustering, every estimate beside its leave-one-out."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from tqdm.auto import tqdm

from crossfluence._attribution.influence import influence
from crossfluence._data.batches import batches
from crossfluence._evaluation.leave_out import leave_out
from crossfluence._kronecker.identity import Identity
from crossfluence._losses import AbstractLoss
from crossfluence._results.agreement import Agreement, compare
from crossfluence._results.scores import Scores
from crossfluence._risk.risk import Risk
from crossfluence._solvers.exact import Exact
from crossfluence._storage.atomic import write_atomically
from crossfluence._training.optimizers import Adam
from crossfluence._training.recipe import Recipe
from crossfluence._training.schedules import constant, cosine
from crossfluence._types import SampleLoss
from crossfluence.clustering.dec import DEC, encoder, fixed_target_loss, moving_target, pretrain, start_centres, target
from crossfluence.clustering.objectives import log_assignment

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

MEANS = ((0.0, 0.0), (5.0, 5.0), (5.0, -5.0))
DEVIATION, EACH = 1.25, 50


@dataclass(frozen=True)
class Setting:
    """How the models are trained, and how their curvature is damped.

    Attributes:
        name: "paper" or "converged".
        activation: Of the encoder's hidden layer.
        l2: As in `Risk`.
        standardised: Whether the points are scaled to deviation 1, so that no tanh saturates.
        pretraining: Full-batch steps of an autoencoder before k-means.
        noise: Standard deviation that is added to the centres of k-means.
        lr: Adam's learning rate.
        steps: Full-batch steps.
        falling: Whether the learning rate falls along a cosine.
        damping: Added to the curvature's eigenvalues.
    """

    name: str
    activation: type[nn.Module]
    l2: float
    standardised: bool
    pretraining: int
    noise: float
    lr: float
    steps: int
    falling: bool
    damping: float


PAPER = Setting("paper", nn.ReLU, 0.0, False, 0, 0.5, 1e-3, 2, falling=False, damping=0.01)
CONVERGED = Setting("converged", nn.Tanh, 1e-2, True, 500, 0.0, 1e-2, 3000, falling=True, damping=0.0)


def gaussians(seed: int) -> tuple[Float[Tensor, "150 2"], Int[Tensor, " 150"]]:
    """Points of three round Gaussians, and which of them each came from.

    Args:
        seed: Of the draw.

    Returns:
        Points, float64, and labels.
    """
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(3).repeat_interleave(EACH)
    noise = torch.randn(3 * EACH, 2, generator=generator, dtype=torch.float64)
    return torch.tensor(MEANS, dtype=torch.float64)[labels] + DEVIATION * noise, labels


def mixture_study(out: Path, *, seeds: int = 5, force: bool = False, left_out: int = 50) -> list[dict[str, Any]]:
    """Runs both settings over the seeds and writes `results.csv` and `figure.html`.

    Args:
        out: A folder; made if it is not there.
        seeds: How many, from 0.
        force: Overwrite results that exist.
        left_out: Samples that are left out one by one, evenly spaced.

    Returns:
        One row for each setting, seed and estimate.

    Raises:
        FileExistsError: If there are results already and `force` is not set.
    """
    import pandas as pd

    table, picture, unfinished = out / "results.csv", out / "figure.html", out / "unfinished"
    if (table.exists() or picture.exists()) and not force:
        raise FileExistsError(f"{out} holds results already. Choose another --out, or add --force to overwrite them.")
    out.mkdir(parents=True, exist_ok=True)
    runs = [(setting, seed) for setting in (PAPER, CONVERGED) for seed in range(seeds)]
    rows = [
        {"setting": setting.name, "seed": seed, "estimate": estimate, **_figures(agreement, norm)}
        for setting, seed in tqdm(runs, desc="settings and seeds", unit="run", disable=None)
        for estimate, agreement, norm in estimates(setting, seed, left_out=left_out, store=unfinished)
    ]
    write_atomically(table, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())
    write_atomically(picture, _figure(rows).to_html(include_plotlyjs=True).encode())
    shutil.rmtree(unfinished, ignore_errors=True)
    return rows


def estimates(
    setting: Setting, seed: int, *, left_out: int, store: Path | None = None
) -> Iterator[tuple[str, Agreement, float]]:
    """Trains the clustering and the matched model of one seed, and sets each estimate beside retraining.

    Args:
        setting: How to train.
        seed: Of data and weights.
        left_out: Samples that are left out one by one, evenly spaced.
        store: Keeps finished retrainings.

    Yields:
        Name of the estimate, its agreement with leave-one-out, and the gradient norm of the model.
    """
    x, labels = gaussians(seed)
    if setting.standardised:
        x = (x - x.mean(0)) / x.std(0)
    start = _start(setting, x, seed)
    drop = torch.linspace(0, len(x) - 1, left_out).round().long().tolist()
    with torch.no_grad():
        cluster = start(x).argmax(1)
    names = torch.stack([cluster[labels == label].mode().values for label in range(3)])[labels]  # label as cluster

    def asked(model: nn.Module) -> Tensor:
        return -log_assignment(x, names)(model)  # pyright: ignore[reportOperatorIssue]

    recipe = _recipe(setting, start, moving_target, x)
    model = recipe.train()
    risk = recipe.risk(model)
    with torch.no_grad():
        p = target(model(x), torch.ones(len(x), dtype=x.dtype))
    fixed = Risk(model, fixed_target_loss, batches(x, p), l2=setting.l2)
    truth = leave_out(recipe, asked, drop, store=store)
    solver = Exact(setting.damping)
    yield "cross-loss, moving target", *_compared(influence(risk, asked, solver), truth)
    yield "cross-loss, fixed target", *_compared(influence(fixed, asked, solver), truth)
    yield "gradient similarity", *_compared(influence(risk, asked, Identity()), truth)

    matched = _recipe(setting, start, _label_loss, (x, names))
    scores = influence(matched.risk(matched.train()), asked, solver)
    yield "matched", *_compared(scores, leave_out(matched, asked, drop, store=store))


def _label_loss(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    x, names = batch
    return -model(x).gather(1, names.unsqueeze(1))[:, 0].log()


def _start(setting: Setting, x: Tensor, seed: int) -> DEC:
    network = encoder([2, 12, 12], activation=setting.activation, seed=seed)
    if setting.pretraining:
        network = pretrain(network, x, steps=setting.pretraining, seed=seed)
    centres = start_centres(network, x, 3, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    return DEC(network, centres + setting.noise * torch.randn(centres.shape, generator=generator, dtype=x.dtype))


def _recipe(setting: Setting, start: DEC, loss: SampleLoss | AbstractLoss, data: Tensor | tuple[Tensor, ...]) -> Recipe:
    return Recipe(
        start,
        loss,
        data,
        optimizer=Adam(setting.lr),
        epochs=setting.steps,
        l2=setting.l2,
        schedule=cosine if setting.falling else constant,
        at_once=3 * EACH + 1,
    )


def _compared(scores: Scores, truth: Scores) -> tuple[Agreement, float]:
    assert scores.report is not None
    return compare(scores, truth), scores.report.gradient_norm


def _figures(found: Agreement, norm: float) -> dict[str, float]:
    by_point = np.array([value for value in found.pearson_by_objective.values() if np.isfinite(value)])
    return {
        "pooled_pearson": float(found.pearson),
        "low": found.pearson.low,
        "high": found.pearson.high,
        "mean_pearson": float(by_point.mean()) if len(by_point) else float("nan"),
        "above_0.6": float((by_point > 0.6).mean()) if len(by_point) else float("nan"),
        "above_0.8": float((by_point > 0.8).mean()) if len(by_point) else float("nan"),
        "slope": float(found.slope),
        "gradient_norm": norm,
    }


def _figure(rows: list[dict[str, Any]]) -> Figure:
    import plotly.graph_objects as go

    figure = go.Figure(
        layout=go.Layout(
            title="Mixture of Gaussians: pooled Pearson with leave-one-out, one dot for each seed",
            yaxis={"title": "Pearson r", "range": [-1.05, 1.05]},
            template="plotly_white",
        )
    )
    for setting, symbol in ((PAPER, "circle-open"), (CONVERGED, "circle")):
        chosen = [row for row in rows if row["setting"] == setting.name]
        figure.add_scatter(
            x=[row["estimate"] for row in chosen], y=[row["pooled_pearson"] for row in chosen],
            text=[f"seed {row['seed']}" for row in chosen], mode="markers", name=f"{setting.name} setting",
            marker={"symbol": symbol, "size": 10},
        )  # fmt: skip
    return figure
