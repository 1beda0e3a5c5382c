"""A training in segments: against matrix exponentials written out, and against replay and influence where they meet."""

from functools import partial

import grid
import pytest
import torch
from grid import normal
from reference import Dense, ekfac_matrix, segmented
from torch import nn
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import errors

replay, source = (partial(verb, groups=0) for verb in (cf.replay, cf.source))  # no trainings to test the answers
PROBLEMS = pytest.mark.parametrize(
    "problem",
    [grid.LOGISTIC, grid.SOFTMAX_ON_OUTPUTS, grid.AUTOENCODER, grid.SKIP_GRAM, grid.CONTRASTIVE, grid.COX],
    ids=lambda problem: problem.name,
)


def recipe(problem, **changes):
    data = problem.tensors[0] if len(problem.tensors) == 1 else problem.tensors
    options = {"optimizer": cf.SGD(0.05), "epochs": 12, "l2": problem.l2, **changes}
    return cf.Recipe(problem.build(), problem.loss, data, **options)


def after(problem, steps, **changes):
    """The mathematics after some full steps."""
    model = recipe(problem, **changes, epochs=steps).train() if steps else problem.build()
    return Dense(model, problem.loss, problem.tensors, problem.l2)


def close(found, wanted, share=1e-9):
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() <= share * wanted.abs().max()


# As the formula says.


@pytest.mark.parametrize(("optimizer", "lasting"), [(cf.SGD(0.05), 1), (cf.SGD(0.004, momentum=0.9), 10)], ids=repr)
@PROBLEMS
def test_it_is_the_matrix_exponentials_of_three_points(problem, optimizer, lasting):
    points = [(after(problem, k, optimizer=optimizer), 4 * optimizer.lr * lasting) for k in (2, 6, 10)]
    end = after(problem, 12, optimizer=optimizer)
    wanted = [segmented(points, end, objective) for objective in problem.objectives.values()]
    found = source(recipe(problem, optimizer=optimizer), problem.ask, segments=3, rtol=1e-12)
    close(found.values, torch.stack(wanted, dim=1))


def test_adam_moves_each_parameter_at_its_own_pace():
    problem, adam = grid.SOFTMAX_ON_OUTPUTS, cf.Adam(0.02, eps=1e-3)
    square, points = 0, []
    for count in range(1, 13):
        dense = after(problem, count - 1, optimizer=adam)
        square = 0.999 * square + 0.001 * dense.field(dense.theta, dense.ones).square()
        if count in (3, 7, 11):
            points.append((dense, 4 * 0.02 / ((square / (1 - 0.999**count)).sqrt() + 1e-3)))
    wanted = segmented(points, after(problem, 12, optimizer=adam), problem.objective)
    found = source(recipe(problem, optimizer=adam), problem.objective, segments=3, rtol=1e-12)
    close(found.values[:, 0], wanted)


def test_weight_decay_clipping_and_gauss_newton_are_in_the_exponentials():
    """Two points of six steps, followed by hand."""
    problem, rule = grid.SOFTMAX_ON_OUTPUTS, cf.AdamW(0.02, eps=1e-3, weight_decay=3.0)
    options = {"optimizer": rule, "epochs": 12, "clipping": 0.2, "schedule": cf.linear}
    made = recipe(problem, **options)
    course = made.course()
    point, states, factors = course.start(course.theta), [], []
    for step in range(12):
        gradient, factor = course.gradient(point, step, *course.part(step, made.ones))
        after = course.stepped(point, step, gradient)
        states.append((point.theta, after.state["square"]))
        factors.append(float(factor))
        point = after
    assert min(factors) < 0.9
    rates = torch.tensor([0.02 * (1 - step / 12) for step in range(12)]).double()
    end = Dense(made.holding(point.theta), problem.loss, problem.tensors, problem.l2)
    carried, total = end.slope(problem.objective), 0
    for middle, steps in ((9, slice(6, 12)), (3, slice(0, 6))):
        theta, square = states[middle]
        flat = torch.cat([part.flatten() for part in square.values()])
        there = Dense(made.holding(theta), problem.loss, problem.tensors, problem.l2)
        a = (rates * torch.tensor(factors).double())[steps].sum() / ((flat / (1 - 0.999 ** (middle + 1))).sqrt() + 1e-3)
        inner = cf.GaussNewton().product(made.risk(made.holding(theta)), torch.eye(len(a)).double())
        moved = a[:, None] * inner + 3.0 * rates[steps].sum() * torch.eye(len(a)).double()
        p = len(a)
        wide = torch.zeros(2 * p, 2 * p).double()
        wide[:p, :p], wide[:p, p:] = -moved, torch.eye(p).double()
        exponential = torch.linalg.matrix_exp(wide)
        total = total - carried @ exponential[:p, p:] @ (a[:, None] * there.K)
        carried = carried @ exponential[:p, :p]
    found = source(made, problem.objective, segments=2, rtol=1e-12, curvature=cf.GaussNewton())
    close(found.values[:, 0], total, 1e-8)


