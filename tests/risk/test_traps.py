"""Silently wrong numbers, wrong refusals and side effects that are easy to write again."""

import copy
from types import SimpleNamespace

import grid
import pytest
import torch
from grid import normal
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.params import fingerprint
from crossfluence._solvers.exact import dense as written_out

X, Y = normal(20, 4, seed=0), normal(20, 1, seed=1)
LINEAR = grid.seeded(nn.Linear(4, 1))


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def ask(model):
    return model(X[:1]).sum()


def risk(model=LINEAR, loss=squared, data=None, l2=0.1, **options):
    return cf.Risk(model, loss, data or cf.batches(X, Y), l2=l2, **options)


# What must be left alone.


def test_invert_and_solve_can_be_called_on_their_own():
    problem = grid.LANGUAGE
    inverse = cf.Exact(problem.damping).invert(problem.risk())
    assert torch.equal(cf.influence(problem.risk(), problem.ask, inverse).values,
                       cf.influence(problem.risk(), problem.ask, cf.Exact(problem.damping)).values)  # fmt: skip
    cf.GMRES(3.0, max_steps=3, rtol=1.0).invert(problem.risk()).solve(normal(1, problem.risk().p, seed=0))
    assert problem.risk().gradient.isfinite().all()


def test_gradients_of_a_risk_hold_no_graph():
    assert not grid.SEMI_SUPERVISED.risk(params="encoder.*").gradient.requires_grad


def test_a_data_loader_draws_nothing_from_the_global_generator():
    loader = DataLoader(TensorDataset(*grid.LOGISTIC.tensors), batch_size=16)
    _ = grid.LOGISTIC.model  # made on first use
    state = torch.random.get_rng_state()
    risk = cf.Risk(grid.LOGISTIC.model, grid.LOGISTIC.loss, loader, l2=grid.LOGISTIC.l2)
    assert torch.equal(torch.random.get_rng_state(), state)
    inverse = cf.Exact().invert(risk)
    assert torch.equal(torch.random.get_rng_state(), state)
    found = cf.influence(risk, grid.LOGISTIC.ask, inverse)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert torch.allclose(found.values, cf.influence(grid.LOGISTIC.risk(), grid.LOGISTIC.ask, cf.Exact()).values)


def test_a_layer_that_changes_its_buffers_is_refused_and_left_as_it_was():
    model = nn.Sequential(
        nn.Unflatten(1, (2, 2)), nn.InstanceNorm1d(2, track_running_stats=True), nn.Flatten(), nn.Linear(4, 1)
    ).double()
    before = fingerprint(model)
    with pytest.raises(errors.NondeterministicError, match=r"model\.eval\(\)"):
        risk(model)
    assert fingerprint(model) == before


# What must be refused.


def test_an_inverse_of_another_l2_or_data_or_loss_is_refused():
    inverse = cf.Exact().invert(risk())
    others = [risk(l2=9.0), risk(data=cf.batches(X[:10], Y[:10])), risk(params="weight"), risk().without(range(9))]
    others.append(risk(loss=lambda model, batch: 2 * squared(model, batch)))
    for other in others:
        with pytest.raises(errors.StaleError):
            cf.influence(other, ask, inverse)


def test_training_mode_switched_on_later_is_refused():
    model = nn.Sequential(nn.Linear(4, 8), nn.Dropout(), nn.Linear(8, 1)).double().eval()
    made = risk(model)
    model.train()
    with pytest.raises(cf.CrossfluenceError, match=r"model\.eval\(\)"):
        cf.influence(made, ask, cf.Exact(10.0))


def test_batch_norm_without_running_statistics_is_refused_also_in_eval_mode():
    with pytest.raises(errors.NondeterministicError):
        risk(nn.Sequential(nn.BatchNorm1d(4, track_running_stats=False), nn.Linear(4, 1)).double().eval())


def test_a_loss_that_is_zero_at_the_end_of_training_is_no_deaf_loss():
    loss = cf.WeightedLoss(lambda model, batch, w: w @ squared(model, batch))
    assert risk(loss=loss, data=cf.batches(X, LINEAR(X).detach())).n == 20
    surrogate = cf.FieldLoss(lambda model, still, batch, w: w @ (batch[1] * (model(batch[0]) - still(batch[0])))[:, 0])
    assert risk(loss=surrogate).n == 20


def test_shuffled_objects_are_refused_as_shuffled_tuples_are():
    class Shuffled:
        generator = torch.Generator().manual_seed(0)

        def __iter__(self):
            rows = torch.randperm(20, generator=self.generator)
            yield SimpleNamespace(x=X[rows], y=Y[rows])

    with pytest.raises(errors.DataError, match="batch 0 differs"):
        risk(loss=lambda model, batch: squared(model, (batch.x, batch.y)), data=Shuffled())


