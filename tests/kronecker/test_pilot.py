"""EK-FAC of some samples, of some layers, and all pairs in one streamed pass."""

import classes
import pytest
import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.functional import isolated
from crossfluence._kronecker import pilot, streamed
from crossfluence._kronecker.factors import KroneckerFit
from crossfluence._kronecker.pilot import _mean, part_of

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")

N = 400
X, Y = normal(N, 5, 8, seed=1) * torch.linspace(0, 2, 8).exp(), integers(3, N, 5, seed=2)
MODEL = seeded(classes.Calls(
    lambda m, x: m["out"](m["norm"](m["hidden"](x).tanh() + m["rows"](x.tanh()))),
    hidden=nn.Linear(8, 12), rows=classes.Conv1D(12, 8), norm=classes.Root(12, 1.0), out=nn.Linear(12, 3),
), size=0.3)  # fmt: skip


def loss(model, batch):
    return F.cross_entropy(model(batch[0]).mT, batch[1], reduction="none").sum(1)


def risk_of(size=50, **settings):
    return cf.Risk(MODEL, loss, cf.batches(X, Y, size=size), **settings)


def asked(count=20, of=loss):
    return cf.each_of(cf.batches(X[:count], Y[:count], size=8), of)


def correlation(one, other):
    return float(torch.corrcoef(torch.stack([one.values.flatten(), other.values.flatten()]))[0, 1])


def test_a_pilot_agrees_with_the_fit_of_all_samples_and_says_what_it_read():
    risk = risk_of()
    exact = cf.influence(risk, asked(), cf.EKFAC(tolerance=0))
    found = [cf.influence(risk, asked(), cf.EKFAC(tolerance=0, pilot=size)) for size in (50, 200)]
    near, nearer = (correlation(each, exact) for each in found)
    assert near > 0.95
    assert nearer > max(near, 0.98)
    assert "eigenvectors of 200 random samples, eigenvalues of 50 others, 250 samples read" in found[1].report.notes[1]
    assert repr(cf.EKFAC(pilot=50)) == found[0].report.solver.replace("tolerance=0,", "tolerance=0.05,")


def test_auto_doubles_until_two_halves_agree(monkeypatch):
    monkeypatch.setattr(pilot, "ENOUGH", 0.9)
    risk = risk_of()
    exact = cf.influence(risk, asked(), cf.EKFAC(tolerance=0))
    found = cf.influence(risk, asked(), cf.EKFAC(tolerance=0, pilot="auto"))
    assert "The scores of a fit of half of them are estimated to correlate by 0.9" in found.report.notes[1]
    assert correlation(found, exact) > 0.97


def test_auto_fits_all_where_there_are_few():
    few = cf.Risk(MODEL, loss, cf.batches(X[:120], Y[:120], size=50))
    found, exact = (cf.EKFAC(pilot=size).invert(few) for size in ("auto", None))
    assert found.notes == exact.notes
    assert all(torch.equal(a.values, b.values) for a, b in zip(found.blocks, exact.blocks, strict=True))