def test_adamw_with_decay_and_clipping_predicts_replay_and_training_again():
    x, y = normal(120, 4, seed=5), grid.integers(3, 120, seed=6)
    net = grid.seeded(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 3)))

    def loss(model, batch):
        return F.cross_entropy(model(batch[0]), batch[1], reduction="none")

    made = cf.Recipe(
        net, loss, (x, y), optimizer=cf.AdamW(0.02, eps_root=1e-6, weight_decay=2.0), epochs=8, batch_size=10,
        clipping=0.5, schedule=cf.linear,
    )  # fmt: skip
    ask = lambda m: loss(m, (x[:10].roll(1, 0), y[:10]))  # noqa: E731
    exact, truth = replay(made, ask), cf.leave_out(made, ask, range(0, 120, 10))
    for curvature in (None, cf.GaussNewton()):
        found = source(made, ask, curvature=curvature)
        near, real = cf.compare(found, exact), cf.compare(found, truth)
        assert near.pearson > 0.95
        assert real.pearson > 0.9
        assert 0.8 < near.slope < 1.2
        assert 0.75 < real.slope < 1.25
    without = cf.compare(source(cf.Recipe(
        net, loss, (x, y), optimizer=cf.AdamW(0.02, eps_root=1e-6, weight_decay=0.0), epochs=8, batch_size=10,
        clipping=0.5, schedule=cf.linear,
    ), ask), exact)  # fmt: skip
    assert without.pearson < cf.compare(source(made, ask), exact).pearson


def test_a_fisher_matrix_stands_for_each_layer():
    x, y = normal(30, 3, seed=90), normal(30, 2, seed=91)
    model = grid.seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)))

    def losses(z, y):
        return (z - y).square().sum(1)

    problem = grid.Problem(
        "chain",
        lambda: model,
        lambda m, batch: losses(m(batch[0]), batch[1]),
        (x, y),
        {"norm": lambda m: m(x[0]).norm()},
    )
    dense = [after(problem, k) for k in (2, 6, 10)]
    matrices = [ekfac_matrix(recipe(problem, epochs=k).train(), losses, x, y, damping=0.0, l2=0.01) for k in (2, 6, 10)]
    wanted = segmented([(each, 0.2) for each in dense], after(problem, 12), problem.objective, matrices)
    found = source(recipe(problem), problem.objective, segments=3, curvature=cf.EmpiricalFisher())
    close(found.values[:, 0], wanted, 1e-8)


# Beside replay and influence.


class Point(nn.Module):
    def __init__(self):
        super().__init__()
        self.at = nn.Parameter(torch.zeros(4, dtype=torch.float64))


def quadratic(model, batch):
    """One sample holds all of the curvature; the gradients of the others are the same throughout."""
    pull, bend = batch
    return pull @ model.at + bend * (torch.tensor([0.1, 0.5, 1.0, 3.0], dtype=torch.float64) @ model.at.square()) / 2


