"""Horizon in segments: matrix exponentials written out, by every engine; and replay, as the learning rate falls."""

import copy

import grid
import pytest
import torch
from grid import normal
from quadratics import Shared, tilts
from reference import Dense
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._horizon.horizon import Horizon
from crossfluence._horizon.root_rows import root_rows
from crossfluence._training.optimizer_rule import ParameterRecord, Rule, digest_of
from crossfluence._training.record import TrainingRecord

PROBLEM = grid.SOFTMAX_ON_OUTPUTS
RULE = Rule("AdamW", eps=1e-8)
OPTIONS = {"adam": {}, "decay": {"decay": 0.2}, "sgd": {"sgd": True}, "still": {"still": 2}}
SOLVERS = {
    "written out": cf.Horizon(segments=3),
    "roots": cf.Horizon(roots=1_000, segments=3),
    "products": cf.Horizon(pilot=1_000, steps=200, segments=3),
}


def record_of(risk, count=3, *, rate=3.0, decay=0.0, sgd=False, still=None):
    """Any numbers, of the right shapes; the last segment ends where the training does."""
    segments = []
    for place in range(count):
        parts = []
        for seed, part in enumerate(risk.theta.values(), start=100 * place):
            away = 0.2 * (count - 1 - place) * normal(*part.shape, seed=seed)
            square, mean = normal(*part.shape, seed=seed + 1).square() + 0.1, 0.3 * normal(*part.shape, seed=seed + 2)
            mean = mean if place != still else square.sqrt() * (1 + (normal(*part.shape, seed=seed + 3) > 0))
            rate_of = rate * (1 + place)
            numbers = (None, None, 0.0) if sgd else (square, mean, decay * (1 + place))
            parts.append(ParameterRecord(digest_of(part), rate_of, *numbers, part.detach() + away))
        segments.append(tuple(parts))
    rule = Rule("SGD", momentum=0.5) if sgd else RULE
    return TrainingRecord(rule, segments[-1], 10, "made up", segments=tuple(segments))


def risk(**options):
    made = PROBLEM.risk(size=11)
    return made.with_record(record_of(made, **options))


def questions(model):
    z = model(normal(2, 3, seed=6))
    return {"one": z[0, 0], "other": z[1, 2] - z[1, 0]}


def reference(made, count=3):
    """Scores by exponentials of unsymmetric matrices, from a dense Gauss-Newton matrix at every point."""
    end, p, total = Dense(made.model, PROBLEM.loss, PROBLEM.tensors, PROBLEM.l2), made.p, 0
    carried = torch.stack([end.slope(lambda m, name=name: questions(m)[name]) for name in ("one", "other")])
    for theta, scaling, decay in made.record.earlier(made.theta, count):
        model = copy.deepcopy(made.model)
        nn.utils.vector_to_parameters(made.layout.flatten(theta), model.parameters())
        inner = cf.GaussNewton().product(
            cf.Risk(model, made.loss, made.data, l2=made.l2), torch.eye(p, dtype=torch.float64)
        )
        a, d = made.layout.flatten(scaling), made.layout.flatten(decay)
        wide = torch.zeros(2 * p, 2 * p, dtype=torch.float64)
        wide[:p, :p], wide[:p, p:] = -(a[:, None] * inner + torch.diag(d)), torch.eye(p, dtype=torch.float64)
        exponential = torch.linalg.matrix_exp(wide)  # its corner is the integral of exp(-Mt) from 0 to 1
        there = Dense(model, PROBLEM.loss, PROBLEM.tensors, PROBLEM.l2)
        total = total - carried @ exponential[:p, p:] @ (a[:, None] * there.K)
        carried = carried @ exponential[:p, :p]
    return total.T


@pytest.fixture
def exact(monkeypatch):
    """No rounding of solves, and roots that nothing is left to chance of."""
    monkeypatch.setattr("crossfluence._horizon.horizon.RTOL", 0.0)

    def drawn(self, risk, pace, count, seed):
        return torch.cat(list(root_rows(risk, pace, None, seed)))

    monkeypatch.setattr(Horizon, "_drawn", drawn)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("engine", SOLVERS)
def test_every_engine_is_the_dense_exponentials(engine, options, exact, monkeypatch):
    if engine == "roots":
        monkeypatch.setattr("crossfluence._horizon.horizon.DENSE", 0)
    made = risk(**OPTIONS[options])
    if options == "still":
        assert (made.layout.flatten(made.record.scaling(made.theta)) == 0).any()
    inverse = SOLVERS[engine].invert(made)
    assert engine.split(maxsplit=1)[0] in str(inverse.notes).lower()
    found, wanted = cf.influence(made, questions, inverse).values, reference(made)
    assert torch.allclose(found, wanted, rtol=1e-8, atol=1e-8 * float(wanted.abs().max()))


