"""Auto at minima, and where training was stopped before one: both sides of every branch of its rule."""

import grid
import pytest
import torch
from grid import normal
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors
from crossfluence._default import auto
from crossfluence._default.standing import drift_left, gradient_left, sample_scale

UNRELIABLE = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
X = normal(60, 6, seed=1)
Y = (X @ normal(6, 3, seed=2) + normal(60, 3, seed=3)).argmax(1)


def squared(model, batch):
    return (model(batch[0]) - batch[1]).square().sum(1)


def entropy(model, batch):
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def softmax(epochs, l2=0.02):
    net = nn.Linear(6, 3, dtype=torch.float64)
    _ = nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)
    return cf.Recipe(net, entropy, (X, Y), optimizer=cf.SGD(1.0, 0.5), epochs=epochs, l2=l2)


def network(epochs, loss=entropy, width=8, **options):
    net = grid.seeded(nn.Sequential(nn.Linear(6, width), nn.Tanh(), nn.Linear(width, 3)), 4)
    kwargs = {"optimizer": cf.Adam(1e-2), "batch_size": 20, **options}
    return cf.Recipe(net, loss, (X, Y if loss is entropy else X[:, :3]), epochs=epochs, **kwargs)


def ask(model):
    z = model(normal(2, 6, seed=9))
    return {"one": z[0, 0] - z[0, 1], "other": z[1, 2]}


def chosen(scores):
    (note,) = [note for note in scores.report.notes if "Auto chose" in note]
    return note


# At a minimum.


def test_at_a_minimum_it_is_exact_and_says_sizes():
    recipe = softmax(600)
    risk = recipe.risk(recipe.train())
    scores = cf.influence(risk, ask)
    assert "Auto chose Exact" in chosen(scores)
    assert scores.verdict.level == "sizes"
    assert torch.equal(scores.values, cf.influence(risk, ask, cf.Exact()).values)
    assert gradient_left(risk) < 1e-3


def test_it_is_exact_there_with_a_record_too():
    recipe = softmax(600)
    risk = recipe.risk(recipe.train(), record=recipe.record())
    assert "Auto chose Exact" in chosen(cf.influence(risk, ask))


def test_a_minimum_of_many_parameters_is_solved_with_products(monkeypatch):
    monkeypatch.setattr(auto, "DENSE_PARAMETERS", 0)
    recipe = softmax(600)
    risk = recipe.risk(recipe.train())
    scores = cf.influence(risk, ask)
    assert "Auto chose CG" in chosen(scores)
    assert scores.verdict.level == "sizes"
    wanted = cf.influence(risk, ask, cf.Exact()).values
    assert torch.allclose(scores.values, wanted, rtol=1e-3, atol=1e-3 * float(wanted.abs().max()))


# Stopped before one.


@UNRELIABLE
@pytest.mark.parametrize("record", [True, False])
def test_a_network_that_was_stopped_is_answered_with_its_horizon(record):
    recipe = network(5)
    risk = recipe.risk(recipe.train(), record=recipe.record() if record else None)
    assert gradient_left(risk) > 1
    scores = cf.influence(risk, ask)
    assert "Auto chose Horizon: training was stopped before a minimum (it left a gradient" in chosen(scores)
    assert scores.verdict.level == ("sizes" if record else "order")
    assert torch.allclose(scores.values, cf.influence(risk, ask, cf.Horizon()).values, rtol=1e-9)
    damped = cf.influence(risk, ask, cf.Auto(0.5))
    assert torch.equal(damped.values, cf.influence(risk, ask, cf.Exact(0.5)).values)


def test_with_a_record_it_predicts_training_again():
    recipe = network(5)
    risk = recipe.risk(recipe.train(), record=recipe.record())
    groups = {f"g{k}": range(3 * k, 3 * k + 3) for k in range(20)}
    found = cf.influence(risk, ask).sum_by([f"g{i // 3}" for i in range(60)])
    agreement = cf.compare(found, cf.leave_out(recipe, ask, groups))
    assert agreement.pearson > 0.9
    assert 0.5 < agreement.slope < 2