def test_on_a_quadratic_it_is_replay_but_for_terms_of_the_learning_rate():
    pull, bend = normal(10, 4, seed=92), torch.zeros(10, dtype=torch.float64)
    bend[0] = 10
    gaps = []
    for lr, steps in ((0.04, 50), (0.02, 100), (0.01, 200)):
        made = cf.Recipe(Point(), quadratic, (pull, bend), optimizer=cf.SGD(lr), epochs=steps)
        found, exact = (verb(made, lambda m: m.at.sum()).values[1:] for verb in (cf.source, cf.replay))
        gaps.append(float((found - exact).norm() / exact.norm()))
    assert gaps[0] < 0.02
    assert gaps[1] < 0.6 * gaps[0]
    assert gaps[2] < 0.6 * gaps[1]


@PROBLEMS
def test_with_a_segment_for_each_step_it_is_replay_but_for_terms_of_the_learning_rate(problem):
    made = recipe(problem, optimizer=cf.SGD(0.01), epochs=25)
    found, exact = source(made, problem.ask, segments=25).values, replay(made, problem.ask).values
    assert (found - exact).norm() <= 0.02 * exact.norm()


@pytest.mark.parametrize("problem", [grid.LOGISTIC, grid.COX], ids=lambda problem: problem.name)
def test_a_long_training_is_influence_at_its_end(problem):
    made = recipe(problem, optimizer=cf.SGD(2.0, momentum=0.9), epochs=600)
    influence = cf.influence(made.risk(made.train()), problem.ask, cf.Exact())
    close(source(made, problem.ask, segments=3, rtol=1e-9).values, influence.values, 1e-6)


@pytest.mark.parametrize("optimizer", [cf.SGD(0.05), cf.SGD(0.01, momentum=0.9), cf.Adam(0.02)], ids=repr)
def test_it_predicts_replay_of_mini_batches(optimizer):
    problem = grid.SOFTMAX_ON_OUTPUTS
    made = recipe(problem, optimizer=optimizer, epochs=40, batch_size=10)
    exact = replay(made, problem.objective)
    found, traced = (cf.compare(verb(made, problem.objective), exact) for verb in (cf.source, cf.tracin))
    assert found.pearson > max(0.99, traced.pearson)
    assert 0.9 < found.slope < 1.1


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # sizes are off by layers
def test_by_layers_it_is_still_nearer_than_gradients_along_the_way():
    problem = grid.SOFTMAX_ON_OUTPUTS
    made = recipe(problem, optimizer=cf.SGD(0.1), epochs=40, batch_size=10)
    exact = replay(made, problem.objective)
    layers = cf.compare(source(made, problem.objective, curvature=cf.Fisher()), exact)
    assert layers.pearson > 0.9
    assert layers.pearson > cf.compare(cf.tracin(made, problem.objective), exact).pearson
    assert 0.7 < layers.slope < 1.1


# Laws.


def test_permuting_the_data_of_full_steps_permutes_the_scores():
    problem, order = grid.COX, torch.randperm(40, generator=torch.Generator().manual_seed(0))
    options = {"optimizer": cf.SGD(0.05), "epochs": 12, "l2": problem.l2}
    permuted = cf.Recipe(problem.build(), problem.loss, tuple(t[order] for t in problem.tensors), **options)
    found = source(permuted, problem.objective, ids=order.tolist()).select(range(40))
    close(found.values, source(recipe(problem), problem.objective).values)


def test_where_the_learning_rate_is_zero_nothing_happens():
    problem = grid.SOFTMAX_ON_OUTPUTS
    halted = recipe(problem, epochs=24, schedule=lambda progress: float(progress < 0.5))
    close(
        source(halted, problem.objective, segments=6).values,
        source(recipe(problem), problem.objective, segments=3).values,
    )


