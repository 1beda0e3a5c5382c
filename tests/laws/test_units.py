"""A question's answer does not depend on the units of a column or of a parameter, nor on the precision of the model."""

import copy

import pytest
import torch
from grid import normal, seeded
from torch import nn

import crossfluence as cf

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # of training, not solving

LIMITS = {torch.float64: 1e-5, torch.float32: 2e-3}


class Rescaled(nn.Module):
    """A model in other units: parameter theta of `inner` is `unit` times the parameter that is trained here."""

    def __init__(self, inner, units):
        super().__init__()
        self.names = list(dict(inner.named_parameters()))
        self.hidden = (copy.deepcopy(inner),)
        flat = torch.cat([p.detach().reshape(-1) for p in inner.parameters()])
        self.register_buffer("units", units.to(flat))
        self.flat = nn.Parameter(flat / self.units)

    def forward(self, x):
        inner, found, start = self.hidden[0], {}, 0
        whole = self.flat * self.units
        for name, tensor in inner.named_parameters():
            found[name] = whole[start : start + tensor.numel()].reshape(tensor.shape)
            start += tensor.numel()
        return torch.func.functional_call(inner, found, (x,))


def linear(p=12, n=60):
    x = normal(n, p - 1, seed=1) + 0.5
    y = x.sum(1) + normal(n, seed=2)
    best = torch.linalg.lstsq(torch.cat([x, torch.ones(n, 1)], 1).double(), y[:, None]).solution[:, 0]
    model = nn.Linear(p - 1, 1).double()
    with torch.no_grad():
        model.weight.copy_(best[None, :-1])
        model.bias.copy_(best[-1:])
    return model, x, y


def network(hidden=3, features=4, n=50):
    x = normal(n, features, seed=3)
    model = seeded(nn.Sequential(nn.Linear(features, hidden), nn.Tanh(), nn.Linear(hidden, 1)))
    return model, x, x[:, 0] * x[:, 1] + 0.1 * normal(n, seed=4)


PROBLEMS = {"linear": linear, "many columns": lambda: linear(90, 300), "network": network}


def penalised(model, batch, decay, units):
    """Squared errors, and a weight decay that is carried along with the units."""
    flat = torch.cat([p.reshape(-1) for p in model.parameters()]) * units.to(batch[0])
    return (model(batch[0])[:, 0] - batch[1]).square() + decay / 2 * flat.square().sum()


def units_of(model, spread):
    """Powers of two from 2^-spread to 2^spread: other units without any rounding."""
    count = sum(p.numel() for p in model.parameters())
    generator = torch.Generator().manual_seed(7)
    return 2.0 ** torch.randint(-spread, spread + 1, (count,), generator=generator).double()


def scores(name, units, solver, dtype, decay):
    model, x, y = PROBLEMS[name]()
    chosen = Rescaled(model, units).to(dtype)
    x, y, units = x.to(dtype), y.to(dtype), units.to(dtype)
    risk = cf.Risk(chosen, lambda m, b: penalised(m, b, decay, units), cf.batches(x, y))
    return cf.influence(risk, lambda m: m(x[:1])[0, 0], solver)


def right(name, decay):
    """The dense formula in double precision and in the model's own units."""
    model, x, y = PROBLEMS[name]()
    ones = torch.ones(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    shapes = {k: p.shape for k, p in model.named_parameters()}

    def call(flat, x):
        parts = flat.split([s.numel() for s in shapes.values()])
        named = {k: part.reshape(s) for (k, s), part in zip(shapes.items(), parts, strict=True)}
        return torch.func.functional_call(model, named, (x,))[:, 0]

    def losses(flat):
        return (call(flat, x) - y).square() + decay / 2 * flat.square().sum()

    flat = torch.cat([p.detach().reshape(-1) for p in model.parameters()]) * ones
    H = torch.func.hessian(lambda at: losses(at).mean())(flat)
    G = torch.func.jacrev(losses)(flat)
    question = torch.func.grad(lambda at: call(at, x[:1])[0])(flat)
    return -(G @ torch.linalg.solve(H, question)) / len(x)


POSITIVE = [
    cf.Exact(), cf.CG(max_steps=3000), cf.GMRES(max_steps=3000), cf.LowRank(1000),
    cf.CG(max_steps=3000, preconditioner=cf.Jacobi()), cf.CG(max_steps=3000, preconditioner=cf.Nystrom(8)),
    cf.LiSSA(max_steps=20_000, rtol=1e-5),
]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("solver", POSITIVE, ids=str)
@pytest.mark.parametrize(("name", "decay"), [("linear", 0.0), ("linear", 0.3), ("many columns", 0.0)])
def test_the_unit_of_a_parameter_changes_no_score(name, decay, solver, dtype):
    if name == "many columns" and isinstance(solver, cf.LiSSA):
        pytest.skip("a series that is too long for a test")
    model, *_ = PROBLEMS[name]()
    wanted = right(name, decay)
    for spread in (0, 13):
        found = scores(name, units_of(model, spread), solver, dtype, decay).values[:, 0].double()
        assert (found - wanted).abs().max() <= LIMITS[dtype] * 10 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("solver", [cf.Exact(), cf.GMRES(max_steps=3000), cf.LowRank(1000)], ids=str)
def test_the_unit_of_a_parameter_changes_no_score_of_a_network_far_from_a_minimum(solver, dtype):
    model, *_ = PROBLEMS["network"]()
    wanted = right("network", 0.5)
    for spread in (0, 13):
        found = scores("network", units_of(model, spread), solver, dtype, 0.5).values[:, 0].double()
        assert (found - wanted).abs().max() <= LIMITS[dtype] * 10 * wanted.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("solver", POSITIVE, ids=str)
def test_the_unit_of_a_column_changes_no_score(solver, dtype):
    model, x, y = linear()
    wanted = right("linear", 0.0)
    unit = torch.logspace(-4, 4, x.shape[1], dtype=torch.float64)
    with torch.no_grad():
        model.weight /= unit
    columns, model = (x * unit).to(dtype), model.to(dtype)
    squares = lambda m, b: (m(b[0])[:, 0] - b[1]).square()  # noqa: E731
    risk = cf.Risk(model, squares, cf.batches(columns, y.to(dtype)))
    found = cf.influence(risk, lambda m: m(columns[:1])[0, 0], solver).values[:, 0].double()
    assert (found - wanted).abs().max() <= LIMITS[dtype] * 10 * wanted.abs().max()
