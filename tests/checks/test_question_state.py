"""Questions that change the model they ask about, and models that do not belong to their samples."""

from __future__ import annotations

import copy
import warnings

import pytest
import torch
from torch import nn

import crossfluence as cf
from crossfluence.errors import ObjectiveError, ParameterError, UnreliableWarning

N, D, L2 = 24, 4, 0.05


def squares(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square()


@pytest.fixture(scope="module")
def trained():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(N, D, generator=generator, dtype=torch.float64)
    y = (x @ torch.tensor([1.0, -1, 0.5, 0]).double()).tanh()
    y = y + 0.3 * torch.randn(N, generator=generator, dtype=torch.float64)
    model = nn.Sequential(nn.Linear(D, 3), nn.Tanh(), nn.Linear(3, 1)).double()
    with torch.no_grad():
        for part in model.parameters():
            part.copy_(torch.randn(part.shape, generator=generator) / 2)
    optimizer = torch.optim.LBFGS(model.parameters(), max_iter=400, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        norm = sum(part.square().sum() for part in model.parameters())
        loss = squares(model, (x, y)).mean() + L2 / 2 * norm
        loss.backward()
        return loss

    optimizer.step(closure)
    model.zero_grad()
    return model, x, y


def level(model, x, y, solver, loss=squares):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreliableWarning)
        scores = cf.influence(cf.Risk(model, loss, cf.batches(x, y), l2=L2), lambda m: m(x[:1])[0, 0], solver)
    assert scores.verdict is not None
    return scores.verdict.level, str(scores.verdict)


def test_a_question_that_changes_the_model_is_refused_and_the_model_put_back(trained):
    model, x, y = copy.deepcopy(trained[0]), *trained[1:]
    before = {name: part.clone() for name, part in model.state_dict().items()}

    def question(m):
        m[0].weight.data.mul_(0.9)
        return m(x[:1])[0, 0]

    with pytest.raises(ObjectiveError, match=r"changes the model itself \(0\.weight\)"):
        cf.influence(cf.Risk(model, squares, cf.batches(x, y), l2=L2), question)
    assert all(torch.equal(part, before[name]) for name, part in model.state_dict().items())


def test_a_question_that_calls_backward_is_told_what_to_return(trained):
    model, x, y = trained

    def question(m):
        value = m(x[:1])[0, 0]
        value.backward()
        return value

    with pytest.raises(ObjectiveError, match="calls backward"):
        cf.influence(cf.Risk(model, squares, cf.batches(x, y), l2=L2), question)


@pytest.mark.parametrize("solver", [cf.Auto(), cf.EKFAC()], ids=["auto", "ekfac"])
def test_few_samples_that_are_not_the_models_are_noticed(trained, solver):
    model, x, y = trained
    assert level(model, x, y, solver)[0] != "unreliable"
    for other in (y.roll(1), y.flip(0)):
        found, said = level(model, x, other, solver)
        assert found == "unreliable"
        assert "does not belong to these samples" in said
    assert level(model, x, y, solver, lambda m, b: -squares(m, b))[0] == "unreliable"


class Cached(nn.Module):
    """Keeps a transposed weight from its first call."""

    def __init__(self, net):
        super().__init__()
        self.net, self.kept = net, None

    def forward(self, x):
        if self.kept is None:
            self.kept = self.net[0].weight.T.contiguous()
        return self.net[2](torch.tanh(x @ self.kept + self.net[0].bias))


def test_a_value_kept_from_a_parameter_is_refused_as_no_derivative_follows_it(trained):
    net, x, y = trained
    model = Cached(copy.deepcopy(net))
    model(x)
    with pytest.raises(ParameterError, match=r"'net\.0\.weight' beside the model.*Cached\.kept is such a value"):
        cf.Risk(model, squares, cf.batches(x, y), l2=L2)
    weight = net[0].weight
    with pytest.raises(ParameterError, match="another variable for it"):
        cf.Risk(net, lambda m, b: squares(m, b) + weight.square().sum(), cf.batches(x, y), l2=L2)
    same = cf.Risk(net, lambda m, b: squares(m, b) + 0 * net[0].weight.square().sum(), cf.batches(x, y), l2=L2)
    assert same.n == N  # the model itself, by another name


NUMBERS = {
    "NaN": lambda: torch.tensor([float("nan"), 1.0]),
    "complex": lambda: torch.tensor([1 + 2j]),
    "bfloat16": lambda: torch.ones(2, dtype=torch.bfloat16),
    "float8": lambda: torch.ones(2).to(torch.float8_e4m3fn),
    "count": lambda: torch.tensor(3),
    "mask": lambda: torch.tensor([True, False]),
    "every second": lambda: torch.arange(6.0)[::2],
    "sparse": lambda: torch.eye(2).to_sparse(),
    "quantised": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", NUMBERS)
def test_a_question_is_asked_of_a_model_that_holds_numbers_of_any_kind(trained, kind):
    model, x, y = copy.deepcopy(trained[0]), *trained[1:]
    model.register_buffer("held", NUMBERS[kind]())
    scores = cf.influence(cf.Risk(model, squares, cf.batches(x, y), l2=L2), lambda m: m(x[:1])[0, 0], cf.Exact())
    assert len(scores) == N
