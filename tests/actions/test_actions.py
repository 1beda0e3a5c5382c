"""Acting on an answer: a new model, what was predicted and what happened, and the user's model as it was."""

import copy
import math

import grid
import pytest
import torch
from grid import normal
from torch import nn
from torch.nn.functional import softplus

import crossfluence as cf
from crossfluence import errors
from crossfluence._autodiff.params import fingerprint, trained_parameters
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.skipgram import ExpectedTraining

X = normal(30, 2, seed=0)
Y = X @ torch.tensor([1.0, -2.0], dtype=torch.float64) + normal(30, seed=1)
L2 = 0.1


def ridge(weights):
    """Weighted least squares in closed form; n stays fixed and the l2 term is not reweighted."""
    w = weights.double()
    curvature = X.T @ (w[:, None] * X) / 30 + L2 * torch.eye(2, dtype=X.dtype)
    model = nn.Linear(2, 1, bias=False).double()
    model.weight.data = torch.linalg.solve(curvature, X.T @ (w * Y) / 30)[None]
    return model


def half_squares(model, batch):
    return (model(batch[0])[:, 0] - batch[1]).square() / 2


def ask(model):
    return model.weight.square().sum()


def both(model):
    return {"first": model.weight[0, 0], "size": ask(model)}


def linear(model):
    return model.weight[0, 0]


def losses_of(ids):
    """The mean loss of some samples, as an objective."""
    return lambda model: half_squares(model, (X[ids], Y[ids])).mean()


def risk(**options):
    return cf.Risk(ridge(torch.ones(30)), half_squares, cf.batches(X, Y, size=7), l2=L2, **options)


def recipe():
    init = grid.seeded(nn.Linear(2, 1, bias=False))
    return cf.Recipe(init, half_squares, (X, Y), optimizer=cf.SGD(0.5), epochs=150, l2=L2)


def without(*rows):
    return torch.ones(30).index_fill(0, torch.tensor(rows), 0)


# Remove.


@pytest.mark.parametrize("train", [ridge, recipe()], ids=["function", "recipe"])
def test_remove_trains_without_the_samples_and_says_what_was_predicted(train):
    scores = cf.influence(risk(), both, cf.Exact())
    outcome = cf.remove(train, [3, 8], both, scores=scores)
    whole, rest = ridge(torch.ones(30)), ridge(without(3, 8))
    assert torch.allclose(outcome.model.weight, rest.weight, rtol=1e-9)
    assert (outcome.objectives, outcome.history, outcome.method) == (("first", "size"), None, "remove(2 samples)")
    for found, model in ((outcome.before, whole), (outcome.after, rest)):
        assert torch.allclose(found, torch.stack(list(both(model).values())).detach(), rtol=1e-9)
    assert torch.equal(outcome.achieved, outcome.after - outcome.before)
    assert torch.allclose(outcome.predicted, -scores.values[[3, 8]].sum(0))
    assert torch.allclose(outcome.predicted, outcome.achieved, rtol=0.3)


def test_a_recipe_predicts_by_itself_and_a_function_does_not():
    scores = cf.influence(risk(), ask, cf.Exact())
    assert torch.allclose(cf.remove(recipe(), [5], ask).predicted, -scores.values[5], rtol=1e-4)
    outcome = cf.remove(ridge, [5], ask, n=30)
    assert outcome.predicted is None
    assert torch.allclose(outcome.achieved, -cf.leave_out(ridge, ask, [5], n=30).values[0])


def test_remove_takes_the_labels_of_the_scores():
    labels = [f"s{row}" for row in range(30)]
    scores = cf.influence(risk(ids=labels), ask, cf.Exact())
    assert torch.equal(cf.remove(ridge, ["s4"], ask, scores=scores).after, cf.remove(ridge, [4], ask, n=30).after)
    with pytest.raises(errors.IdError, match="Unknown id 4"):
        cf.remove(ridge, [4], ask, scores=scores)


