"""Parameters as a question: linear until the norm, and the displacement that fitting again gives."""

import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence.errors import ParameterError, UnsupportedError

N, F = 200, 3
GEN = torch.Generator().manual_seed(0)
X = torch.randn(N, F, generator=GEN, dtype=torch.float64)
Y = X @ torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64) + torch.randn(N, generator=GEN, dtype=torch.float64)
GROUPS = {"first": range(5), "others": range(5, 40), "one": [77]}


class Linear(nn.Module):
    """A linear model whose slopes are kept in another unit."""

    def __init__(self, theta, unit=1.0):
        super().__init__()
        self.unit = unit
        self.items = nn.ParameterDict({"slope": theta[:2] / unit, "level": theta[2]})

    def forward(self, x):
        return x[:, :2] @ (self.items["slope"] * self.unit) + x[:, 2] * self.items["level"]


def loss(model, batch):
    return (model(batch[0]) - batch[1]).square() / 2


def fitted(weights, unit=1.0):
    theta = torch.linalg.solve(X.T @ (weights.unsqueeze(1) * X), X.T @ (weights * Y))
    return Linear(theta, unit)


EXACT = cf.Exact()


def moves(unit=1.0, glob="items.*", solver=EXACT):
    risk = cf.Risk(fitted(torch.ones(N).double(), unit), loss, cf.batches(X, Y, size=64))
    return cf.influence(risk, cf.parameters(glob), solver)


def test_the_columns_are_the_numbers_by_name_and_what_a_plain_question_gives():
    found = moves()
    assert found.objectives == ("items.level", "items.slope[0]", "items.slope[1]")
    risk = cf.Risk(fitted(torch.ones(N).double()), loss, cf.batches(X, Y))
    plain = cf.influence(
        risk, lambda model: torch.cat([model.items["level"].view(1), model.items["slope"]]), cf.Exact()
    )
    torch.testing.assert_close(found.values, plain.values)
    assert moves(glob="*.slope").objectives == found.objectives[1:]


def test_sums_come_before_the_norm():
    found = moves()
    summed = found.sum_by(GROUPS)
    lengths = summed.norm()
    for row, members in enumerate(GROUPS.values()):
        together = found.values[list(members)].sum(0)
        assert lengths.values[row, 0].item() == pytest.approx(together.norm().item())
    doubled = cf.Scores(2 * summed.values, summed.ids, summed.objectives, "x", metric=summed.metric)
    for metric in ("euclid", "fisher"):
        torch.testing.assert_close(doubled.norm(metric).values, 2 * summed.norm(metric).values)
    assert found.norm().sum_by(GROUPS).values[1] > 1.2 * lengths.values[1]  # lengths do not add up


def test_the_norm_is_the_displacement_by_fitting_again_to_first_order():
    found, step = moves().sum_by(GROUPS), 1e-5
    whole = torch.ones(N, dtype=torch.float64)
    question = cf.parameters("items.*")
    for row, members in enumerate(GROUPS.values()):
        weights = whole.clone()
        weights[list(members)] -= step
        moved = [torch.stack(list(question(fitted(each)).values())) for each in (whole, weights)]
        away = (moved[0] - moved[1]) / step
        assert found.norm().values[row, 0].item() == pytest.approx(away.norm().item(), rel=1e-3)
    truth = cf.leave_out(fitted, question, GROUPS, n=N)
    torch.testing.assert_close(found.norm().values, truth.norm().values, rtol=0.25, atol=0.0)
    torch.testing.assert_close(
        found.norm("fisher").values, truth.norm(found.metric).values, rtol=0.25, atol=0.0
    )  # fmt: skip


def test_in_the_fisher_metric_the_unit_of_a_parameter_does_not_matter():
    plain, thousand = moves().sum_by(GROUPS), moves(unit=1000.0).sum_by(GROUPS)
    torch.testing.assert_close(plain.norm("fisher").values, thousand.norm("fisher").values)
    assert (thousand.norm().values < 0.9 * plain.norm().values).any()


def test_a_fisher_length_is_in_standard_errors_written_out():
    found = moves().select([3, 9])
    theta = torch.stack(list(cf.parameters()(fitted(torch.ones(N).double())).values()))[[1, 2, 0]]
    rows = X[:, [2, 0, 1]] * (X @ theta - Y).unsqueeze(1)  # gradients, in the order of the columns
    for row in range(2):
        delta = found.values[row]
        wanted = (delta @ (rows.T @ rows) @ delta).sqrt().item()
        assert found.norm("fisher").values[row, 0].item() == pytest.approx(wanted, rel=1e-9)
    assert found.norm("fisher").objectives == ("norm (fisher, standard errors)",)


def test_scores_keep_their_metric_in_a_file(tmp_path):
    found = moves()
    found.save(tmp_path / "moves")
    again = cf.Scores.load(tmp_path / "moves")
    torch.testing.assert_close(again.norm("fisher").values, found.norm("fisher").values)


def test_other_solvers_and_losses_that_couple_samples_can_be_asked():
    torch.testing.assert_close(moves(solver=cf.CG(0.0, rtol=1e-10)).values, moves().values)

    def coupled(model, batch, weights):
        return (weights * (model(batch[0]) - batch[1]).square() / 2).sum()

    risk = cf.Risk(fitted(torch.ones(N).double()), cf.WeightedLoss(coupled), cf.batches(X, Y, size=N))
    found = cf.influence(risk, cf.parameters("items.*"), cf.Exact())
    torch.testing.assert_close(found.norm("fisher").values, moves().norm("fisher").values)


def test_what_cannot_be_asked_is_refused_with_a_sentence():
    with pytest.raises(ParameterError, match=r"needed globs over names"):
        cf.parameters(3)
    with pytest.raises(ParameterError, match="No trained parameter of Linear matches"):
        moves(glob="users.*")
    whole = fitted(torch.ones(N).double())
    part = cf.Risk(whole, loss, cf.batches(X, Y), params="*.slope")
    with pytest.raises(ParameterError, match=r"'items.level' is no trained parameter of this risk"):
        cf.influence(part, cf.parameters("items.*"), cf.Exact())
    truth = cf.leave_out(fitted, cf.parameters(), GROUPS, n=N)
    with pytest.raises(UnsupportedError, match=r"hold no Fisher matrix: .* norm\(predicted.metric\)"):
        truth.norm("fisher")
    with pytest.raises(ValueError, match="metric='l1'; needed 'euclid', 'fisher' or a matrix"):
        truth.norm("l1")
    with pytest.raises(ValueError, match=r"shape \(2, 2\); needed \(3, 3\)"):
        truth.norm(torch.eye(2))
