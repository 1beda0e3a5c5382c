"""Votes over versions of a question, beside the same written out sample by sample."""

import math

import pytest
import torch

import crossfluence as cf
from crossfluence.errors import DataError, IdError, NonFiniteError

GEN = torch.Generator().manual_seed(0)
IDS = tuple(f"s{row}" for row in range(60))


def scores(values, ids=IDS):
    return cf.Scores(values.reshape(len(ids), -1), ids, ("answer",), "by hand")


def three():
    base = torch.randn(60, dtype=torch.float64, generator=GEN)
    return {name: base + 0.8 * torch.randn(60, dtype=torch.float64, generator=GEN) for name in ("as is", "not", "?")}


def by_hand(columns, strong, needed):
    """Sample by sample: the weakest of the strongest `needed` versions that share a sign."""
    found = []
    for row in range(60):
        ratios = [
            float(column[row]) / sorted(column.abs().tolist(), reverse=True)[int(strong * 60) - 1]
            for column in columns.values()
        ]
        up = sorted((r for r in ratios if r > 0), reverse=True)
        down = sorted(r for r in ratios if r < 0)
        value = up[needed - 1] if len(up) >= needed else down[needed - 1] if len(down) >= needed else 0.0
        same = [r for r in ratios if r * value > 0 and abs(r) >= 1]
        mean = sum(ratios) / 3
        found.append((value, len(same), sum((r - mean) ** 2 for r in ratios) / 2))
    return torch.tensor(found, dtype=torch.float64)


@pytest.mark.parametrize(("agree", "needed"), [("all", 3), ("most", 2)])
def test_votes_and_variance_are_those_counted_by_hand(agree, needed):
    columns = three()
    found = cf.invariant({name: scores(column) for name, column in columns.items()}, strong=0.1, agree=agree)
    torch.testing.assert_close(found.values[:, :3], by_hand(columns, 0.1, needed))
    assert found.objectives == ("invariant", "votes", "variance", "doubt")
    suspected = found.values[:, 0].abs() >= 1
    assert torch.equal(suspected, found.values[:, 1] >= needed)
    assert set(cf.suspected(found, doubt=1)) == {IDS[row] for row in (found.values[:, 0] >= 1).nonzero()[:, 0]}


def test_scaling_a_version_and_permuting_its_samples_changes_nothing():
    columns = three()
    plain = cf.invariant({name: scores(column) for name, column in columns.items()})
    turned = torch.randperm(60, generator=GEN).tolist()
    other = {name: scores(column) for name, column in columns.items()}
    other["not"] = scores(7 * columns["not"][turned], tuple(IDS[row] for row in turned))
    torch.testing.assert_close(cf.invariant(other).values, plain.values)


def test_turning_all_signs_turns_the_answer():
    columns = three()
    one = cf.invariant({name: scores(column) for name, column in columns.items()}, agree="most")
    other = cf.invariant({name: scores(-column) for name, column in columns.items()}, agree="most")
    torch.testing.assert_close(other.values[:, 0], -one.values[:, 0])
    torch.testing.assert_close(other.values[:, 1:], one.values[:, 1:])


def test_a_sample_whose_effect_turns_with_the_question_is_not_suspected():
    base = torch.linspace(-1, 1, 60, dtype=torch.float64)
    base[0], base[1] = 9, 8
    turned = -base
    turned[0] = 9.5
    found = cf.invariant({"as is": scores(base), "negated": scores(turned)}, strong=0.04)
    assert [label for label, value in found.top(60, "invariant") if value >= 1] == ["s0"]


def drawn(tail, planted=0, size=0.0, seed=0):
    """Two versions of 1,000 samples from a tail, of which the first few are strong in both."""
    generator = torch.Generator().manual_seed(seed)
    base = (
        tail(torch.rand(1000, generator=generator, dtype=torch.float64)) * torch.randn(1000, generator=generator).sign()
    )
    base[:planted] = size * (1 + 0.2 * torch.rand(planted, generator=generator, dtype=torch.float64))
    other = base * (1 + 0.05 * torch.randn(1000, generator=generator, dtype=torch.float64))
    return cf.invariant({name: scores(part, tuple(range(1000))) for name, part in (("is", base), ("?", other))})


