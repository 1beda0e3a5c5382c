"""Gaps between groups: hard ones are fairlearn's, soft ones have gradients, undefined ones are refused."""

import itertools

import numpy as np
import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence import tabular
from crossfluence.errors import DataError, ObjectiveError

RNG = np.random.default_rng(0)
N = 400
X = torch.tensor(RNG.normal(size=(N, 2)))
Y = (RNG.random(N) < 0.4).astype(int)
PAIR = np.where(RNG.random(N) < 0.3, "b", "a")
MANY = RNG.choice(["a", "b", "c"], size=N)


def model(seed=0):
    net = nn.Linear(2, 1).double()
    with torch.no_grad():
        net.weight.copy_(torch.randn(1, 2, generator=torch.Generator().manual_seed(seed)))
        net.bias.fill_(0.2)
    return net


def counted(metric, y, chosen, groups, aggregate):
    """Slow and obvious: rates by counting rows one by one."""

    def rate(name, rows):
        if name == "selection":
            return sum(chosen[i] for i in rows) / len(rows)
        if name == "tpr":
            rows = [i for i in rows if y[i] == 1]
            return sum(chosen[i] for i in rows) / len(rows)
        if name == "fpr":
            rows = [i for i in rows if y[i] == 0]
            return sum(chosen[i] for i in rows) / len(rows)
        if name == "fnr":
            rows = [i for i in rows if y[i] == 1]
            return sum(1 - chosen[i] for i in rows) / len(rows)
        rows = [i for i in rows if chosen[i] == 1]
        return sum(1 - y[i] for i in rows) / len(rows)

    names = {"statistical-parity": ["selection"], "equal-opportunity": ["tpr"], "equalised-odds": ["tpr", "fpr"],
             "fpr": ["fpr"], "fnr": ["fnr"], "fdr": ["fdr"]}[metric]  # fmt: skip
    gaps = []
    for name in names:
        rates = [rate(name, [i for i in range(len(y)) if groups[i] == g]) for g in sorted(set(groups))]
        gaps.append(max(rates) - min(rates))
    return max(gaps) if aggregate == "worst" else sum(gaps) / len(gaps)


@pytest.mark.parametrize("metric", tabular.METRICS)
@pytest.mark.parametrize("groups", [PAIR, MANY], ids=["two groups", "three groups"])
@pytest.mark.parametrize("aggregate", ["mean", "worst"])
def test_a_hard_gap_is_the_one_counted_row_by_row(metric, groups, aggregate):
    net = model()
    chosen = (net(X)[:, 0] > 0).int().tolist()
    found = tabular.group_gap(metric, X, Y, groups).hard(net, aggregate)
    assert abs(found - counted(metric, Y, chosen, groups, aggregate)) < 1e-12


@pytest.mark.parametrize("metric", tabular.METRICS)
@pytest.mark.parametrize("groups", [PAIR, MANY], ids=["two groups", "three groups"])
def test_a_hard_gap_is_that_of_fairlearn(metric, groups):
    fairlearn = pytest.importorskip("fairlearn.metrics")
    from sklearn.metrics import precision_score

    net = model()
    chosen = (net(X)[:, 0] > 0).int().numpy()
    gap = tabular.group_gap(metric, X, Y, groups)
    given = {"y_true": Y, "y_pred": chosen, "sensitive_features": groups}
    wanted = {
        "statistical-parity": lambda: fairlearn.demographic_parity_difference(**given),
        "equal-opportunity": lambda: fairlearn.equal_opportunity_difference(**given),
        "equalised-odds": lambda: fairlearn.equalized_odds_difference(**given),
        "fpr": lambda: fairlearn.false_positive_rate_difference(**given),
        "fnr": lambda: fairlearn.false_negative_rate_difference(**given),
        "fdr": lambda: fairlearn.MetricFrame(metrics=lambda y, s: 1 - precision_score(y, s), **given).difference(),
    }[metric]()
    assert abs(gap.hard(net, "worst") - wanted) < 1e-12
    if metric == "equalised-odds":
        assert abs(gap.hard(net) - fairlearn.equalized_odds_difference(agg="mean", **given)) < 1e-12