def saddle(curvature):
    """A point without any gradient, where the loss falls along one direction."""

    class At(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.zeros(2, dtype=torch.float64))

        def forward(self, rows):
            return self.at + 0 * rows

    rows = torch.stack([normal(20, seed=1), normal(20, seed=2)], 1)
    rows = rows - rows.mean(0)

    def loss(model, batch):
        z = model(batch)
        return (torch.tensor([1.0, curvature]).double() * z.square() / 2 - z * batch).sum(1) + z[:, 1] ** 4

    return cf.Risk(At(), loss, cf.batches(rows))


@UNRELIABLE
def test_a_saddle_without_gradient_stays_where_it_is_and_is_exact():
    scores = cf.influence(saddle(-0.5), lambda model: model.at[1])
    assert "Auto chose Exact" in chosen(scores)
    assert scores.verdict.level == "order"  # nothing pushes it off, and a sample would


@UNRELIABLE
def test_negative_curvature_beside_a_small_gradient_is_no_minimum():
    made = saddle(-0.5)
    with torch.no_grad():
        made.model.at[1] += 0.01  # the gradient is a fifth of that of a sample over n
    moved = cf.Risk(made.model, made.loss, made.data)
    assert 0.001 < gradient_left(moved) < 1
    scores = cf.influence(moved, lambda model: model.at[1])
    assert "the smallest eigenvalue is -0.5" in chosen(scores)
    assert "Auto chose Horizon" in chosen(scores)
    upright = saddle(0.5)
    with torch.no_grad():
        upright.model.at[1] += 0.002
    assert "Auto chose Exact" in chosen(cf.influence(cf.Risk(upright.model, upright.loss, upright.data),
                                                    lambda model: model.at[1]))  # fmt: skip


def test_a_newton_step_that_moves_typical_questions_is_no_minimum():
    """Two directions: a steep one, and a flat one that training never reached."""
    rows = torch.stack([normal(30, seed=1), 0.1 * normal(30, seed=2)], 1)
    rows = rows - rows.mean(0)

    class At(nn.Module):
        def __init__(self):
            super().__init__()
            self.at = nn.Parameter(torch.tensor([0.0, 8.0]).double())

        def forward(self, batch):
            return self.at + 0 * batch

    def loss(model, batch):
        z = model(batch)
        return (torch.tensor([1.0, 1e-3]).double() * z.square() / 2 - z * batch).sum(1)

    risk = cf.Risk(At(), loss, cf.batches(rows))
    assert gradient_left(risk) < 1
    assert drift_left(risk, cf.Exact().invert(risk)) > 0.2
    assert "one more Newton step would move questions" in chosen(cf.influence(risk, lambda model: model.at[1]))


# Where the exact way is closed.


@UNRELIABLE
def test_a_singular_hessian_of_a_minimum_is_no_reason_to_refuse():
    """The scale of one layer against that of the next is left to nothing."""
    net = grid.seeded(nn.Sequential(nn.Linear(6, 4, bias=False), nn.Linear(4, 3, bias=False)), 4)
    recipe = cf.Recipe(
        net, squared, (X, X[:, :3] + X[:, 3:] + normal(60, 3, seed=5)), optimizer=cf.SGD(0.05, 0.9), epochs=3000
    )
    risk = recipe.risk(recipe.train())
    product = lambda model: (model[1].weight @ model[0].weight)[0, 0]  # noqa: E731
    alone = lambda model: model[0].weight[0, 0]  # noqa: E731
    with pytest.raises(errors.SingularCurvatureError):
        cf.influence(risk, alone, cf.Exact())
    scores = cf.influence(risk, alone)
    assert scores.values.isfinite().all()
    assert scores.verdict.level != "sizes"
    assert any("Horizon took over" in note for note in scores.report.notes)
    assert "Auto chose Exact" in chosen(cf.influence(risk, product))