def test_moments_of_parts_add_up_to_those_of_the_whole():
    risk = risk_of()
    with isolated():
        fit = KroneckerFit.of(risk, cf.EmpiricalFisher())
        whole = fit.moments()
        one, other = (
            KroneckerFit(part_of(risk, places), fit.curvature, fit.layers).moments()
            for places in torch.randperm(N, generator=torch.Generator().manual_seed(0)).split(N // 2)
        )
    for slot, parts in _mean(one, other, 0.5).items():
        for found, wanted in zip(parts, whole[slot], strict=True):
            torch.testing.assert_close(found, wanted)


def test_a_part_holds_the_chosen_samples_in_their_order():
    risk = cf.Risk(MODEL, loss, cf.batches(X, Y, size=50), ids=[f"s{i}" for i in range(N)])
    places = torch.tensor([399, 3, 120, 7])
    part = part_of(risk, places)
    assert part.labels == ("s3", "s7", "s120", "s399")
    assert torch.equal(torch.cat([batch[0] for batch in part.data]), X[[3, 7, 120, 399]])
    assert len(part.reading.sizes) == 1


@pytest.mark.parametrize("size", [1, 0, "some", True, 2.5])
def test_a_pilot_is_a_number_auto_or_none(size):
    with pytest.raises(ValueError, match=r'needed a number of samples, at least 2, "auto" or None'):
        cf.EKFAC(pilot=size)


def test_chosen_layers_score_as_if_the_others_were_fixed():
    names = ["parts.out.weight", "parts.out.bias"]
    found = cf.influence(risk_of(), asked(), cf.EKFAC(0.1, tolerance=0, layers="parts.out"))
    wanted = cf.influence(risk_of(params=names), asked(), cf.EKFAC(0.1, tolerance=0))
    torch.testing.assert_close(found.values, wanted.values)
    assert "Only layers='parts.out'" in found.report.notes[1]
    one = cf.influence(risk_of(), lambda m: loss(m, (X[:20], Y[:20])), cf.EKFAC(0.1, layers=names))
    torch.testing.assert_close(one.values, wanted.values)
    with pytest.raises(errors.ParameterError, match="names none of the layers' parameters"):
        cf.EKFAC(layers="head").invert(risk_of())


@pytest.mark.parametrize("l2", [0.0, 0.3])
@pytest.mark.parametrize(
    "name", ["transformer", "matrices of positions", "any norm", "experts", "shared places", "recurrent"]
)
def test_identity_scores_all_pairs_as_one_after_another(name, l2):
    from tests.kronecker.test_ekfac import INSIDE, curve

    model, x = INSIDE[name]
    model = seeded(model)
    risk = cf.Risk(model, curve, cf.batches(x, size=4), l2=l2)
    ask = lambda m, b: curve(m, b).square()  # noqa: E731
    pairs = cf.influence(risk, cf.each_of(cf.batches(x, size=4), ask), cf.Identity())
    plain = cf.Risk(model, curve, cf.batches(x, size=4), l2=l2)
    wanted = cf.influence(plain, lambda m: ask(m, x), cf.Identity())
    torch.testing.assert_close(pairs.values, wanted.values)
    torch.testing.assert_close(risk.gradient, plain.gradient)
    assert pairs.report.drift == pytest.approx(wanted.report.drift)
    assert pairs.report.gradient_norm == pytest.approx(wanted.report.gradient_norm)


@pytest.mark.parametrize("solver", [cf.Identity(), cf.EKFAC(0.1)], ids=str)
def test_many_questions_take_one_run_of_the_samples(solver):
    risk = risk_of()
    inverse = solver.invert(risk)
    read = []
    counted = MODEL.register_forward_hook(lambda m, args, out: read.append(len(args[0])))
    found = cf.influence(risk, asked(64), inverse)
    counted.remove()
    assert found.values.shape == (N, 64)
    assert sum(read) <= N + 3 * 64 + 4 * 50 + 5 * N  # samples, questions, looks at a few batches, a search for kinks


def test_weights_of_samples_count_in_gradient_and_drift():
    risk = risk_of().without(range(0, N, 3))
    found = cf.influence(risk, asked(), cf.Identity())
    wanted = cf.influence(risk_of().without(range(0, N, 3)), lambda m: loss(m, (X[:20], Y[:20])), cf.Identity())
    torch.testing.assert_close(found.values, wanted.values)
    assert found.report.drift == pytest.approx(wanted.report.drift)
    assert found.report.gradient_norm == pytest.approx(wanted.report.gradient_norm)


def test_a_model_that_refuses_constants_is_scored_in_the_plain_way(monkeypatch):
    exact = cf.influence(risk_of(), asked(), cf.EKFAC(0.1, tolerance=0))
    monkeypatch.setattr(streamed.StreamedPass, "_forward", lambda *_: 1 / 0)
    torch.testing.assert_close(cf.influence(risk_of(), asked(), cf.EKFAC(0.1, tolerance=0)).values, exact.values)


def test_one_question_after_a_fit_takes_one_run_of_the_samples_and_gives_the_gradient():
    risk, plain = risk_of(l2=0.01), risk_of(l2=0.01)
    inverse, few = cf.EKFAC(0.1).invert(risk), (X[:20], Y[:20])
    ask = lambda m: torch.stack([loss(m, few).sum(), m.parts["out"].weight.square().sum()])  # noqa: E731
    rows = [
        torch.autograd.grad(value, list(MODEL.parameters()), retain_graph=True, allow_unused=True)
        for value in ask(MODEL)
    ]
    wanted = [
        {
            n: g if g is not None else torch.zeros_like(p)
            for (n, p), g in zip(MODEL.named_parameters(), row, strict=True)
        }
        for row in rows
    ]
    u = inverse.solve(torch.stack([risk.layout.flatten(row) for row in wanted]))
    read = []
    counted = MODEL.register_forward_hook(lambda m, args, out: read.append(len(args[0])))
    found = cf.influence(risk, ask, inverse)
    counted.remove()
    assert sum(read) <= N + 2 * 8 + 8 * 20 + 5 * 64 + 5 * 50 + 2 * N  # at last with smaller weights: of so few, all
    torch.testing.assert_close(-found.values, plain.derivatives_along(u.vectors))
    torch.testing.assert_close(risk.gradient, plain.gradient)
    assert any("layer by layer" in note for note in found.report.notes)
