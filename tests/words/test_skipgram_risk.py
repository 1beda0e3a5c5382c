"""The risk of skip-gram against the generic one, which PyTorch differentiates, and against training again."""

import copy
from functools import cache

import numpy as np
import pytest
import torch
from grid import normal
from torch.func import grad
from walks import (
    PRECISE,
    flat,
    formula,
    generic_risk,
    likeness,
    likenesses,
    pairs,
    products,
    risk,
    tables,
    texts,
    trained,
    training,
)  # fmt: skip

import crossfluence as cf
from crossfluence import errors
from crossfluence.words.corpus.pairs import Pairs, Sampling, pair_counts
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.skipgram import SkipGram, SkipGramRisk, WordBlocks
from crossfluence.words.skipgram.loss import ExpectedLoss

close = torch.testing.assert_close


@cache
def generic():
    return generic_risk(trained(), risk().l2)


@cache
def elsewhere():
    """Both risks away from any minimum."""
    model = SkipGram(pairs().corpus.words, *tables(30))
    return SkipGramRisk(model, pairs(), 0.02), generic_risk(model, 0.02)


@cache
def exact():
    return cf.influence(risk(), likenesses, cf.Exact())


# Derivatives


def test_away_from_a_minimum_the_generic_risk_has_the_same_first_derivatives():
    ours, theirs = elsewhere()
    ids, along = list(ours.labels[5:20]), normal(3, ours.p, seed=31)
    assert ours.labels == theirs.labels
    close(ours.gradient, theirs.gradient, rtol=1e-9, atol=1e-13)
    close(torch.cat(list(ours.sample_gradients())), torch.cat(list(theirs.sample_gradients())), rtol=1e-9, atol=1e-13)
    close(ours.derivatives_along(along), theirs.derivatives_along(along), rtol=1e-9, atol=1e-13)
    for change in ("without", "only"):
        changed = [getattr(part, change)(ids) for part in (ours, theirs)]
        close(changed[0].gradient, changed[1].gradient, rtol=1e-9, atol=1e-13)
        close(changed[0].derivatives_along(along), theirs.derivatives_along(along), rtol=1e-9, atol=1e-13)


@pytest.mark.parametrize("curvature", [cf.Hessian(), cf.FieldJacobian(), cf.GaussNewton()], ids=str)
@pytest.mark.parametrize("left_out", [0, 15])
def test_products_are_the_generic_ones_between_two_projections(curvature, left_out):
    ours, theirs = (part.without(part.labels[:left_out]) for part in elsewhere())
    along = normal(3, ours.p, seed=32)
    wanted = ours.project(curvature.product(theirs, ours.project(along)))
    close(curvature.product(ours, along), wanted, rtol=1e-9, atol=1e-12)
    close(curvature.transposed_product(ours, along), wanted, rtol=1e-9, atol=1e-12)


def test_without_and_only_split_value_and_field():
    ids, theta = list(risk().labels[3:9]), risk().theta
    l2 = risk().l2 * risk().layout.flatten(theta)
    parts = risk().without(ids).field(theta) + risk().only(ids).field(theta) - l2
    close(parts, risk().field(theta), rtol=1e-9, atol=1e-12)
    weights = np.ones(risk().n)
    weights[3:9] = 0
    value, point = formula(pairs().weighted(weights), risk().l2), risk().layout.flatten(theta)
    assert risk().without(ids).value(theta) == pytest.approx(float(value(point)), rel=1e-12)
    close(risk().without(ids).field(theta), grad(value)(point), rtol=1e-9, atol=1e-12)


def test_word_blocks_are_the_inverse_of_the_blocks_up_to_rotations():
    vectors = normal(3, risk().p, seed=21)
    blocks = torch.block_diag(*torch.cat(risk().word_blocks())) + 0.1 * torch.eye(risk().p, dtype=torch.float64)
    wanted = risk().project(torch.linalg.solve(blocks, risk().project(vectors).T).T)
    close(WordBlocks(0.1).invert(risk()).solve(vectors).vectors, wanted, rtol=1e-9, atol=1e-12)


# Scores

TIGHT = {"rtol": 1e-11, "max_steps": 3_000}
SOLVERS = [
    (cf.Exact(), cf.Exact()),
    (cf.Exact(1e-2), cf.Exact(1e-2)),
    (cf.CG(**TIGHT), cf.Exact()),
    (cf.CG(1e-2, **TIGHT), cf.Exact(1e-2)),
    (cf.CG(preconditioner=WordBlocks(), **TIGHT), cf.Exact()),
    (cf.CG(1e-2, preconditioner=WordBlocks(1e-2), truncate=True, **TIGHT), cf.Exact(1e-2)),
    (cf.GMRES(rtol=1e-11), cf.Exact()),
    (cf.GMRES(rtol=1e-11, preconditioner=WordBlocks()), cf.Exact()),
    (cf.CG(curvature=cf.GaussNewton(), preconditioner=WordBlocks(), **TIGHT), cf.Exact(curvature=cf.GaussNewton())),
    (cf.Identity(), cf.Identity()),
]