def test_remove_refuses_what_does_not_fit():
    with pytest.raises(ValueError, match="no samples to remove"):
        cf.remove(ridge, [], ask, n=30)
    with pytest.raises(errors.DataError, match="pass scores= or n="):
        cf.remove(ridge, [0], ask)
    with pytest.raises(errors.IdError, match="Unknown id 30"):
        cf.remove(recipe(), [30], ask)


# Unlearn.


@pytest.mark.parametrize("ids", [[0], [3, 8, 21], list(range(20))])
def test_unlearning_with_a_solver_is_exact_where_the_loss_is_quadratic(ids):
    for solver in (cf.Exact(), cf.CG(rtol=1e-12)):
        outcome = cf.unlearn(risk(), ids, solver, watch=linear)
        assert torch.allclose(outcome.model.weight, ridge(without(*ids)).weight, rtol=1e-8)
        assert torch.allclose(outcome.predicted, outcome.achieved, rtol=1e-8)  # a linear question
    assert outcome.method.startswith("unlearn(CG")


def test_unlearning_with_an_inverse_of_all_samples_is_minus_the_sum_of_the_scores():
    made, ids = risk(), [3, 8, 21]
    inverse = cf.Exact().invert(made)
    expected = -cf.influence(made, both, inverse).select(ids).values.sum(0)
    outcome = cf.unlearn(made, ids, inverse, watch=both)
    assert outcome.objectives == ("first", "size")
    assert torch.allclose(outcome.predicted, expected)
    assert torch.allclose(outcome.achieved[0], expected[0])  # the linear one
    assert not torch.allclose(outcome.model.weight, ridge(without(*ids)).weight, rtol=1e-3)


@pytest.mark.parametrize("problem", [grid.COX, grid.CONTRASTIVE, grid.DEC_MOVING], ids=lambda problem: problem.name)
def test_unlearning_predicts_the_scores_also_where_samples_are_coupled(problem):
    solver = cf.Exact(problem.damping)
    made = problem.risk()
    inverse = solver.invert(made)
    one = cf.unlearn(made, [1], inverse, watch=problem.objective).predicted
    score = cf.influence(made, problem.objective, inverse).values[1]
    assert torch.sign(one) == -torch.sign(score)
    assert torch.allclose(one, -score, rtol=0.5)  # weight 0 is no small change where samples are coupled


def test_unlearning_watches_nothing_unless_asked():
    outcome = cf.unlearn(risk(), [0])
    assert (outcome.objectives, outcome.predicted, outcome.history) == ((), None, None)
    assert outcome.before.shape == outcome.after.shape == outcome.achieved.shape == (0,)
    assert torch.allclose(outcome.model.weight, ridge(without(0)).weight, rtol=1e-5)


# Undo and amplify.


@pytest.mark.parametrize(("verb", "sign"), [(cf.undo, 1), (cf.amplify, -1)])
def test_steps_lead_away_from_the_samples_or_towards_them(verb, sign):
    ids = [3, 8]
    outcome = verb(risk(), ids, steps=20, lr=0.01, watch=losses_of(ids))
    assert outcome.history.shape == (21, 1)
    assert (sign * outcome.history[:, 0].diff() > 0).all()
    assert torch.equal(outcome.history[0], outcome.before)
    assert torch.equal(outcome.history[-1], outcome.after)
    assert outcome.method == f"{verb.__name__}(steps=20, lr=0.01)"
    assert torch.allclose(losses_of(ids)(outcome.model).detach(), outcome.after)


@pytest.mark.parametrize(("verb", "sign"), [(cf.undo, 1), (cf.amplify, -1)])
def test_steps_are_those_of_torch_adam(verb, sign):
    ids = [3, 8, 29]
    model = ridge(torch.ones(30))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.05)
    for _ in range(30):
        optimizer.zero_grad()
        (-sign * losses_of(ids)(model)).backward()
        optimizer.step()
    assert torch.allclose(verb(risk(), ids, steps=30, lr=0.05).model.weight, model.weight, rtol=1e-12)


@pytest.fixture(scope="module")
def skipgram():
    """A risk of sentences, trained to a minimum."""
    texts = ["he works at the office", "she stays at home", "he runs a business", "she runs a home", "he stays"] * 3
    training = ExpectedTraining(Pairs(corpus_of(texts), Sampling(window=2, subsample=0)), 3, prior=5.0)
    return training.risk(training.train())