TAILS = {
    "exponential": lambda u: -u.log(),
    "half a normal one": lambda u: torch.special.ndtri((1 + u) / 2),
    "uniform": lambda u: u,
}


@pytest.mark.parametrize("tail", TAILS.values(), ids=TAILS)
def test_the_number_named_is_the_number_planted_and_of_clean_samples_hardly_any(tail):
    clean = [len(cf.suspected(drawn(tail, seed=seed))) for seed in range(40)]
    assert sum(clean) / 40 < 0.2
    for planted in (5, 20, 45):
        named = [cf.suspected(drawn(tail, planted, 25.0, seed)) for seed in range(5)]
        assert all(set(range(planted)) <= set(one) for one in named)
        assert sum(len(one) - planted for one in named) / 5 <= 0.1 * planted


def test_the_doubt_is_that_of_the_tail_written_out():
    found = drawn(TAILS["exponential"], 20, 25.0)
    values = found.values[:, 0]
    up = values[values > 0].sort(descending=True).values.tolist()
    first, last = 75, 150  # 1.5 and 3 times 5 % of 1,000
    out = int((found.values[:, 3] <= 0.05).sum())
    assert 20 <= out <= 22
    scale = (up[first - 1] - up[last - 1]) / math.log((last - out) / (first - out))
    wanted = [(first - out) * math.exp(-(v - up[first - 1]) / scale) / (rank + 1) for rank, v in enumerate(up[:40])]
    doubt = dict(zip(values.tolist(), found.values[:, 3].tolist(), strict=True))
    for rank, value in enumerate(up[:40]):
        assert doubt[value] == pytest.approx(min(1, min(wanted[rank:])), rel=1e-9, abs=0)


def test_what_lowers_the_question_is_not_suspected_and_has_a_tail_of_its_own():
    found = drawn(TAILS["exponential"], 20, -25.0)
    assert not cf.suspected(found)
    assert found.values[:20, 3].max() < 1e-3


def test_the_verdict_is_the_lowest_of_the_versions():
    columns = three()
    made = {name: scores(column) for name, column in columns.items()}
    made["?"] = cf.Scores(columns["?"].unsqueeze(1), IDS, ("answer",), "x", verdict=cf.Verdict("order", ("so",)))
    assert cf.invariant(made).verdict.level == "order"


def test_what_is_no_set_of_versions_is_refused_with_a_sentence():
    columns = three()
    made = {name: scores(column) for name, column in columns.items()}
    with pytest.raises(DataError, match=r"Got 1 versions .* needed at least 2"):
        cf.invariant({"as is": made["as is"]})
    with pytest.raises(DataError, match=r"'as is' and '\?' have equal scores: .* changed nothing"):
        cf.invariant(made | {"?": made["as is"]})
    with pytest.raises(IdError, match="version 'not' is about other samples, such as"):
        cf.invariant(made | {"not": scores(columns["not"], tuple(range(60)))})
    two = cf.Scores(torch.ones(60, 2), IDS, ("a", "b"), "by hand")
    with pytest.raises(DataError, match="version 'not' answers 2 questions"):
        cf.invariant(made | {"not": two})
    with pytest.raises(DataError, match="fewer than 3 samples have an influence"):
        cf.invariant(made | {"not": scores(torch.zeros(60))})
    with pytest.raises(NonFiniteError, match="version 'not' is NaN"):
        cf.invariant(made | {"not": scores(torch.full((60,), float("nan")))})
    with pytest.raises(ValueError, match=r"strong=5; needed a share"):
        cf.invariant(made, strong=5)
    with pytest.raises(ValueError, match="agree='both'; needed 'all' or 'most'"):
        cf.invariant(made, agree="both")
    with pytest.raises(DataError, match=r"scores of \('answer',\); needed those of invariant"):
        cf.suspected(made["as is"])
    with pytest.raises(ValueError, match="doubt=0; needed a share of the suspects above 0"):
        cf.suspected(cf.invariant(made), doubt=0)
    with pytest.raises(TypeError, match="several Scores by name"):
        cf.invariant([made["as is"], made["not"]])