def test_data_changed_in_place_is_refused():
    x = X.clone()
    made = risk(data=cf.batches(x, Y))
    x.mul_(2)
    with pytest.raises(cf.CrossfluenceError):
        cf.influence(made, ask, cf.Exact())


def test_candidates_are_probed_as_data_is():
    questions = cf.each_of(cf.batches(normal(300, 4, seed=2)), lambda model, x: model(x)[:, 0])
    for unusable in ((batch for batch in [(X, Y)]), X, DataLoader(TensorDataset(X, Y), 8, shuffle=True)):
        with pytest.raises(errors.DataError, match=r"read only once|batches\(tensor|shuffle=False"):
            cf.influence(risk(), questions, cf.Exact(), candidates=unusable)


def test_a_second_derivative_of_nan_is_told():
    def kinked(model, batch):
        return squared(model, batch) + (0 * model.weight[0, 0]).abs().pow(1.5)

    for solver in (cf.Exact(0.1), cf.CG(0.1), cf.GMRES(0.1)):
        with pytest.raises(errors.NonFiniteError, match=r"second derivative"):
            cf.influence(risk(loss=kinked), ask, solver)


def test_a_question_that_is_nan_is_named_not_its_neighbour():
    with pytest.raises(errors.NonFiniteError, match="'bad'"):
        cf.influence(risk(), lambda m: {"good": m.bias.sum(), "bad": float("nan") * m.bias.sum()}, cf.Exact())


def test_two_objectives_of_one_name_are_refused():
    with pytest.raises(errors.ObjectiveError):
        cf.influence(risk(), lambda model: {1: model.weight.sum(), "1": model.bias.sum()}, cf.Exact())


# Tensors.


def test_a_fingerprint_reads_tensors_of_any_stride():
    model = copy.deepcopy(LINEAR)
    model.bias.data = torch.ones(5, 5, dtype=torch.float64)[:, 4][:1]
    model.weight.data = torch.ones(4, 5, dtype=torch.float64)[:, :1].T
    assert len(fingerprint(model)) == 32


# Solvers.


def test_gmres_takes_the_same_steps_in_any_unit():
    problem = grid.SEMI_SUPERVISED
    steps = [
        cf.influence(problem.risk(), lambda m, s=s: s * problem.objective(m), cf.GMRES(rtol=1e-9)).report.steps[0]
        for s in (1.0, 1e12, 1e16)
    ]
    assert max(steps) <= steps[0] + 1


def test_the_reported_residual_is_the_true_one(monkeypatch):
    monkeypatch.setattr(cf.Risk, "fine", property(lambda self: self))  # in the model's own single precision
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(50, 30, generator=generator) * torch.logspace(-3, 2, 30)
    x = x @ torch.linalg.qr(torch.randn(30, 30, generator=generator)).Q  # no single column is small
    made = cf.Risk(nn.Linear(30, 1), squared, cf.batches(x, torch.randn(50, 1, generator=generator)), l2=1e-4)
    vectors = torch.randn(2, 31, generator=generator)
    with pytest.warns(errors.NotConvergedWarning):
        solution = cf.CG(rtol=1e-5, max_steps=300).invert(made).solve(vectors)
    unit = written_out(cf.Hessian(), made).diagonal().rsqrt().float()
    left = (cf.Hessian().product(made, solution.vectors) - vectors) * unit
    shares = left.norm(dim=1) / (vectors * unit).norm(dim=1)
    assert torch.allclose(torch.tensor(solution.residuals), shares, rtol=0.5)


# Results.


def test_a_nan_does_not_take_a_place_among_the_top():
    assert cf.Scores(torch.tensor([[float("nan")], [1.0], [2.0]]), range(3), ("m",), "by hand").top(1) == [(2, 2.0)]


def test_group_labels_may_be_a_tensor():
    scores = cf.Scores(torch.ones(4, 1), range(4), ("m",), "by hand")
    assert scores.sum_by(torch.tensor([0, 0, 1, 1])).ids == (0, 1)


# Retraining.


def test_leave_out_refuses_ids_that_are_not_unique_and_answers_that_are_nan():
    def train(weights):
        return LINEAR

    with pytest.raises(errors.DataError):
        cf.leave_out(train, ask, [0], n=20, ids=[0] * 20)
    with pytest.raises(errors.NonFiniteError):
        cf.leave_out(train, lambda model: float("nan") * ask(model), [0], n=20)