@pytest.mark.parametrize(("solver", "dense"), SOLVERS, ids=str)
def test_every_solver_scores_as_the_generic_risk_does(solver, dense):
    found = cf.influence(risk(), likenesses, solver)
    wanted = cf.influence(generic(), likenesses, dense)
    assert float((found.values - wanted.values).abs().max()) <= 1e-5 * float(wanted.values.abs().max())
    assert found.ids == wanted.ids
    assert found.report.values == pytest.approx(wanted.report.values)


def test_auto_takes_the_word_blocks_and_comes_near_its_tolerance():
    found = cf.influence(risk(), likenesses)
    assert "skip-gram" in found.report.notes[-1]
    assert float((found.values - exact().values).norm() / exact().values.norm()) < 0.1


def test_word_blocks_alone_rank_sentences_roughly():
    found = cf.influence(risk(), likeness, WordBlocks())
    assert np.corrcoef(found.values[:, 0], exact().values[:, 0])[0, 1] > 0.4


def test_scores_are_what_training_again_finds():
    dropped = pairs().corpus.ids[::6]
    truth = cf.leave_out(
        training().starting_from(trained()), likeness, dropped, n=pairs().corpus.n, ids=pairs().corpus.ids
    )
    found = cf.compare(cf.influence(risk(), likeness, cf.Exact()), truth)
    assert found.pearson > 0.98
    assert 0.9 < found.slope < 1.1


def test_self_influence_is_that_of_the_generic_risk():
    wanted = cf.self_influence(generic(), cf.Exact(1e-6)).values
    close(cf.self_influence(risk(), cf.Exact(1e-6)).values, wanted, rtol=1e-4, atol=1e-8)
    assert float(wanted.max()) <= 0


def test_candidates_score_as_in_the_generic_risk_and_as_sentences_that_were_trained_on():
    tokens, offsets = torch.as_tensor(pairs().corpus.tokens.copy()), pairs().corpus.offsets
    sentences = tokens.split(np.diff(offsets).tolist())
    padded = torch.nn.utils.rnn.pad_sequence(sentences, batch_first=True, padding_value=-1)
    found = cf.influence(risk(), likenesses, cf.Exact(), candidates=padded.split(100))
    close(found.values, exact().values, rtol=1e-9, atol=1e-14)
    close(found.values, cf.influence(generic(), likenesses, cf.Exact()).values, rtol=1e-5, atol=1e-9)


def test_a_candidate_whose_word_has_no_pairs_is_scored_like_any_other():
    corpus = corpus_of(["ant bee cat", "bee cat ant", "dog", "ant cat"])
    alone = SkipGramRisk(SkipGram.initial(corpus.words, 2), Pairs(corpus, Sampling(window=2, subsample=0)), 0.1)
    direction, pair = normal(1, alone.p, seed=0), [corpus.index["dog"], corpus.index["ant"]]
    counts = pair_counts(np.array(pair), np.array([0, 2]), alone.pairs.keep, 2)
    loss = ExpectedLoss.of(alone.pairs, 0.0, torch.float64, counts)
    wanted = flat(loss.value_and_gradient(alone.theta["word_vectors"], alone.theta["context_vectors"])[1:])
    close(alone.derivatives_along_of([torch.tensor([pair])], direction)[0, 0], wanted @ direction[0])


@pytest.mark.parametrize("solver", [cf.Exact(), PRECISE, WordBlocks(), cf.Identity()], ids=str)
def test_scores_are_linear_in_the_question(solver):
    def mixed(model):
        one, other = likenesses(model).values()
        return {"one": one, "other": other, "mixed": -3 * one + 1e6 * other}

    one, other, both = cf.influence(risk(), mixed, solver).values.T
    assert float((both + 3 * one - 1e6 * other).abs().max()) <= 1e-6 * float(both.abs().max())


@pytest.mark.parametrize("scale", [1e-12, 1e12])
@pytest.mark.parametrize("solver", [cf.Auto(), WordBlocks()], ids=str)
def test_the_unit_of_the_question_is_that_of_the_scores(scale, solver):
    scaled = cf.influence(risk(), lambda model: scale * likeness(model), solver)
    close(scaled.values / scale, cf.influence(risk(), likeness, solver).values, rtol=1e-7, atol=1e-12)


def test_how_much_is_held_at_once_does_not_change_the_scores(monkeypatch):
    wanted = cf.influence(risk(), likenesses, PRECISE).values
    monkeypatch.setattr("crossfluence.words.skipgram.loss.NUMBERS_AT_ONCE", 20)
    monkeypatch.setattr("crossfluence.words.skipgram.sentences.NUMBERS_AT_ONCE", 20)
    monkeypatch.setattr("crossfluence.words.skipgram.risk.NUMBERS_HELD", 0)
    monkeypatch.setattr("crossfluence.words.corpus.pairs.PAIRS_AT_ONCE", 17)
    anew = SkipGramRisk(trained(), Pairs(pairs().corpus, pairs().sampling), risk().l2)
    close(cf.influence(anew, likenesses, PRECISE).values, wanted, rtol=1e-6, atol=1e-11)


