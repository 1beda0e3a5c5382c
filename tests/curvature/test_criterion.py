"""Classifiers that are sure of their samples: rounding is judged by the terms that cancel, and precision is named."""

import re

import pytest
import torch
from grid import integers, normal
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._curvature.output_gradients import square_root
from crossfluence._risk.criterion import CriterionCurvature, of_batch

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # random weights

Y = integers(4, 6, seed=1)
SINGLE = torch.tensor([1.0, 2.0, 0.5, 3.0])  # a criterion that holds single precision


def sure(gap, dtype, *shape):
    """Logits whose class leads by a gap."""
    z = normal(6, 4, *shape, seed=2)
    index = Y.reshape(6, 1, *[1] * len(shape)).expand(6, 1, *shape)
    return z.scatter_add(1, index, torch.full_like(z, gap)).to(dtype)


def without_cancelling(z):
    """diag p - p p^T, its diagonal as a sum of the others."""
    p = z.double().softmax(1)
    beside = -p.unsqueeze(2) * p.unsqueeze(1) * (1 - torch.eye(4).double())
    return beside - torch.diag_embed(beside.sum(2))


def squared(criterion, z):
    """S S^T of every sample, all outputs in a row."""
    root, count = square_root(criterion, z), z[0].numel()
    units = torch.eye(count, dtype=z.dtype).reshape(count, 1, *z.shape[1:])
    columns = torch.stack([root(unit.expand_as(z)).reshape(len(z), count) for unit in units], 2).double()
    return columns @ columns.mT


def near(found, wanted, share):
    """Sample by sample, each beside its own size."""
    assert ((found - wanted).flatten(1).norm(dim=1) <= share * wanted.flatten(1).norm(dim=1)).all()


ENTROPIES = {
    "plain": (lambda z: F.cross_entropy(z, Y, reduction="none"), 1.0),
    "smoothed": (lambda z: F.cross_entropy(z, Y, label_smoothing=0.1, reduction="none"), 1.0),
    "soft labels in single precision": (lambda z: F.cross_entropy(z, F.one_hot(Y, 4).float(), reduction="none"), 1.0),
    "by hand": (lambda z: z.logsumexp(1) - z.gather(1, Y.unsqueeze(1))[:, 0], 1.0),
    "cold": (lambda z: F.cross_entropy(2 * (z / 2), Y, reduction="none") * 2, 2.0),
    "one ignored": (lambda z: F.cross_entropy(z, Y.clone().index_fill_(0, torch.tensor([2]), -100), reduction="none"),
                    (torch.arange(6) != 2).double()),
}  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("gap", [1.0, 14.0, 27.0, 80.0])
@pytest.mark.parametrize("name", ENTROPIES)
def test_square_roots_of_confident_entropies_are_right(name, gap, dtype):
    criterion, scale = ENTROPIES[name]
    z = sure(gap, dtype)
    wanted = torch.as_tensor(scale).double().reshape(-1, 1, 1) * without_cancelling(z)
    near(squared(criterion, z), wanted, 1e-9 if dtype == torch.float64 else 1e-5)


@pytest.mark.parametrize("gap", [1.0, 14.0, 27.0])
def test_class_weights_in_single_precision_do_not_make_it_concave(gap):
    z = sure(gap, torch.float32)
    found = squared(lambda z: F.cross_entropy(z, Y, weight=SINGLE, reduction="none"), z)
    near(found, SINGLE[Y].double().reshape(-1, 1, 1) * without_cancelling(z), 1e-4)


@pytest.mark.parametrize("gap", [1.0, 27.0, 60.0])
def test_a_tempered_softmax_is_factorised_without_differences(gap):
    z = sure(gap, torch.float64)
    near(squared(lambda z: F.cross_entropy(z / 0.5, Y, reduction="none"), z / 2), 4 * without_cancelling(z), 1e-9)


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_positions_are_confident_one_by_one(temperature):
    z = sure(20.0, torch.float64, 3)
    tokens = Y.unsqueeze(1).expand(6, 3)
    found = squared(lambda z: F.cross_entropy(z / temperature, tokens, reduction="none").sum(1), z)
    for t in range(3):
        own = torch.arange(4) * 3 + t
        near(found[:, own][:, :, own], without_cancelling(z[:, :, t] / temperature) / temperature**2, 1e-9)
        beside = torch.arange(12)[torch.arange(12) % 3 != t]
        assert found[:, own][:, :, beside].abs().max() < 1e-12 * found.abs().max()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("size", [5.0, 20.0, 27.0])
def test_logistic_and_poisson_criteria_are_right_far_out(size, dtype):
    z = torch.tensor([size, -size, size / 2, -size / 3], dtype=dtype)
    ones, e = torch.ones_like(z), (-z.double().abs()).exp()
    labels = torch.tensor([1.0, 0.0, 1.0, 1.0])
    logistic = square_root(lambda z: F.binary_cross_entropy_with_logits(z, labels.to(z), reduction="none"), z)
    assert (logistic(ones).double().square() / (e / (1 + e) ** 2) - 1).abs().max() < 1e-4
    poisson = square_root(lambda z: F.poisson_nll_loss(z, labels.to(z), reduction="none"), z)
    assert (poisson(ones).double().square() / z.double().exp() - 1).abs().max() < 1e-5


@pytest.mark.parametrize("logit", [2.0, 10.0, 20.0])
def test_a_focal_loss_is_right_where_it_is_convex(logit):
    z = torch.tensor([logit]).double()
    root = square_root(lambda z: (-z).sigmoid() ** 2 * F.softplus(-z), z)
    slope = lambda z: -((-z).sigmoid() ** 2) * (2 * z.sigmoid() * F.softplus(-z) + (-z).sigmoid())  # noqa: E731
    step = 1e-4
    difference = (slope(z + step) - slope(z - step)) / (2 * step)  # of the derivative by hand
    assert (root(torch.ones_like(z)).square() / difference - 1).abs().max() < 1e-6