@pytest.mark.parametrize("metric", tabular.METRICS)
def test_a_cold_soft_gap_is_the_root_mean_square_of_the_hard_gaps(metric):
    net = model()
    gap = tabular.group_gap(metric, X, Y, MANY, temperature=1e-9)
    gaps = [
        rates[first] - rates[second]
        for rates in gap.rates(net).values()
        for first, second in itertools.combinations(gap.names, 2)
    ]
    assert abs(gap(net).item() - np.sqrt(np.mean(np.square(gaps)))) < 1e-9


@pytest.mark.parametrize("metric", tabular.METRICS)
def test_a_soft_gap_has_the_gradient_of_its_values(metric):
    gap = tabular.group_gap(metric, X, Y, MANY, temperature=0.3)
    net = model()

    def at(weight):
        return gap(lambda x: x @ weight)

    assert torch.autograd.gradcheck(at, (net.weight[0].detach().requires_grad_(),))


def test_the_temperature_follows_the_spread_of_the_decision_values():
    net, wide = model(), model()
    with torch.no_grad():
        wide.weight.mul_(10), wide.bias.mul_(10)
    first, second = (tabular.group_gap("equal-opportunity", X, Y, PAIR, at=each) for each in (net, wide))
    assert second.temperature == pytest.approx(10 * first.temperature)
    assert second(wide).item() == pytest.approx(first(net).item())
    values, positives = net(X)[:, 0].detach(), torch.tensor(Y) == 1
    cells = [positives & torch.tensor(name == PAIR) for name in ("a", "b")]
    wanted = 0.3 * np.mean([values[cell].numpy().std() * int(cell.sum()) ** -0.2 for cell in cells])
    assert first.temperature == pytest.approx(wanted)


def test_scores_for_a_gap_are_those_of_fitting_again():
    pytest.importorskip("sklearn")
    from sklearn.linear_model import LogisticRegression

    x = X.numpy() + 0.8 * (PAIR == "a")[:, None]
    fitted = LogisticRegression(tol=1e-10).fit(x, Y)
    risk = tabular.risk_of(fitted, x, Y)
    gap = tabular.group_gap("statistical-parity", torch.tensor(x), Y, PAIR, at=risk.model)
    drop = list(range(0, N, 16))
    truth = cf.leave_out(tabular.training_of(fitted, x, Y), gap, drop, n=N)
    found = cf.compare(cf.influence(risk, gap).select(drop), truth)
    assert found.pearson > 0.99
    assert 0.9 < found.slope < 1.1


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (("parity", X, Y, PAIR), "There is no metric 'parity'; there are statistical-parity"),
        (("fpr", X, Y, ["a"] * N), "All 400 rows are of one group, 'a'"),
        (("equal-opportunity", X, np.where(PAIR == "b", 0, Y), PAIR), "of group 'b' is undefined: it has no positives"),
        (("fpr", X, np.where(PAIR == "b", 1, Y), PAIR), "of group 'b' is undefined: it has no negatives"),
        (("fpr", X, Y + 1, PAIR), "Labels must be 0 and 1"),
        (("fpr", X, Y[:3], PAIR), "400 rows, 3 labels, 400 groups"),
        (("fpr", X, Y, [None, *PAIR[1:]]), "Row 0 has no group"),
    ],
)
def test_a_gap_that_is_undefined_is_refused(given, words):
    with pytest.raises((ObjectiveError, DataError), match=words):
        tabular.group_gap(*given)


def test_discoveries_of_a_group_that_nobody_is_chosen_from_are_refused():
    net = model()
    with torch.no_grad():
        net.bias.fill_(-99)
    with pytest.raises(ObjectiveError, match="of group 'a' is undefined: no row of it is given"):
        tabular.group_gap("fdr", X, Y, PAIR).hard(net)


def test_a_model_with_several_outputs_says_how_to_decide():
    with pytest.raises(ObjectiveError, match="decide=lambda model, x"):
        tabular.group_gap("fpr", X, Y, PAIR)(nn.Identity())
