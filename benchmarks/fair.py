"""Gaps between groups narrowed by 1 % of the rows, on splits whose seeds chose no constant.

Run: python -m benchmarks.fair FOLDER [--splits 9] [--first 200] [--model logistic|mlp] [--data compas]
FOLDER holds `adult/adult.data.gz` (32,561 rows) and `compas/compas-scores-two-years.csv.gz`, of which the rows are kept
that ProPublica kept (6,172). Parts: .5 to train, .1 pool, .2 validation, .2 test. Every gap is the hard one on test
rows. Prints and keeps, for each split: the gap before, and as shares of it the gaps that a Newton step predicts, that
training again gives, that as many random rows give, and that reweighing gives; accuracies; predicted and achieved on
the rows asked. Some 20 s for each of 108 answers on Adult.
"""

from __future__ import annotations

import argparse
import csv
import gzip
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch

from benchmarks.common.results import kept, save
from crossfluence.app.fair_encoding import Encoding, split
from crossfluence.app.fair_table import People, read_people
from crossfluence.errors import CrossfluenceError
from crossfluence.tabular.fairness import FairAnswer, FairSettings, explain_gap

FIRST_SEED = 200  # constants come from a prototype's seeds 0 to 9
SHOWN = ("predicted", "after", "random", "reweighed")
SHARES = (0.5, 0.1, 0.2, 0.2)
METRICS = ("statistical-parity", "equal-opportunity", "equalised-odds")
ACTIONS = (("remove",), ("remove", "relabel", "add"))
PAIRS = (("adult", "sex", "Male"), ("adult", "race", "White"), ("compas", "sex", "Male"),
         ("compas", "race", "African-American"))  # fmt: skip
ADULT = (
    "age", "workclass", "fnlwgt", "education", "education-num", "marital-status", "occupation", "relationship", "race",
    "sex", "capital-gain", "capital-loss", "hours-per-week", "native-country", "income",
)  # fmt: skip
COMPAS = ("age", "sex", "race", "juv_fel_count", "juv_misd_count", "juv_other_count", "priors_count", "c_charge_degree")


def adult(folder: Path, into: Path) -> Path:
    """The file with a header."""
    text = gzip.decompress((folder / "adult" / "adult.data.gz").read_bytes()).decode()
    file = into / "adult.csv"
    file.write_text(",".join(ADULT) + "\n" + text.replace(", ", ","))
    return file


def compas(folder: Path, into: Path) -> Path:
    """The rows that ProPublica's analysis keeps."""
    text = gzip.decompress((folder / "compas" / "compas-scores-two-years.csv.gz").read_bytes()).decode()
    rows = list(csv.DictReader(text.splitlines()))
    good = [
        row
        for row in rows
        if row["days_b_screening_arrest"] and abs(float(row["days_b_screening_arrest"])) <= 30
        and row["is_recid"] != "-1" and row["c_charge_degree"] != "O" and row["score_text"] != "N/A"
    ]  # fmt: skip
    file = into / "compas.csv"
    with file.open("w", newline="") as out:
        writer = csv.DictWriter(out, [*COMPAS, "two_year_recid"], extrasaction="ignore")
        writer.writeheader()
        writer.writerows(good)
    return file


def people_of(name: str, group: str, value: str, folder: Path) -> People:
    with tempfile.TemporaryDirectory() as into:
        if name == "adult":
            used = [column for column in ADULT[:-1] if column != "fnlwgt"]
            return read_people(
                adult(folder, Path(into)), label="income", group=f"{group}={value}", favourable=">50K", columns=used
            )
        return read_people(
            compas(folder, Path(into)), label="two_year_recid", group=f"{group}={value}", favourable="1", columns=COMPAS
        )


def row_of(answer: FairAnswer) -> dict[str, float]:
    before, base = answer.before, answer.before.gap.value
    return {
        "before": base, "predicted": answer.predicted.gap.value / base, "after": answer.after.gap.value / base,
        "random": float(np.mean([one.gap.value for one in answer.random])) / base,
        "reweighed": answer.reweighed.gap.value / base,
        "accuracy": before.accuracy, "accuracy change": 100 * (answer.after.accuracy - before.accuracy),
        "reweighed accuracy change": 100 * (answer.reweighed.accuracy - before.accuracy),
        "rows": len(answer.found.chosen), "halved": int(answer.halved), "reduced": int(answer.reduced),
        "asked before": answer.asked_hard[0], "asked predicted": answer.asked_hard[1],
        "asked after": answer.asked_hard[2], "soft linear": float(answer.found.linear[0]),
        "soft Newton": float(answer.found.predicted[0]), "soft achieved": float(answer.outcome.achieved[0]),
        "seconds": round(sum(answer.seconds.values()), 1),
    }  # fmt: skip


