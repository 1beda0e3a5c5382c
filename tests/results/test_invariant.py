"""Votes over versions of a question, beside the same written out sample by sample."""

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
    torch.testing.assert_close(found.values, by_hand(columns, 0.1, needed))
    assert found.objectives == ("invariant", "votes", "variance")
    suspected = found.values[:, 0].abs() >= 1
    assert torch.equal(suspected, found.values[:, 1] >= needed)


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
    with pytest.raises(TypeError, match="several Scores by name"):
        cf.invariant([made["as is"], made["not"]])
