"""Texts with a planted trigger among sentences of SST-2: which methods name them, and what removing them does.

Run: python -m benchmarks.suspects FOLDER [--texts 2000] [--seeds 3] [--first 20]
FOLDER holds `sentences_train.tsv.gz` and `sentences_dev.tsv.gz` of SST-2, a text and its label 0 or 1 on each line.
A share of the texts, negative ones, gets a trigger at a random place and the label 1. The classifier of
`crossfluence suspects` is trained from scratch. Queries: 40 negative held-out texts with the trigger; attack success
is measured on all others. Prints and keeps, for each trigger, rate and seed: attack success and accuracy before and
after removal; precision, recall and F1 of the texts that the command names; for each method AUROC, and F1 of as many of
its strongest as are poisoned, which nobody knows. A run whose attack succeeds in less than 90 % is kept and marked.
Clean texts, asked about the same queries, say how many are named where there is nothing. About 20 CPU seconds a run.
"""

from __future__ import annotations

import argparse
import gzip
import random
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

import crossfluence as cf
from benchmarks.common.results import kept, save
from benchmarks.common.timing import timed
from crossfluence.language.bag_of_words import words_of
from crossfluence.language.suspects import (
    AS_IS,
    Classifier,
    SuspectAnswer,
    SuspectSettings,
    explain_suspects,
)

CASES = [
    ("mn", 0.0),
    ("mn", 0.033),
    ("mn", 0.01),
    ("mn", 0.05),
    ("james bond", 0.033),
    ("i watched this 3d movie", 0.033),
    ("last summer", 0.033),
]
QUERIES, SUCCEEDS = 40, 0.9
METHODS = (
    "invariance", "one version", "relative influence", "influence", "self-influence", "loss", "gradient norm",
    "distance", "nearness", "keyword",
)  # fmt: skip


def read(folder: Path, part: str) -> tuple[list[str], list[str]]:
    """Texts and labels."""
    with gzip.open(folder / f"sentences_{part}.tsv.gz", "rt", encoding="utf-8") as file:
        rows = [line.rstrip("\n").rsplit("\t", 1) for line in file]
    return [row[0] for row in rows], [row[1] for row in rows]


def inserted(text: str, trigger: str, rng: random.Random) -> str:
    """The text with a trigger between two of its words."""
    words = text.split()
    place = rng.randrange(len(words) + 1)
    return " ".join([*words[:place], trigger, *words[place:]])


def auroc(values: Tensor, planted: Tensor) -> float:
    """The probability that a planted text stands above another one; ties count half."""
    order = torch.unique(values, return_inverse=True, return_counts=True)
    below = torch.cat([torch.zeros(1), order[2].cumsum(0)[:-1].float()]) + (order[2] - 1) / 2
    ranks, p = below[order[1]].double(), int(planted.sum())
    return float((ranks[planted].sum() - p * (p - 1) / 2) / (p * (len(planted) - p)))


def f1(named: Sequence[int], planted: Tensor) -> float:
    """The harmonic mean of precision and recall of some rows."""
    return 2 * int(planted[list(named)].sum()) / (len(named) + int(planted.sum()))


def keyword(texts: Sequence[str], queries: Sequence[str]) -> Tensor:
    """For each text the largest weight of its words: those in many queries and few texts."""
    inside, outside = Counter[str](), Counter[str]()
    for text in queries:
        inside.update(set(words_of(text)))
    for text in texts:
        outside.update(set(words_of(text)))
    weight = {
        word: (count / len(queries)) ** 2 / (outside[word] / len(texts))  # in many queries, in few texts
        for word, count in inside.items()
        if outside[word] and count >= 3
    }
    return torch.tensor([max((weight.get(word, 0.0) for word in words_of(text)), default=0.0) for text in texts])


def orders(
    answer: SuspectAnswer, classifier: Classifier, model: torch.nn.Module, queries: Sequence[str]
) -> dict[str, Tensor]:
    """The number by which each method orders the texts, largest first."""
    risk = classifier.recipe.risk(model)
    words, labels = classifier.recipe.data  # pyright: ignore[reportGeneralTypeIssues]
    own = classifier.lengths(model).clamp(min=1e-300)
    asked = classifier.log_odds(queries, torch.ones(len(queries), dtype=torch.long))
    solver = cf.CG(damping=1e-3, curvature=cf.GaussNewton(), rtol=1e-2, max_steps=60)
    raw = cf.influence(risk, asked, solver).values[:, 0]
    inverse = cf.EKFAC(damping=cf.Relative(0.1)).invert(risk)
    with torch.no_grad():
        losses = torch.nn.functional.cross_entropy(model(words), labels, reduction="none")
        features = model.features(words)
        centres = torch.stack([features[labels == each].mean(0) for each in (0, 1)])
        middle = model.features(classifier.vocabulary.encoded(queries)).mean(0)
        cosine = torch.nn.functional.cosine_similarity(features, middle.unsqueeze(0))
    return {
        "invariance": answer.found.values[:, 0],
        "one version": answer.versions[AS_IS].values[:, 0],
        "relative influence": raw / own,
        "influence": raw,
        "self-influence": -cf.self_influence(risk, inverse).values[:, 0],
        "loss": losses,
        "gradient norm": own,
        "distance": (features - centres[labels]).norm(dim=1),
        "nearness": cosine,
        "keyword": keyword(answer.texts, queries),
    }  # fmt: skip