def entropy(gap):
    """A linear classifier of clusters, ever more certain."""
    y = integers(4, 40, seed=3)
    x = torch.eye(4, 6).double()[y] * 3 + 0.3 * normal(40, 6, seed=4)
    weight = gap / 3 * torch.eye(4, 6).double()
    return x, y, weight


LOSS = cf.OnOutputs(lambda m, b: m(b[0]), lambda z, b: F.cross_entropy(z, b[1], reduction="none"))


def risk(gap, dtype):
    x, y, weight = entropy(gap)
    model = nn.Linear(6, 4, bias=False, dtype=dtype)
    model.weight.data = weight.to(dtype)
    return cf.Risk(model, LOSS, cf.batches(x.to(dtype), y, size=15), l2=1e-16)


def difference(model):
    x = entropy(1.0)[0][:1].to(model.weight.dtype)
    return (lambda z: z[0, 1] - z[0, 0])(model(x))


def dense_scores(gap, damping):
    """By the closed form, without a difference of large terms."""
    x, y, weight = entropy(gap)
    z = x @ weight.T
    curvature = torch.einsum("nij,na,nb->iajb", without_cancelling(z), x, x).reshape(24, 24) / len(x)
    curvature += 1e-16 * torch.eye(24).double()
    curvature += damping * curvature.trace() / 24 * torch.eye(24).double()
    p = z.softmax(1).scatter(1, y.unsqueeze(1), 0)
    gradient = (p.scatter(1, y.unsqueeze(1), -p.sum(1, keepdim=True)).unsqueeze(2) * x.unsqueeze(1)).flatten(1)
    asked = torch.zeros(4, 6).double()
    asked[0], asked[1] = -x[0], x[0]
    return -gradient @ torch.linalg.solve(curvature, asked.flatten()) / len(x)


WHOLE = cf.BlockDiagonal(cf.Relative(0.1), cf.Fisher(samples=None))
SOLVERS = [WHOLE, cf.Exact(cf.Relative(0.1), curvature=cf.GaussNewton())]


@pytest.mark.parametrize("gap", [3.0, 12.0, 27.0])
@pytest.mark.parametrize("solver", SOLVERS, ids=lambda s: type(s).__name__)
def test_scores_of_a_confident_classifier_are_those_of_the_closed_form(solver, gap):
    found, wanted = cf.influence(risk(gap, torch.float64), difference, solver).values[:, 0], dense_scores(gap, 0.1)
    assert (found - wanted).abs().max() <= 1e-3 * wanted.abs().max()


@pytest.mark.parametrize("solver", [*SOLVERS, cf.EKFAC()], ids=str)
def test_single_precision_is_near_or_names_itself(solver):
    for gap, share in ((3.0, 1e-4), (9.0, 1e-2)):
        single, double = (
            cf.influence(risk(gap, dtype), difference, solver).values for dtype in (torch.float32, torch.float64)
        )
        assert (single - double).abs().max() <= share * double.abs().max()
    wanted = cf.influence(risk(27.0, torch.float64), difference, solver).values
    try:
        found, refused = cf.influence(risk(27.0, torch.float32), difference, solver).values, ""
    except errors.SolveError as error:
        found, refused = wanted, str(error)
    # a small problem is computed in double precision
    assert not refused or re.search(r"sure of its training samples.*\(float32\).*Use float64", refused)
    assert (found - wanted).abs().max() <= 1e-2 * wanted.abs().max()


def test_a_criterion_lost_in_double_precision_is_refused_too():
    with pytest.raises(errors.SolveError, match=r"\(float64\) loses.*nothing cancels"):
        cf.influence(risk(60.0, torch.float64), difference, WHOLE)


class Saved(torch.autograd.Function):
    """A cross-entropy that works its derivative out in advance."""

    @staticmethod
    def forward(ctx, z, y):
        ctx.save_for_backward(z.softmax(1) - F.one_hot(y, z.shape[1]))
        return F.cross_entropy(z, y, reduction="none")

    @staticmethod
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g.unsqueeze(1), None


class Once(Saved):
    """The same, and says so."""

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, g):
        return ctx.saved_tensors[0] * g.unsqueeze(1), None


@pytest.mark.parametrize("function", [Saved, Once])
def test_a_criterion_without_a_second_derivative_is_refused(function):
    with pytest.raises(errors.UnsupportedError, match=r"no second derivative.*EmpiricalFisher"):
        square_root(lambda z: function.apply(z, Y), normal(6, 4, seed=5))


def test_a_criterion_flat_in_the_outputs_is_one_sentence():
    hinge = cf.OnOutputs(lambda m, b: m(b)[:, 0], lambda z, b: (1 - z).clamp_min(0))
    flat = cf.Risk(nn.Linear(3, 1).double(), hinge, cf.batches(normal(9, 3, seed=6)))
    with pytest.raises(errors.SolveError, match=r"zero at every parameter.*hinge.*EKFAC\(damping="):
        cf.EKFAC().invert(flat)


def test_a_batch_follows_the_outputs_into_double_precision():
    soft = torch.full((2, 3), 1 / 3)
    criterion = of_batch(
        lambda z, b: F.cross_entropy(z, b["soft"], reduction="none"), {"soft": soft, "id": torch.ones(2)}
    )
    assert CriterionCurvature.of(criterion, torch.zeros(2, 3)).z.dtype == torch.float64
