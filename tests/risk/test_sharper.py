"""Questions of single-precision models: small ones in double precision, as they are solved, others from outputs on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence._autodiff import precision
from crossfluence._autodiff.precision import in_double_after
from crossfluence._risk import double

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # nothing was trained

SOLVERS = {
    "Exact": cf.Exact(),
    "CG": cf.CG(rtol=1e-9),
    "GMRES": cf.GMRES(rtol=1e-9),
    "LowRank": cf.LowRank(9),
    "Auto": cf.Auto(0.0),  # with a damping it asks for this curvature, wherever training ended
}


def confident():
    """A classifier that is sure of the sample that is asked about, 1 - p about 1e-9, and wrong about two others."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(12, 3, generator=generator)
    model = nn.Linear(3, 3, bias=False)
    with torch.no_grad():
        model.weight.copy_(torch.randn(3, 3, generator=generator))
        x[0] *= 20.0 / (model(x[:1]).max() - model(x[:1]).topk(2).values[0, 1])
    y = model(x).argmax(1)
    y[5:7] = (y[5:7] + 1) % 3
    return model, x, y


def loss(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def dense(model, x, y, question, l2):
    """Scores by the formula, everything written out in double precision."""
    wide, x = copy.deepcopy(model).double(), x.double()
    (weight,) = wide.parameters()

    def of(function, at):
        return function(lambda z: z @ at.view_as(weight).T)

    flat = weight.detach().reshape(-1)
    losses = lambda at: of(lambda call: F.cross_entropy(call(x), y, reduction="none"), at)  # noqa: E731
    H = torch.autograd.functional.hessian(lambda at: losses(at).mean(), flat) + l2 * torch.eye(9).double()
    K = torch.autograd.functional.jacobian(losses, flat)
    a = torch.autograd.functional.jacobian(lambda at: of(question, at), flat).reshape(1, -1)
    return -K @ torch.linalg.solve(H, a.T) / len(x)


def questions(x, y):
    def plain(model):
        return F.cross_entropy(model(x[:1]), y[:1])

    return {
        "mean": cf.mean_over(cf.batches(x[:1], y[:1]), loss),
        "each": cf.each_of(cf.batches(x[:1], y[:1]), loss),
        "plain": plain,
    }


@pytest.mark.parametrize("solver", list(SOLVERS))
@pytest.mark.parametrize("kind", ["mean", "each", "plain"])
def test_the_loss_of_a_sample_that_the_model_is_sure_of(solver, kind):
    model, x, y = confident()
    right = dense(model, x, y, lambda call: F.cross_entropy(call(x[:1].double()), y[:1]), 0.1)
    found = cf.influence(cf.Risk(model, loss, cf.batches(x, y), l2=0.1), questions(x, y)[kind], SOLVERS[solver])
    assert found.values.dtype == torch.float32
    assert float((found.values.double() - right).abs().max() / right.abs().max()) < 1e-3


def test_a_loss_that_refers_to_single_precision_is_computed_in_double():
    model, x, y = confident()
    share = torch.tensor([0.2, 1.0, 3.0])

    def weighed(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], weight=share, reduction="none")

    risk = cf.Risk(model, weighed, cf.batches(x, y), l2=0.1)
    assert risk.fine.weights.dtype == torch.float64
    assert float(risk.fine.total(risk.fine.theta, risk.fine.theta, (x, y), risk.fine.weights)) == pytest.approx(
        float(F.cross_entropy(x.double() @ model.weight.double().T, y, weight=share.double(), reduction="sum").detach())
    )


