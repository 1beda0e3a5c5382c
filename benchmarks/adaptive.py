"""Selection bias in adaptive testing: which users' answers help to calibrate a test, and which spoil it.

Run: python -m benchmarks.adaptive [--seeds 20] [--first 0] [--joint]
Simulated, so the truth is known. 185 items of a 2PL model, P = sigmoid(softplus(s) ability - d); 50 users answered all
of them, 1,000 answered 20 that an adaptive test chose for them (the item of most information at the estimate so far, by
the calibration of the 50), 2,000 more are for the test. Items are estimated by marginal likelihood, abilities N(0, 1)
integrated over 21 nodes: that prior identifies shift and scale. A second one, N(0, 1) on s - .5 and on d, keeps items
finite that nearly all got right. Each adaptive user's answers are candidates: their influence on all item parameters,
`cf.parameters`, is added up over the user and has a length in standard errors, `norm("fisher")`. Kept are the users
below the 25th percentile. Beside them: all, none, answers below the percentile one by one, random users, and users by
the absolute sum of all signed changes, which is what was published. Fitted again with each; RMSE of item parameters,
Spearman of difficulties, AUC of all other answers of the test users after 10 adaptive questions. --joint fits with one
ability for each user, estimated beside the items under the same prior, in place of integrated over; users are chosen as
before. About 15 CPU seconds for each seed.
"""

from __future__ import annotations

import argparse
import statistics
import warnings
from dataclasses import dataclass
from time import process_time

import torch
from scipy import stats
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.results import kept, save

ITEMS, UNBIASED, ADAPTIVE, TESTED, ASKED, QUESTIONS, SHARE = 185, 50, 1000, 2000, 20, 10, 0.25
NODES = torch.linspace(-4, 4, 21, dtype=torch.float64)
PRIOR = torch.log_softmax(-NODES.square() / 2, 0)
ARMS = ("users by length", "all", "none", "answers by length", "random users", "users by signed sum")
MEASURES = ("rmse", "spearman", "auc")


class Items(nn.Module):
    """Item parameters as differences from the middle of their prior."""

    def __init__(self, slope: Tensor, difficulty: Tensor) -> None:
        super().__init__()
        self.items = nn.ParameterDict({"slope": slope, "difficulty": difficulty})

    def logits(self, ability: Tensor) -> Tensor:
        """Of a right answer to each item, `(abilities, items)`."""
        slopes = nn.functional.softplus(self.items["slope"] + 0.5)
        return ability.unsqueeze(1) * slopes - self.items["difficulty"]


@dataclass(frozen=True)
class Answers:
    """Right and wrong answers, `(users, items)` of zeros and ones; neither where there is none."""

    right: Tensor
    wrong: Tensor

    def of(self, users: Tensor) -> Answers:
        """Of some users."""
        return Answers(self.right[users], self.wrong[users])

    def and_of(self, other: Answers) -> Answers:
        """With those of others below."""
        return Answers(torch.cat([self.right, other.right]), torch.cat([self.wrong, other.wrong]))


def log_likelihood(model: Items, right: Tensor, wrong: Tensor) -> Tensor:
    """Of a user's answers at each node, `(users, nodes)`."""
    logits = model.logits(NODES)
    return right @ nn.functional.logsigmoid(logits).T + wrong @ nn.functional.logsigmoid(-logits).T


def marginal(model: Items, batch: tuple[Tensor, Tensor, Tensor]) -> Tensor:
    """Minus the log of the likelihood of each row's answers, over nodes with the row's log weights."""
    return -(log_likelihood(model, batch[0], batch[1]) + batch[2]).logsumexp(1)