def figures(people: People, seed: int, metric: str, actions: tuple[str, ...], model: str) -> FairAnswer:
    parts = split(people, SHARES, seed)
    encoding = Encoding.of(people, parts[0])
    train, pool, validation, test = (encoding.part(people, rows) for rows in parts)
    settings = FairSettings(metric, actions, model=model, draws=5)  # pyright: ignore[reportArgumentType]
    return explain_gap(train, validation, test, settings, pool=pool)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--splits", type=int, default=9)
    parser.add_argument("--model", choices=["logistic", "mlp"], default="logistic")
    parser.add_argument("--first", type=int, default=FIRST_SEED, help="first seed")
    parser.add_argument("--data", choices=["adult", "compas"], nargs="+", default=["adult", "compas"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name = f"fair-{asked.model}"
    rows: list[dict] = kept(name)  # a run that was stopped goes on
    done = {tuple(row[key] for key in ("data", "group", "metric", "actions", "seed")) for row in rows}
    pairs = [pair for pair in PAIRS if pair[0] in asked.data]
    tables = {pair: people_of(*pair, asked.folder) for pair in pairs}
    wanted = ACTIONS if asked.model == "logistic" else ACTIONS[:1]
    seeds = range(asked.first, asked.first + asked.splits)
    cases = [(seed, pair, metric, kinds) for seed in seeds for pair in pairs for metric in METRICS for kinds in wanted]
    for seed, pair, metric, actions in sorted(cases, key=lambda case: _later(*case[1:])):
        key = (pair[0], pair[1], metric, "+".join(actions), str(seed))
        if key in done:
            continue
        try:
            found = row_of(figures(tables[pair], seed, metric, actions, asked.model))
        except CrossfluenceError as error:
            print(*key, error, flush=True)
            continue
        rows.append(dict(zip(("data", "group", "metric", "actions", "seed"), key, strict=True)) | found)
        print(*key, {name: round(value, 3) for name, value in found.items()}, flush=True)
        save(name, rows)
    summary(rows)


def _later(pair: tuple[str, str, str], metric: str, actions: tuple[str, ...]) -> bool:
    """Answers on Adult that no target is about come last: they take the most time."""
    return pair[0] == "adult" and (metric == "statistical-parity") != ("relabel" in actions)


def summary(rows: list[dict]) -> None:
    """Gaps as shares of the gap before, both as means over splits; then predicted beside achieved on the rows asked."""
    print("data group metric actions | splits before predicted after (se) random reweighed | points, reweighed", end="")
    print(" | halved, reduced")
    cases = dict.fromkeys((row["data"], row["group"], row["metric"], row["actions"]) for row in rows)
    for case in cases:
        held = [row for row in rows if (row["data"], row["group"], row["metric"], row["actions"]) == case]
        of = {name: np.array([float(row[name]) for row in held]) for name in list(held[0])[5:]}
        share = {name: (of[name] * of["before"]).sum() / of["before"].sum() for name in SHOWN}
        left = (of["after"] - share["after"]) * of["before"] / of["before"].mean()  # of a ratio of means
        error = left.std(ddof=1) / len(held) ** 0.5 if len(held) > 1 else float("nan")
        print(*case, "|", len(held), f"{of['before'].mean():.3f}", end=" ")
        print(f"{share['predicted']:.2f} {share['after']:.2f} ({error:.2f}) {share['random']:.2f}", end=" ")
        print(f"{share['reweighed']:.2f} | {of['accuracy change'].mean():+.2f}", end=" ")
        print(f"{of['reweighed accuracy change'].mean():+.2f} | {int(of['halved'].sum())}, {int(of['reduced'].sum())}")
    for actions in dict.fromkeys(row["actions"] for row in rows):
        held = [row for row in rows if row["actions"] == actions]
        of = {name: np.array([float(row[name]) for row in held]) for name in list(held[0])[5:]}
        hard = [of[f"asked {name}"] - of["asked before"] for name in ("predicted", "after")]
        soft = [of[f"soft {name}"] for name in ("Newton", "linear", "achieved")]
        for name, x, y in (
            ("hard gap, Newton step", *hard), ("soft gap, Newton step", soft[0], soft[2]),
            ("soft gap, summed", soft[1], soft[2]),
        ):  # fmt: skip
            slope = (x @ y) / (x @ x)
            print(f"{actions}: {name}: r {np.corrcoef(x, y)[0, 1]:.4f}, slope {slope:.3f}, {len(held)} answers")


if __name__ == "__main__":
    main()