def test_permuting_the_sentences_permutes_the_scores():
    order = np.random.default_rng(22).permutation(risk().n)
    shuffled = Pairs(corpus_of([texts()[row] for row in order], words=trained().words), pairs().sampling)
    found = cf.influence(SkipGramRisk(trained(), shuffled, risk().l2), likenesses, cf.Exact())
    close(found.values, exact().values[order], rtol=1e-5, atol=1e-10)


def test_scores_in_single_precision_come_near():
    single = SkipGram(trained().words, *(table.detach().float() for table in trained().parameters()))
    found = cf.influence(training().risk(single), likenesses).values
    assert found.dtype == torch.float32
    assert float((found.double() - exact().values).norm() / exact().values.norm()) < 0.1


@pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # no minimum
def test_far_from_a_minimum_a_solve_is_truncated_or_refused():
    own = SkipGramRisk(elsewhere()[0].model, pairs(), 1e-6)
    truncated = cf.influence(own, likeness, cf.CG(preconditioner=WordBlocks(), truncate=True, rtol=1e-8))
    assert truncated.values.isfinite().all()
    assert any("negative curvature" in note for note in truncated.report.notes)
    with pytest.raises(errors.NegativeCurvatureError, match="Raise damping"):
        cf.influence(own, likeness, cf.CG(preconditioner=WordBlocks(), rtol=1e-8))


# Actions


def test_one_newton_step_goes_where_training_again_goes():
    rows = [2, 11, 30]
    outcome = cf.unlearn(risk(), [risk().labels[row] for row in rows], PRECISE, watch=likeness)
    weights = torch.ones(risk().n)
    weights[rows] = 0
    again = training().starting_from(trained()).train(weights)
    wanted = float(likeness(again).detach() - likeness(trained()).detach())
    assert float(outcome.achieved) == pytest.approx(wanted, rel=0.3)
    gap = [float((products(model) - products(again)).norm()) for model in (outcome.model, trained())]
    assert gap[0] < 0.3 * gap[1]


def test_one_newton_step_with_the_curvature_of_all_is_that_of_the_generic_risk():
    ids = list(risk().labels[:3])
    ours, theirs = (
        cf.unlearn(part, ids, cf.Exact(1e-4).invert(part), watch=likenesses) for part in (risk(), generic())
    )
    close(ours.achieved, theirs.achieved, rtol=1e-4, atol=1e-8)
    close(products(ours.model), products(theirs.model), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("verb", [cf.undo, cf.amplify])
def test_steps_go_where_those_on_the_generic_risk_go(verb):
    ids = list(risk().labels[3:9])
    ours, theirs = (verb(part, ids, steps=4, lr=1e-2, watch=likenesses) for part in (risk(), generic()))
    close(ours.history, theirs.history, rtol=1e-7, atol=1e-9)
    close(ours.predicted, theirs.predicted, rtol=1e-6, atol=1e-9)
    close(ours.model.context_vectors, theirs.model.context_vectors, rtol=1e-6, atol=1e-9)


def test_undoing_raises_the_loss_of_the_sentences_and_amplifying_lowers_it():
    ids = list(risk().labels[4:6])
    value = formula(risk().only(ids).expected.counts, 0.0)

    def loss(model):
        return value(torch.cat([table.flatten() for table in (model.word_vectors, model.context_vectors)]))

    undone, amplified = (verb(risk(), ids, steps=3, lr=1e-3, watch=loss) for verb in (cf.undo, cf.amplify))
    assert float(undone.achieved) > 0 > float(amplified.achieved)
    assert float(undone.predicted) > 0 > float(amplified.predicted)


def test_removing_achieves_about_what_the_scores_predict():
    scores = cf.influence(risk(), likeness, cf.Exact())
    ids = [label for label, _ in scores.top(3)]
    outcome = cf.remove(training().starting_from(trained()), ids, likeness, scores=scores)
    assert outcome.predicted.item() == pytest.approx(-sum(value for _, value in scores.top(3)))
    assert outcome.achieved.item() == pytest.approx(outcome.predicted.item(), rel=0.5)


def test_asking_leaves_model_and_random_state_as_they_were():
    model = copy.deepcopy(trained())
    own, state = training().risk(model), torch.get_rng_state()
    cf.influence(own, likenesses)
    cf.influence(own, likeness, candidates=[torch.tensor([[0, 1, 2]])])
    cf.unlearn(own, [own.labels[0]], PRECISE)
    cf.undo(own, [own.labels[0]], steps=2, lr=1e-3)
    assert torch.equal(flat(model.parameters()), flat(trained().parameters()))
    assert torch.equal(state, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in model.parameters())
