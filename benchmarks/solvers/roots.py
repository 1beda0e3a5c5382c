"""Horizon: the agreement of its scores with those of all the data, by number of roots, samples and parameters.

Run: CROSSFLUENCE_DATA=<folder> OMP_NUM_THREADS=1 python -m benchmarks.solvers.roots [N,P ...]
Perceptrons with two hidden layers on MNIST, trained by Adam (2e-3, five epochs, batches of 50), with a record of the
settings; N,P is a pair such as 500,100000. The full answer is block Lanczos with products of all samples, 30 for each
question; the four are mean losses of 50 test images each. r is over all samples and questions, the least of the four
beside it; an epoch is forwards and backwards over all samples. "" roots: what `Horizon()` chooses. Writes
benchmarks/results/roots.csv; pairs that are there are not made again.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common import results
from benchmarks.common.losses import classification, on_outputs
from benchmarks.common.models import perceptron
from benchmarks.common.timing import epoch, timed
from benchmarks.data.mnist import mnist

EPOCHS, BATCH, RATE, QUESTIONS, EACH, STEPS = 5, 50, 2e-3, 4, 50, 30
HIDDEN = {10**5: (120, 40), 10**6: (900, 320), 10**7: (4_000, 1_700)}
CASES = [(500, 10**5), (2_000, 10**5), (10_000, 10**5), (500, 10**6), (500, 10**7)]
ROOTS = (32, 64, 128, 256, 512, 1_024, 2_048)
ROOM = 2**28  # numbers in the roots: 1 GB
ABOUT = 0.1  # by which the number of parameters may differ


def case(n: int, p: int) -> tuple[cf.Risk, Any]:
    """A trained perceptron of about p parameters, and its questions."""
    torch.manual_seed(0)
    x, y = mnist("test", QUESTIONS * EACH)
    recipe = cf.Recipe(
        perceptron(784, *HIDDEN[p], 10, activation=nn.ReLU), on_outputs(), mnist("train", n),
        optimizer=cf.Adam(RATE), epochs=EPOCHS, batch_size=BATCH,
    )  # fmt: skip
    model = recipe.train()
    record = cf.TrainingRecord.from_settings(
        recipe.risk(model), optimizer=cf.Adam(RATE), steps=EPOCHS * -(-n // BATCH), batch_size=BATCH
    )

    def ask(net: nn.Module) -> dict[str, Tensor]:
        losses = classification(net, (x, y)).unflatten(0, (QUESTIONS, EACH)).mean(1)
        return {str(place): loss for place, loss in enumerate(losses)}

    return recipe.risk(model, record=record), ask


def correlations(one: Tensor, other: Tensor) -> tuple[float, float]:
    """Over everything, and the least of single questions."""
    whole = torch.corrcoef(torch.stack([one.flatten(), other.flatten()]))[0, 1]
    each = [float(torch.corrcoef(torch.stack(pair))[0, 1]) for pair in zip(one.T, other.T, strict=True)]
    return float(whole), min(each)


def measured(n: int, p: int) -> Iterator[dict[str, Any]]:
    """One row for each number of roots."""
    risk, ask = case(n, p)
    batches = list(risk.data)
    epoch(risk.model, batches)
    pace, _ = timed(lambda: epoch(risk.model, batches))
    full = cf.influence(risk, ask, cf.Horizon(pilot=n, steps=STEPS)).values.double()
    for roots in (None, *(count for count in ROOTS if count <= 4 * n and count * risk.p <= ROOM)):
        inverse_took, inverse = timed(lambda roots=roots: cf.Horizon(roots=roots).invert(risk))
        took, scores = timed(lambda inverse=inverse: cf.influence(risk, ask, inverse))
        r, least = correlations(scores.values.double(), full)
        chosen = next((note for note in scores.report.notes if note.startswith("X ")), "") if scores.report else ""
        bent = chosen.partition("; ")[2].split(" ")[0]
        yield {"n": n, "p": risk.p, "roots": roots or "", "r": f"{r:.3f}", "least r": f"{least:.3f}",
               "directions above 1": bent, "epochs, roots": f"{inverse_took / pace:.1f}",
               "epochs, questions": f"{took / pace:.1f}", "note": chosen if roots is None else ""}  # fmt: skip


def main(arguments: Sequence[str] | None = None) -> None:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        print(__doc__)
        raise SystemExit(0)
    warnings.simplefilter("ignore")
    rows: list[dict[str, Any]] = list(results.kept("roots"))
    for n, p in CASES:
        if (arguments and f"{n},{p}" not in arguments) or any(
            row["n"] == str(n) and abs(int(row["p"]) / p - 1) < ABOUT for row in rows
        ):
            continue
        for row in measured(n, p):
            print(results.line(row), flush=True)
            rows.append(row)
        results.save("roots", rows)


if __name__ == "__main__":
    main()