def mean_loss(made, ids):
    """The mean loss of some samples, from the risk's own values and as a function that autograd knows."""
    if isinstance(made, cf.Risk):
        return losses_of(ids)
    counts = made.pairs.weighted(made.only(ids).weights.double().numpy())
    seen = torch.zeros(counts.size, counts.size, dtype=torch.float64)
    seen[counts.rows, counts.columns] = torch.as_tensor(counts.values)
    noise = made.pairs.sampling.negatives * seen.sum(1, keepdim=True) * torch.as_tensor(made.pairs.noise)
    unit = made.n / len(ids) / made.pairs.all.total

    def loss(model):
        scores = model.word_vectors @ model.context_vectors.T
        return unit * (seen * softplus(-scores) + noise * softplus(scores)).sum()

    return loss


def walked(made, objective, steps, lr):
    """What torch's Adam makes of the model."""
    model = copy.deepcopy(made.model)
    optimizer = torch.optim.Adam(model.parameters(), lr=lr)
    for _ in range(steps):
        optimizer.zero_grad()
        objective(model).backward()
        optimizer.step()
    return list(model.parameters())


KINDS = pytest.mark.parametrize("kind", ["risk", "skipgram"])


@KINDS
def test_undoing_some_while_amplifying_others_descends_the_difference(kind, skipgram):
    made = skipgram if kind == "skipgram" else risk()
    away, towards = made.labels[:3], made.labels[5:7]
    up, down = mean_loss(made, list(away)), mean_loss(made, list(towards))
    outcome = cf.undo(made, away, amplify=towards, steps=12, lr=0.02, tolerance=math.inf, watch=lambda m: down(m))
    expected = walked(made, lambda model: down(model) - up(model), 12, 0.02)
    for found, wanted in zip(outcome.model.parameters(), expected, strict=True):
        assert torch.allclose(found, wanted, rtol=1e-7, atol=1e-9)
    assert outcome.method == "undo and amplify(steps=12, lr=0.02)"
    assert up(outcome.model) - down(outcome.model) > up(made.model) - down(made.model)


@KINDS
@pytest.mark.parametrize("verb", [cf.undo, cf.amplify])
def test_a_guarded_walk_is_the_free_one_up_to_the_last_step_that_is_tolerated(kind, verb, skipgram):
    made = skipgram if kind == "skipgram" else risk()
    ids, others = made.labels[:2], mean_loss(made, list(made.labels[2:]))
    guarded = verb(made, ids, steps=60, lr=0.02, guard=others, tolerance=0.05, watch=others)
    free = verb(made, ids, steps=60, lr=0.02, tolerance=math.inf, watch=others)
    limit = 1.05 * others(made.model).detach()
    assert 0 < guarded.steps < free.steps == 60
    assert torch.equal(guarded.history, free.history[: guarded.steps + 1])
    assert guarded.history.max() <= limit < free.history[guarded.steps + 1]
    assert torch.allclose(others(guarded.model).detach(), guarded.after)
    assert guarded.stopped.startswith(f"Step {guarded.steps + 1} of 60 was taken back: the guard would rise from")
    assert free.stopped == "All 60 steps were taken; what was guarded is nothing."


def test_the_loss_of_all_other_sentences_is_guarded_unless_asked_otherwise(skipgram):
    ids = skipgram.labels[:2]
    outcome = cf.undo(skipgram, ids, steps=200, lr=0.02)
    rest = skipgram.without(ids)
    before, after = rest.value(skipgram.theta), rest.value(trained_parameters(outcome.model, "*"))
    assert 0 < outcome.steps < 200
    assert "the loss of all other samples" in outcome.stopped
    assert before < after <= 1.01 * before
    nothing = cf.undo(risk(), [0], steps=5, lr=0.02)  # a loss of the user's own: its value costs a pass over the data
    assert (nothing.steps, nothing.stopped) == (5, "All 5 steps were taken; what was guarded is nothing.")