def test_growth_is_held_and_said_to_be():
    x = normal(10, 4, seed=93)
    made = cf.Recipe(Point(), lambda m, x: x @ m.at - m.at.square().sum() / 2, x, optimizer=cf.SGD(0.1), epochs=60)
    held = source(made, lambda m: m.at[0], segments=2)  # the true growth is e^6
    assert held.report.notes[0].startswith("In 2 of 2 segments")
    followed, exact = source(made, lambda m: m.at[0], segments=12), replay(made, lambda m: m.at[0])
    assert followed.report.notes == ()
    assert cf.compare(followed, exact).slope == pytest.approx(1, abs=0.4)
    assert cf.compare(held, exact).slope > 5


def test_nothing_is_touched_and_the_report_tells_how_it_came_about():
    made, state = recipe(grid.LOGISTIC), torch.random.get_rng_state()
    scores = source(made, grid.LOGISTIC.ask, segments=5, ids=[f"s{row}" for row in range(40)])
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not scores.values.requires_grad
    assert scores.ids[3] == "s3"
    assert scores.method == scores.report.solver == "source(segments=4, curvature=Hessian())"  # 12 steps, 3 in each
    assert scores.report.values == pytest.approx([v.item() for v in grid.LOGISTIC.ask(made.train()).values()])


def test_dropout_counts_as_the_model_without_it():
    model = grid.seeded(nn.Sequential(nn.Linear(3, 6), nn.Tanh(), nn.Dropout(0.3), nn.Linear(6, 1))).train()
    x = normal(20, 3, seed=94)
    made = cf.Recipe(
        model, lambda m, x: (m(x)[:, 0] - x.sum(1)).square(), x, optimizer=cf.SGD(0.02), epochs=20, random=True
    )
    agreement = cf.compare(source(made, lambda m: m(x[:1]).sum()), replay(made, lambda m: m(x[:1]).sum()))
    assert agreement.pearson > 0.8


def test_too_few_products_are_said_to_be(monkeypatch):
    monkeypatch.setattr("crossfluence._attribution.source.MAX_STEPS", 3)
    with pytest.warns(errors.NotConvergedWarning, match="after 3 products .* rtol=0.01. Take more segments"):
        source(recipe(grid.SOFTMAX_ON_OUTPUTS, epochs=100), grid.SOFTMAX_ON_OUTPUTS.objective, segments=1)


# Bad input.


def test_what_the_approximation_does_not_cover_is_refused_before_training():
    def refused(problem, match, **options):
        curvature = options.pop("curvature", None)
        with pytest.raises(errors.UnsupportedError, match=match):
            source(recipe(problem, **options), lambda _: pytest.fail("trained"), curvature=curvature)

    refused(grid.DEC_MOVING, r"FieldLoss, with batch_size=None; .*replay")
    refused(grid.CONTRASTIVE, "WeightedLoss, with batch_size=16; .*steps of all samples", batch_size=16)
    refused(grid.ON_OUTPUTS, "single samples, .* and AdamW", curvature=cf.Fisher(), optimizer=cf.AdamW(0.1))
    refused(grid.AUTOENCODER, r"GaussNewton\(\) needs .* OnOutputs.*Hessian\(\)", curvature=cf.GaussNewton())
    refused(grid.ON_OUTPUTS, "single samples, .* and Adam", curvature=cf.Fisher(), optimizer=cf.Adam(0.1))
    refused(grid.COX, "got a WeightedLoss and SGD", curvature=cf.EmpiricalFisher())


def test_wrong_numbers_and_training_functions_are_refused():
    with pytest.raises(ValueError, match="segments=0"):
        source(recipe(grid.LOGISTIC), grid.LOGISTIC.objective, segments=0)
    with pytest.raises(errors.DataError, match="2 ids for 40"):
        source(recipe(grid.LOGISTIC), grid.LOGISTIC.objective, ids=[0, 1])
    with pytest.raises(TypeError, match=r"Got function; source needs a crossfluence\.Recipe"):
        source(lambda weights: Point(), grid.LOGISTIC.objective)