def test_a_question_that_draws_other_numbers_in_double_precision_keeps_its_own():
    model, x, y = confident()

    def noisy(model):
        generator = torch.Generator().manual_seed(3)
        z = model(x)
        return (z * torch.randn(z.shape, generator=generator, dtype=z.dtype)).sum()

    other = float(
        (x @ model.weight.T)
        .double()
        .mul(torch.randn(12, 3, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
        .sum()
        .detach()
    )
    assert abs(other - float(noisy(model).detach())) > 1
    found = cf.influence(cf.Risk(model, loss, cf.batches(x, y), l2=0.1), noisy, cf.Exact())
    assert found.report.values[0] == pytest.approx(float(noisy(model).detach()), rel=1e-5)


def test_a_question_that_fills_a_tensor_is_answered_in_double_precision():
    model, x, y = confident()

    def filled(model):
        out = torch.zeros(2)
        out[0] = F.cross_entropy(model(x[:1]), y[:1])
        out[1] += model(x[1:2])[0, 0]
        return out

    found = cf.influence(cf.Risk(model, loss, cf.batches(x, y), l2=0.1), filled, cf.Exact())
    right = dense(model, x, y, lambda call: F.cross_entropy(call(x[:1].double()), y[:1]), 0.1)[:, 0]
    assert float((found.values[:, 0].double() - right).abs().max() / right.abs().max()) < 1e-3


# From the outputs on, for models of any size and solvers in single precision.


def network():
    """A network that is sure of the first of 40 samples, with a loss of about 1e-8."""
    generator = torch.Generator().manual_seed(1)
    net = nn.Sequential(nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 4))
    with torch.no_grad():
        for part in net.parameters():
            part.copy_(torch.randn(part.shape, generator=generator) * 0.6)
        x = torch.randn(40, 8, generator=generator)
        gaps = net(x).topk(2).values.diff(dim=1)[:, 0]
        x = x[gaps.argsort()]  # the surest first
        _ = [part.mul_(18 / -gaps.min()) for part in net[2].parameters()]
        y = net(x).argmax(1)
        y[1:20] = (y[1:20] + 1) % 4
    return net, x, y


GAUSS_NEWTON = cf.CG(0.1, rtol=1e-7, curvature=cf.GaussNewton())


def wider(model, x):
    return copy.deepcopy(model).double(), x.double()


@pytest.mark.parametrize(
    "solver", [cf.EKFAC(0.1), cf.Identity(), cf.KFAC(0.1), GAUSS_NEWTON], ids=["EKFAC", "Identity", "KFAC", "CG"]
)
@pytest.mark.parametrize("kind", ["mean", "each", "plain"])
def test_the_loss_of_a_sample_that_a_large_model_is_sure_of(solver, kind, monkeypatch):
    monkeypatch.setattr(double, "DENSE_PARAMETERS", 0)
    found, right = (
        cf.influence(cf.Risk(net, loss, cf.batches(x, y), l2=0.1), questions(x, y)[kind], solver).values.double()
        for net, x, y in [network(), (*wider(*network()[:2]), network()[2])]
    )
    assert float((found - right).norm() / right.norm()) < 1e-3


def test_modules_compute_as_ever_and_what_is_made_of_their_outputs_is_double():
    seen = []

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = nn.Linear(2, 2)

        def forward(self, x):
            seen.extend([x.dtype, (x + 1).dtype])
            return self.inner(x)

        def apart(self, x):
            return self.inner(x * 2) + 1

    model, x = Watched(), torch.ones(3, 2)

    def ask(model):
        z = model(x / 3)  # made in double, given in single precision
        seen.append((z * 1).dtype)
        seen.append(model.apart(x).dtype)
        return z.sum()

    value = in_double_after(ask)(model)
    assert seen == [torch.float32, torch.float32, torch.float64, torch.float64]
    assert value.dtype == torch.float64
    assert float(value.detach()) == pytest.approx(float(ask(model).detach()), rel=1e-6)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())


def test_tensors_that_are_too_large_stay_as_they_are(monkeypatch):
    monkeypatch.setattr(precision, "LARGE", 5)
    kinds = in_double_after(lambda model: [(model(x) * 1).dtype for x in (torch.ones(5), torch.ones(6))])(nn.Identity())
    assert kinds == [torch.float64, torch.float32]


def test_a_question_that_fails_in_mixed_precision_keeps_its_own():
    net, x, y = network()

    def strict(model):
        z = model(x)
        if (z * 1).dtype != torch.float32:
            raise TypeError("single precision only")
        return z.sum()

    risk = cf.Risk(net, loss, cf.batches(x, y), l2=0.1)
    right = cf.influence(risk, lambda model: model(x).sum(), cf.EKFAC(0.1)).values
    torch.testing.assert_close(cf.influence(risk, strict, cf.EKFAC(0.1)).values, right)