def fitted(answers: Answers) -> Items:
    """Item parameters of most posterior probability."""
    model = Items(torch.zeros(ITEMS).double(), torch.zeros(ITEMS).double())
    rows = (answers.right, answers.wrong, PRIOR.expand(len(answers.right), -1))
    optimizer = torch.optim.LBFGS(
        model.parameters(), max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        size = sum(part.square().sum() for part in model.parameters())
        total = (marginal(model, rows).sum() + size / 2) / len(answers.right)
        total.backward()
        return total

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return model


def fitted_jointly(answers: Answers) -> Items:
    """Item parameters of most posterior probability together with one ability for each user."""
    model = Items(torch.zeros(ITEMS).double(), torch.zeros(ITEMS).double())
    abilities = torch.zeros(len(answers.right), dtype=torch.float64, requires_grad=True)
    every = [*model.parameters(), abilities]
    optimizer = torch.optim.LBFGS(
        every, max_iter=500, tolerance_grad=1e-8, tolerance_change=1e-14, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        optimizer.zero_grad()
        logits = model.logits(abilities)
        right, wrong = nn.functional.logsigmoid(logits), nn.functional.logsigmoid(-logits)
        size = sum(part.square().sum() for part in every)
        total = (size / 2 - (answers.right * right + answers.wrong * wrong).sum()) / len(answers.right)
        total.backward()
        return total

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return model


def given_answers(truth: Items, abilities: Tensor, generator: torch.Generator) -> Answers:
    """All answers of some users."""
    p = truth.logits(abilities).sigmoid()
    right = (torch.rand(p.shape, generator=generator, dtype=torch.float64) < p).double()
    return Answers(right, 1 - right)


def asked_adaptively(model: Items, answers: Answers, count: int) -> tuple[Answers, Tensor]:
    """Those answers that an adaptive test would have seen, and the probability of a right one to every item then."""
    asked = torch.zeros_like(answers.right)
    for _ in range(count):
        q = posterior(model, Answers(answers.right * asked, answers.wrong * asked))
        slopes = nn.functional.softplus(model.items["slope"] + 0.5)
        p = model.logits(q @ NODES).sigmoid()
        information = (slopes.square() * p * (1 - p)).masked_fill(asked > 0, -1)
        asked[torch.arange(len(asked)), information.argmax(1)] = 1
    seen = Answers(answers.right * asked, answers.wrong * asked)
    return seen, posterior(model, seen) @ model.logits(NODES).sigmoid()


def posterior(model: Items, answers: Answers) -> Tensor:
    """Of each user's ability over the nodes."""
    return (log_likelihood(model, answers.right, answers.wrong) + PRIOR).softmax(1)


def lengths(model: Items, unbiased: Answers, adaptive: Answers) -> dict[str, Tensor]:
    """For each adaptive user, or answer, the number by which it is kept: a small one."""
    rows = (unbiased.right, unbiased.wrong, PRIOR.expand(UNBIASED, -1).contiguous())
    risk = cf.Risk(model, marginal, cf.batches(*rows), l2=1 / UNBIASED)
    users, items = (adaptive.right + adaptive.wrong).nonzero(as_tuple=True)
    with torch.no_grad():
        q = posterior(model, adaptive)[users]
        one = nn.functional.one_hot(items, ITEMS).double()
        right, wrong = one * adaptive.right[users], one * adaptive.wrong[users]
        weights = q.clamp(min=1e-300).log() - log_likelihood(model, right, wrong)  # so that each row's posterior is q
    candidates = cf.batches(right, wrong, weights, size=500)
    moves = cf.influence(risk, cf.parameters("items.*"), cf.Exact(), candidates=candidates)
    of_users = moves.sum_by(users.tolist())
    order = torch.tensor(of_users.ids).argsort()
    return {
        "users": of_users.norm("fisher").values[order, 0],
        "signed": of_users.values.sum(1).abs()[order],
        "answers": moves.norm("fisher").values[:, 0],
    }


def selections(found: dict[str, Tensor], adaptive: Answers, generator: torch.Generator) -> dict[str, Answers | None]:
    """The adaptive answers that each arm keeps."""

    def below(values: Tensor) -> Tensor:
        return (values < values.quantile(SHARE)).nonzero()[:, 0]

    users, items = (adaptive.right + adaptive.wrong).nonzero(as_tuple=True)
    mask, few = torch.zeros_like(adaptive.right), below(found["answers"])
    mask[users[few], items[few]] = 1
    drawn = torch.randperm(ADAPTIVE, generator=generator)[: round(SHARE * ADAPTIVE)]
    return {
        "users by length": adaptive.of(below(found["users"])),
        "all": adaptive,
        "none": None,
        "answers by length": Answers(adaptive.right * mask, adaptive.wrong * mask),
        "random users": adaptive.of(drawn),
        "users by signed sum": adaptive.of(below(found["signed"])),
    }


def measured(model: Items, truth: Items, tested: Answers) -> dict[str, float]:
    """Errors of the items, and how well answers are foretold after an adaptive test."""
    pairs = [
        (nn.functional.softplus(own.items["slope"] + 0.5), own.items["difficulty"]) for own in (model, truth)
    ]  # fmt: skip
    away = torch.cat([mine - theirs for mine, theirs in zip(*pairs, strict=True)])
    ranks = torch.stack([pair[1].argsort().argsort().double() for pair in pairs])
    seen, p = asked_adaptively(model, tested, QUESTIONS)
    left = (seen.right + seen.wrong) == 0
    return {
        "rmse": away.square().mean().sqrt().item(),
        "spearman": torch.corrcoef(ranks)[0, 1].item(),
        "auc": area(p[left], tested.right[left] > 0),
    }


def area(values: Tensor, right: Tensor) -> float:
    """Under the curve of a classifier."""
    ranks = torch.empty_like(values)
    ranks[values.argsort()] = torch.arange(1, len(values) + 1, dtype=values.dtype)
    hits = int(right.sum())
    return float((ranks[right].sum() - hits * (hits + 1) / 2) / (hits * (len(values) - hits)))


@torch.no_grad()
def simulated(generator: torch.Generator) -> tuple[Items, list[Answers]]:
    """True items, and all answers of unbiased, adaptive and test users."""
    normal = torch.randn(2, ITEMS, generator=generator, dtype=torch.float64)
    truth = Items(0.5 * normal[0], normal[1])
    abilities = [torch.randn(count, generator=generator, dtype=torch.float64) for count in (UNBIASED, ADAPTIVE, TESTED)]
    return truth, [given_answers(truth, each, generator) for each in abilities]


def run(seed: int, joint: bool = False) -> list[dict]:
    """All arms of one simulation."""
    started = process_time()
    generator = torch.Generator().manual_seed(seed)
    truth, (unbiased, everything, tested) = simulated(generator)
    first = fitted(unbiased)
    with torch.no_grad():
        adaptive, _ = asked_adaptively(first, everything, ASKED)
    found = lengths(first, unbiased, adaptive)
    rows = []
    for arm, chosen in selections(found, adaptive, generator).items():
        if joint:
            model = fitted_jointly(unbiased if chosen is None else unbiased.and_of(chosen))
        else:
            model = first if chosen is None else fitted(unbiased.and_of(chosen))
        with torch.no_grad():
            rows.append({"seed": seed, "arm": arm, **measured(model, truth, tested)})
    print(f"seed {seed}: {process_time() - started:.1f} CPU seconds", flush=True)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--first", type=int, default=0)
    parser.add_argument("--joint", action="store_true", help="estimate abilities beside the items")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    name = "adaptive-joint" if asked.joint else "adaptive"
    rows: list[dict] = kept(name)  # a run that was stopped goes on
    done = {int(row["seed"]) for row in rows}
    for seed in range(asked.first, asked.first + asked.seeds):
        if seed not in done:
            rows.extend(run(seed, asked.joint))
            save(name, rows)
    summary(rows)


def summary(rows: list[dict]) -> None:
    """Means with 95 % intervals, and paired differences from the users by length."""
    for measure in MEASURES:
        own = {arm: [float(row[measure]) for row in rows if row["arm"] == arm] for arm in ARMS}
        print(f"\n{measure}")
        for arm in ARMS:
            pairs = [mine - theirs for mine, theirs in zip(own[ARMS[0]], own[arm], strict=True)]
            print(f"  {arm}: {interval(own[arm])}; users by length minus this: {interval(pairs)}")


def interval(values: list[float]) -> str:
    """Mean and half the width of its 95 % interval."""
    count = len(values)
    half = stats.t.ppf(0.975, count - 1) * statistics.stdev(values) / count**0.5 if count > 1 else float("nan")
    return f"{statistics.mean(values):.4f} ± {half:.4f}"


if __name__ == "__main__":
    main()