@UNRELIABLE
def test_negative_curvature_that_a_question_meets_is_no_reason_to_refuse(monkeypatch):
    monkeypatch.setattr(auto, "DENSE_PARAMETERS", 0)
    scores = cf.influence(saddle(-0.5), lambda model: {"down": model.at[1], "both": model.at.sum()})
    assert scores.values.isfinite().all()
    assert any("negative curvature" in note and "Horizon took over" in note for note in scores.report.notes)
    assert scores.verdict.level == "order"


# Losses that are not split.


@UNRELIABLE
@pytest.mark.parametrize("problem", [grid.COX, grid.CONTRASTIVE], ids=str)
def test_a_coupled_loss_that_was_stopped_is_answered_with_its_hessian(problem):
    model = problem.build()
    risk = cf.Risk(model, problem.loss, cf.batches(*problem.tensors, size=10_000), l2=problem.l2)
    scores = cf.influence(risk, problem.objective)
    assert "Auto chose Horizon" in chosen(scores)
    assert "no loss for each sample alone" in chosen(scores)
    assert scores.verdict.level == "order"
    assert scores.values.isfinite().all()


@UNRELIABLE
def test_a_plain_loss_that_uses_the_parameters_is_answered_with_its_hessian():
    recipe = network(30, lambda m, b: squared(m, b) + 0.01 * sum(p.square().sum() for p in m.parameters()))
    model = recipe.train()
    for record in (None, recipe.record()):  # negative curvature counts as none, so no record makes sizes of it
        scores = cf.influence(recipe.risk(model, record=record), ask)
        assert "beside the model's outputs" in chosen(scores)
        assert scores.verdict.level == "order"


@UNRELIABLE
def test_a_field_that_was_stopped_is_solved_with_a_damping():
    problem = grid.DEC_MOVING
    model = problem.build()
    risk = cf.Risk(model, problem.loss, cf.batches(*problem.tensors, size=10_000), l2=problem.l2)
    scores = cf.influence(risk, problem.objective)
    assert "Auto chose Exact: training was stopped" in chosen(scores)
    assert scores.report.damping == pytest.approx(sample_scale(risk))
    assert scores.verdict.level != "sizes"


@UNRELIABLE
@pytest.mark.filterwarnings("ignore::crossfluence.errors.NotConvergedWarning")
def test_a_large_field_that_was_stopped_is_solved_within_the_budget(monkeypatch):
    monkeypatch.setattr(auto, "DENSE_PARAMETERS", 0)
    problem = grid.DEC_MOVING
    risk = cf.Risk(problem.build(), problem.loss, cf.batches(*problem.tensors, size=10_000), l2=problem.l2)
    scores = cf.influence(risk, problem.objective)
    assert "Auto chose GMRES" in chosen(scores)
    assert scores.report.steps <= (5,)


# Its own settings.


def test_samples_taken_out_are_no_reason_to_think_that_training_was_stopped():
    recipe = softmax(600)
    rest = recipe.risk(recipe.train()).without([0, 1, 2])
    solver, _ = cf.Auto().choose(rest)
    assert isinstance(solver, cf.Exact)


@pytest.mark.parametrize(("budget", "steps"), [(9, 2), (16, 4), (30, 10), (1e9, 20)])
def test_a_budget_bounds_the_products_of_a_question(budget, steps):
    recipe = network(3)
    solver, _ = cf.Auto(budget=budget).choose(recipe.risk(recipe.train()))
    assert isinstance(solver, cf.Horizon)
    assert solver.steps == steps


@pytest.mark.parametrize("budget", [0, -1, True, "30", None])
def test_a_budget_that_is_none_is_refused(budget):
    with pytest.raises(ValueError, match="Got budget="):
        cf.Auto(budget=budget)
