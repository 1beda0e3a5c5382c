"""Mitigation: what brings the preference for he of the model of `real_model` to zero, and what it costs.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=FOLDER python -m benchmarks.language.mitigation KEPT --sentences 120

`Horizon` ranks the training sentences by the preference for he over twelve templates. Of those that raise it most, 5,
10 and 20 % are removed, undone, unlearned, or relabelled (the same sentences with swapped pronouns in their place,
and training again); of those that lower it most, as many are doubled (training again) or amplified. Undo and amplify
stop before the loss of 24 other sentences rises by .01 nats, 1 % of the perplexity. Reported: the preference, its
interval over templates, the predicted preference, and the perplexity in shares of that before.

KEPT is the folder of `real_model`. Writes benchmarks/results/language-mitigation.csv.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.results import line, save
from benchmarks.language.real_model import LOSS, PRONOUNS, Reader, Study, made
from benchmarks.language.sentences import swapped
from benchmarks.language.tail import Columns

SHARES, ALLOWED, STEPS, RATE = (0.05, 0.1, 0.2), 0.01, 40, 5e-4
Found = tuple[nn.Module, float]  # a model, and the change of the preference that was predicted


@dataclass(frozen=True, eq=False)
class Actions:
    """What can be done about some sentences.

    Attributes:
        study: Of the real model.
        scores: Of all sentences, of the preference.
        swapped: Activations of all sentences with swapped pronouns.
        added: Scores of adding these.
    """

    study: Study
    scores: cf.Scores
    swapped: Columns
    added: cf.Scores

    def preference(self, model: nn.Module) -> Tensor:
        """For he, in nats."""
        return self.study.questions[PRONOUNS](model)

    def top(self, share: float, effect: str) -> list[int]:
        """The strongest sentences."""
        size = round(share * len(self.scores))
        return [int(row) for row, _ in self.scores.top(size, PRONOUNS, effect=effect)]  # pyright: ignore

    def sum(self, scores: cf.Scores, rows: list[int]) -> float:
        """Of some scores of the preference."""
        return float(scores.values[rows, scores.objectives.index(PRONOUNS)].sum())

    def weighted(self, rows: list[int], weight: float) -> Found:
        """Trained again with a weight for some sentences."""
        weights = torch.ones(len(self.scores))
        weights[rows] = weight
        return self.study.recipe.train(weights), (weight - 1) * self.sum(self.scores, rows)

    def relabel(self, rows: list[int]) -> Found:
        """Trained again with swapped pronouns in some sentences."""
        data = {name: column.clone() for name, column in self.study.recipe.data.items()}  # pyright: ignore
        for name, column in data.items():
            column[rows] = self.swapped[name][rows]
        said = self.sum(self.added, rows) - self.sum(self.scores, rows)
        return replace(self.study.recipe, data=data).train(), said

    def walk(self, rows: list[int], away: bool) -> Found:
        """Away from some sentences, or towards them, as far as the loss of others allows."""
        loss = self.study.questions[LOSS]
        tolerance = ALLOWED / float(loss(self.study.model).detach())
        verb = cf.undo if away else cf.amplify
        done = verb(self.study.risk, rows, steps=STEPS, lr=RATE, watch=self.preference, guard=loss, tolerance=tolerance)
        assert done.predicted is not None
        return done.model, float(done.predicted[0])

    def unlearn(self, rows: list[int]) -> Found:
        """The parameters predicted without some sentences."""
        done = cf.unlearn(self.study.risk, rows, cf.Horizon().invert(self.study.risk), watch=self.preference)
        assert done.predicted is not None
        return done.model, float(done.predicted[0])

    def all(self) -> dict[str, Callable[[float], Found]]:
        """Every action by its name, of a share of the sentences."""
        return {
            "remove": lambda share: self.weighted(self.top(share, "raises"), 0.0),
            "relabel": lambda share: self.relabel(self.top(share, "raises")),
            "undo": lambda share: self.walk(self.top(share, "raises"), away=True),
            "unlearn": lambda share: self.unlearn(self.top(share, "raises")),
            "double": lambda share: self.weighted(self.top(share, "lowers"), 2.0),
            "amplify": lambda share: self.walk(self.top(share, "lowers"), away=False),
        }


def swapped_texts(folder: Path, n: int, texts: list[str]) -> Columns:
    """Activations of all sentences with swapped pronouns, out of the folder if they are there."""
    file = folder / f"swapped-{n}.pt"
    if not file.exists():
        read = Reader.make(n, 0)
        assert read.texts == texts
        torch.save(read.columns([swapped(text) for text in texts]), file)
    return torch.load(file)


def fitted(some: Columns, width: int) -> Columns:
    """Columns cut or padded to a number of tokens; nothing real may be cut."""
    assert not some["attention_mask"][:, width:].any()
    return {
        name: nn.functional.pad(column.movedim(1, -1), (0, max(0, width - column.shape[1])))[..., :width].movedim(-1, 1)
        for name, column in some.items()
    }


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--sentences", type=int, default=200)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    study = Study.make(asked.kept, asked.sentences)
    data: Columns = study.recipe.data  # pyright: ignore[reportAssignmentType]
    others = fitted(swapped_texts(asked.kept, asked.sentences, study.texts), data["input_ids"].shape[1])
    scores, _ = made(study, "Horizon", asked.kept)
    added = cf.influence(study.risk, study.ask, cf.Horizon(), candidates=cf.batches(others))
    actions, rows = Actions(study, scores, others, added), list[dict[str, object]]()
    before = study.questions[PRONOUNS].interval(study.model)
    loss = float(study.questions[LOSS](study.model).detach())
    for name, act in actions.all().items():
        for share in SHARES:
            model, said = act(share)
            after = study.questions[PRONOUNS].interval(model)
            ratio = math.exp(float(study.questions[LOSS](model).detach()) - loss)
            rows.append({
                "action": name, "share": f"{share:g}", "before": str(before), "predicted": f"{before + said:.3f}",
                "after": str(after), "perplexity": f"{ratio:.4f}",
            })  # fmt: skip
            print(line(rows[-1]), flush=True)
            save("language-mitigation", rows)


if __name__ == "__main__":
    main()
