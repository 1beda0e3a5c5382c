"""Products of rounded gradients: within the tolerance, said in the report, and never where there is none."""

import pytest
import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence._kronecker import pairwise, rounding
from crossfluence._kronecker.gradients import OuterProducts

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")

N = 60
X, Y = normal(N, 12, 9, seed=1).float(), integers(4, N, 12, seed=2)
MODEL = seeded(nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 4))).float()


def loss(model, batch):
    return F.cross_entropy(model(batch[0]).mT, batch[1], reduction="none").sum(1)


def scores(solver, x=X, model=MODEL, monkeypatch=None):
    risk = cf.Risk(model, loss, cf.batches(x, Y, size=20))
    return cf.influence(risk, cf.each_of(cf.batches(x[:15], Y[:15], size=8), loss), solver), risk


@pytest.fixture
def faster(monkeypatch):
    monkeypatch.setattr(pairwise, "faster_type", lambda like: torch.bfloat16 if like.dtype == torch.float32 else None)


def said(found):
    return any("bfloat16" in note for note in found.report.notes)


def test_rounded_products_stay_far_within_the_tolerance(faster):
    (found, risk), (exact, plain) = scores(cf.EKFAC(0.1)), scores(cf.EKFAC(0.1, tolerance=0))
    gap = float((found.values - exact.values).norm() / exact.values.norm())
    assert said(found)
    assert not said(exact)
    assert 0 < gap < 0.05 / rounding.PART
    assert found.report.gradient_norm == pytest.approx(exact.report.gradient_norm, rel=1e-2)
    torch.testing.assert_close(risk.gradient, plain.gradient)  # not the rounded sum


def test_double_precision_is_not_rounded(faster):
    found, _ = scores(cf.EKFAC(0.1), X.double(), seeded(nn.Sequential(nn.Linear(9, 16), nn.Tanh(), nn.Linear(16, 4))))
    assert not said(found)


def test_rounding_that_would_move_the_scores_is_left_out(faster):
    tight = cf.EKFAC(0.1, tolerance=1e-3)
    (found, _), (exact, _) = scores(tight), scores(cf.EKFAC(0.1, tolerance=0))
    assert not said(found)
    torch.testing.assert_close(found.values, exact.values)


def test_layers_of_one_position_are_not_rounded(faster):
    x, y = X[:, 0], Y[:, 0]
    each = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")  # noqa: E731
    risk = cf.Risk(MODEL, each, cf.batches(x, y, size=20))
    assert not said(cf.influence(risk, cf.each_of(cf.batches(x[:9], y[:9]), each), cf.EKFAC(0.1)))


def test_a_norm_that_rounding_could_be_all_of_is_found_without_it(faster):
    flat = nn.Linear(1, 1, bias=False).float()
    nn.init.zeros_(flat.weight)
    x, y = torch.ones(N, 8, 1), torch.cat([torch.ones(N // 2, 8, 1), -torch.ones(N // 2, 8, 1)])
    square = lambda m, b: (m(b[0]) - b[1]).square().sum((1, 2))  # noqa: E731
    risk = cf.Risk(flat, square, cf.batches(x, y, size=20))
    found = cf.influence(risk, cf.each_of(cf.batches(x[:9], y[:9]), square), cf.EKFAC(0.1))
    assert found.report.gradient_norm == pytest.approx(float(risk.gradient.norm()), abs=1e-6)


def test_other_processors_keep_their_own_numbers(monkeypatch):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: False, raising=False)
    assert rounding.faster_type(torch.ones(2)) is None
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: True, raising=False)
    assert rounding.faster_type(torch.ones(2)) == torch.bfloat16
    assert rounding.faster_type(torch.ones(2).double()) is None


@pytest.mark.parametrize(
    ("positions", "sides"), [(2, (True, True)), (40, (True, True)), (40, (True, False)), (9, (False, True))]
)
def test_squares_along_bases_are_those_of_the_turned_gradients(positions, sides):
    outer = OuterProducts(normal(2, 5, positions, 4, seed=1), normal(2, 5, positions, 6, seed=2))
    left, right = (
        torch.linalg.qr(normal(2, d, d, seed=d))[0] if on else None for d, on in zip((4, 6), sides, strict=True)
    )
    wanted = outer.dense()
    wanted = wanted if left is None else left.mT.unsqueeze(1) @ wanted
    wanted = wanted if right is None else wanted @ right.unsqueeze(1)
    torch.testing.assert_close(outer.squares_along(left, right), wanted.square().sum(1))