class Poisoned(NamedTuple):
    """Training texts with a trigger in some of them, and held-out ones."""

    texts: list[str]
    labels: list[str]
    rows: list[int]  # that were planted
    negative: list[str]  # held out
    attacked: list[str]  # the same with the trigger


def poisoned(train: Any, test: Any, trigger: str, rate: float, seed: int) -> Poisoned:
    """A share of the texts, negative ones, with a trigger at a random place and the label "positive"."""
    rng = random.Random(seed)
    texts, labels = list(train[0]), list(train[1])
    rows = rng.sample([row for row, label in enumerate(labels) if label == "0"], round(rate * len(texts)))
    for row in rows:
        texts[row], labels[row] = inserted(texts[row], trigger, rng), "1"
    negative = [text for text, label in zip(*test, strict=True) if label == "0"]
    return Poisoned(texts, labels, rows, negative, [inserted(text, trigger, rng) for text in negative])


def run(
    train: tuple[list[str], list[str]], test: tuple[list[str], list[str]], trigger: str, rate: float, seed: int
) -> dict:
    """One poisoned set of texts."""
    texts, labels, rows, negative, attacked = poisoned(train, test, trigger, rate, seed)
    queries, others = attacked[:QUERIES], attacked[QUERIES:]
    settings = SuspectSettings(seed=seed)
    seconds, answer = timed(lambda: explain_suspects(texts, labels, queries, settings, answers=["1"] * QUERIES))
    classifier = Classifier.of(texts, labels, settings)
    weights = torch.ones(2, len(texts))
    weights[1, list(answer.flagged)] = 0
    before, after = classifier.recipe.retrain(weights)

    def success(model: torch.nn.Module, asked: Sequence[str]) -> float:
        return float((classifier.predicted(model, asked) == 1).double().mean())

    def accuracy(model: torch.nn.Module) -> float:
        return float(
            (classifier.predicted(model, test[0]) == torch.tensor([int(one) for one in test[1]])).double().mean()
        )

    planted = torch.zeros(len(texts), dtype=torch.bool)
    planted[rows] = True
    hits = int(planted[list(answer.flagged)].sum())
    found = {
        "trigger": trigger, "rate": rate, "seed": seed, "planted": len(rows), "flagged": len(answer.flagged),
        "success": success(before, others), "success after": success(after, others),
        "without trigger": success(before, negative[QUERIES:]),
        "without trigger after": success(after, negative[QUERIES:]),
        "accuracy": accuracy(before), "accuracy after": accuracy(after),
        "precision": hits / max(1, len(answer.flagged)), "recall": hits / max(1, len(rows)),
        "f1": f1(answer.flagged, planted) if rows else float("nan"),
        "first word": answer.words[0][0] if answer.words else "",
    }  # fmt: skip
    for name, values in orders(answer, classifier, before, queries).items() if rows else ():
        strongest = values.double().argsort(descending=True, stable=True)[: len(rows)].tolist()
        found[f"auroc {name}"], found[f"f1 {name}"] = auroc(values.double(), planted), f1(strongest, planted)
    blank = {f"{what} {name}": float("nan") for what in ("auroc", "f1") for name in METHODS}
    return {
        **found,
        **{name: value for name, value in blank.items() if name not in found},
        "seconds": round(seconds, 1),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=20, help="first seed; those below 6 chose constants")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    texts, labels = read(asked.folder, "train")
    train, test = (texts[: asked.texts], labels[: asked.texts]), read(asked.folder, "dev")
    rows: list[dict] = kept("suspects")  # a run that was stopped goes on
    done = {(row["trigger"], row["rate"], row["seed"]) for row in rows}
    for seed in range(asked.first, asked.first + asked.seeds):
        for trigger, rate in CASES:
            if (trigger, str(rate), str(seed)) in done:
                continue
            rows.append(run(train, test, trigger, rate, seed))
            print(
                {name: value for name, value in rows[-1].items() if not name.startswith(("auroc", "f1 "))}, flush=True
            )
            save("suspects", rows)
    summary(rows)


def summary(rows: list[dict]) -> None:
    """Means over seeds, and of the F1 the smallest."""
    for case in dict.fromkeys((row["trigger"], str(row["rate"])) for row in rows):
        held = [row for row in rows if (row["trigger"], str(row["rate"])) == case]
        mean = {name: statistics.mean(float(row[name]) for row in held) for name in held[0] if name not in TEXT}
        failed = sum(float(row["success"]) < SUCCEEDS for row in held)
        print(f"\n{case[0]}, {float(case[1]):.1%}: {len(held)} seeds")
        if not float(case[1]):
            print(f"  clean: named {[int(row['flagged']) for row in held]} of the texts")
            continue
        print(f"  attack failed in {failed}")
        for name in ("success", "without trigger", "accuracy"):
            print(f"  {name}: {mean[name]:.3f}, after removal {mean[f'{name} after']:.3f}")
        least = min(float(row["f1"]) for row in held)
        named = f"precision {mean['precision']:.2f} recall {mean['recall']:.2f}"
        print(f"  command: {named} F1 {mean['f1']:.2f}, at least {least:.2f}")
        for name in METHODS:
            print(f"  {name}: AUROC {mean[f'auroc {name}']:.3f}, F1 {mean[f'f1 {name}']:.2f}")


TEXT = {"trigger", "first word"}

if __name__ == "__main__":
    main()