def test_a_first_step_that_is_too_long_leaves_the_model_as_it_was():
    outcome = cf.undo(risk(), [0], steps=5, lr=10, guard=losses_of([1, 2]), watch=ask)
    assert outcome.steps == 0
    assert torch.equal(outcome.model.weight, risk().model.weight)
    assert torch.equal(outcome.achieved, torch.zeros(1).double())
    assert torch.equal(outcome.predicted, torch.zeros(1).double())


def test_guards_and_groups_that_make_no_sense_are_refused():
    with pytest.raises(ValueError, match="Sample 3 is both"):
        cf.undo(risk(), [2, 3], amplify=[3, 4], steps=1, lr=0.1)
    with pytest.raises(ValueError, match=r"tolerance=-1; needed a share"):
        cf.undo(risk(), [2], steps=1, lr=0.1, guard=ask, tolerance=-1)
    with pytest.raises(errors.ObjectiveError, match="2 values"):
        cf.amplify(risk(), [2], steps=1, lr=0.1, guard=both)


def test_the_prediction_is_the_slope_times_the_way_that_was_gone():
    outcome = cf.undo(risk(), [3], steps=5, lr=0.01, watch=both)
    moved = (outcome.model.weight - risk().model.weight).detach()
    assert torch.allclose(outcome.predicted[0], moved[0, 0], rtol=1e-12)
    assert torch.allclose(outcome.achieved[0], moved[0, 0], rtol=1e-12)
    assert torch.allclose(outcome.predicted[1], 2 * (risk().model.weight * moved).sum().detach(), rtol=1e-12)


def test_nothing_is_watched_unless_asked():
    outcome = cf.undo(risk(), [3], steps=2, lr=0.01)
    assert (outcome.objectives, outcome.predicted, outcome.history.shape) == ((), None, (3, 0))


def test_only_the_chosen_parameters_move():
    problem = grid.SEMI_SUPERVISED
    made = problem.risk(params="encoder.*")
    for outcome in (cf.undo(made, [0], steps=3, lr=0.01), cf.unlearn(made, [0], cf.Exact(0.1))):
        assert torch.equal(outcome.model.decoder.weight, problem.model.decoder.weight)
        assert not torch.equal(outcome.model.encoder.weight, problem.model.encoder.weight)


# Every action.


ACTIONS = {
    "undo": lambda made, ids: cf.undo(made, ids, steps=3, lr=0.1, watch=ask),
    "amplify": lambda made, ids: cf.amplify(made, ids, steps=3, lr=0.1, watch=ask),
    "unlearn": lambda made, ids: cf.unlearn(made, ids, watch=ask),
}
actions = pytest.mark.parametrize("action", ACTIONS.values(), ids=ACTIONS)


@actions
def test_the_users_model_is_bitwise_as_it_was(action):
    made = risk()
    before, state, still = fingerprint(made.model), torch.random.get_rng_state(), copy.deepcopy(made.model)
    outcome = action(made, [1, 2])
    assert fingerprint(made.model) == before
    assert all(p.grad is None and p.requires_grad for p in [*made.model.parameters(), *outcome.model.parameters()])
    assert outcome.model.training == made.model.training == still.training
    assert outcome.model is not made.model
    assert torch.equal(torch.random.get_rng_state(), state)
    assert not any(t.requires_grad for t in (outcome.before, outcome.after, outcome.predicted))


@actions
def test_what_cannot_be_done_is_refused(action):
    with pytest.raises(ValueError, match=r"0 samples|no samples"):
        action(risk(), [])
    with pytest.raises(errors.IdError, match="Unknown id 'cat'"):
        action(risk(), ["cat"])
    made = risk()
    with torch.no_grad():
        made.model.weight += 1
    with pytest.raises(errors.StaleError, match="changed after the risk"):
        action(made, [0])


def test_no_steps_are_refused_and_so_is_an_inverse_of_another_risk():
    with pytest.raises(ValueError, match="0 steps"):
        cf.undo(risk(), [0], steps=0, lr=0.1)
    other = cf.Exact().invert(grid.LOGISTIC.risk())
    with pytest.raises(errors.StaleError, match="another risk"):
        cf.unlearn(risk(), [0], other)