def test_one_segment_is_the_horizon_without_segments(exact):
    made = risk()
    whole = TrainingRecord(RULE, made.record.parts, 10, "made up")
    found = cf.influence(made, questions, cf.Horizon(segments=1))
    wanted = cf.influence(made.with_record(whole), questions, cf.Horizon())
    assert torch.equal(found.values, wanted.values)


def test_joined_segments_have_the_rates_of_all_and_the_state_of_the_last():
    made = risk()
    (*_, first), parts = made.record.earlier(made.theta, 2), made.record.segments
    theta, scaling, _ = first
    ((name, part), *_), joined = theta.items(), parts[1][0]
    assert torch.equal(part, joined.value)
    wanted = joined.rate + parts[0][0].rate
    assert torch.allclose(scaling[name], RULE.scaling(joined) * wanted / joined.rate)


@pytest.mark.parametrize("momentum", [0.0, 0.5])
def test_it_tends_to_replay_as_the_rate_falls(momentum):
    data, gaps = (normal(9, 4, seed=2), (torch.arange(9) == 8).double()), []
    ask = lambda model: {"first": model.at[0], "last": model.at[3]}  # noqa: E731
    for steps in (24, 48, 96):
        rate = 4 / steps * (1 - momentum)
        recipe = cf.Recipe(
            Shared(), tilts, data, optimizer=cf.SGD(rate, momentum), epochs=steps, l2=0.1, schedule=cf.linear
        )
        risk = recipe.risk(recipe.train(), record=recipe.record(segments=4))
        found = cf.influence(risk, ask, cf.Horizon(segments=4))
        wanted = cf.replay(recipe, ask, groups=0).values[:8]
        gaps.append(float((found.values[:8] - wanted).norm() / wanted.norm()))
    assert gaps[1] == pytest.approx(gaps[0] / 2, rel=0.25)
    assert gaps[2] == pytest.approx(gaps[1] / 2, rel=0.25)
    assert gaps[2] < 0.1


def test_segments_follow_a_training_that_moved():
    """Logistic regression, whose Gauss-Newton matrix is its Hessian, and not the same at the end as before."""
    x = 2 * normal(60, 3, seed=1)
    y = (x @ normal(3, 3, seed=2)).argmax(1)
    loss = lambda model, batch: F.cross_entropy(model(batch[0]), batch[1], reduction="none")  # noqa: E731
    recipe = cf.Recipe(grid.seeded(nn.Linear(3, 3)), loss, (x, y), optimizer=cf.SGD(0.2), epochs=100)
    ask = lambda model: model(normal(3, 3, seed=3)).square().sum()  # noqa: E731
    made, exact = recipe.risk(recipe.train(), record=recipe.record(segments=8)), cf.replay(recipe, ask, groups=0)
    gaps = []
    for count in (1, 2, 8):
        found = cf.influence(made, ask, cf.Horizon(segments=count))
        gaps.append(float((found.values - exact.values).norm() / exact.values.norm()))
    assert gaps[2] < 0.5 * gaps[1] < 0.5 * gaps[0]


def test_own_losses_and_candidates_and_saved_files(exact, tmp_path):
    made = risk()
    inverse = cf.Horizon(segments=3).invert(made)
    inverse.save(tmp_path / "inverse")
    again = cf.load_inverse(tmp_path / "inverse")
    found, wanted = (cf.influence(made, questions, each) for each in (again, inverse))
    assert torch.allclose(found.values, wanted.values, rtol=1e-12)
    assert found.report.notes == wanted.report.notes
    assert found.verdict.level == "sizes"
    added = cf.influence(made, questions, inverse, candidates=made.data)
    assert torch.allclose(added.values, found.values)
    own = cf.self_influence(made, inverse).values[:3, 0]
    each = cf.influence(made, lambda model: made.kind.losses(model, next(iter(made.data))), inverse).values
    assert torch.allclose(own, each.diagonal()[:3])


def test_what_segments_cannot_do_is_said():
    made = risk()
    with pytest.raises(errors.DataError, match=r"segments=4; the record keeps 3.*recipe.record\(segments=4\)"):
        cf.Horizon(segments=4).invert(made)
    with pytest.raises(errors.UnsupportedError, match=r"needs a record of the training that keeps its segments"):
        cf.Horizon(segments=2).invert(PROBLEM.risk())
    with pytest.raises(ValueError, match="segments=0"):
        cf.Horizon(segments=0)
    with pytest.raises(errors.UnsupportedError, match=r"Horizon\(.*segments=3.*\) has no one matrix.*leave out segm"):
        cf.Horizon(segments=3).invert(made).solve(torch.ones(1, made.p).double())
