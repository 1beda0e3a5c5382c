"""Skip-gram in expectation: the loss from counts against the written-out formula, and training to its minimum."""

import numpy as np
import pytest
import torch
import walks
from grid import normal
from torch.func import grad, hessian, jacrev, jvp
from torch.nn.functional import softplus
from walks import PRECISE, WORDS, D, flat, formula, likenesses, pairs, products, risk, split, tables, trained, training

import crossfluence as cf
from crossfluence.errors import CorpusError, DataError, NonFiniteError, NotConvergedWarning
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.skipgram import ExpectedTraining, SkipGram
from crossfluence.words.skipgram import expected as expected_module
from crossfluence.words.skipgram.loss import ExpectedLoss, representatives

close = torch.testing.assert_close


def some_weights(kind):
    n, random = pairs().corpus.n, np.random.default_rng(5)
    return {
        "ones": np.ones(n),
        "without": (random.random(n) > 0.1).astype(float),
        "few": (random.random(n) < 0.04).astype(float),
        "fractions": random.random(n) * (random.random(n) > 0.3),
    }[kind]


@pytest.fixture(params=["ones", "without", "few", "fractions"])
def counts(request):
    return pairs().weighted(some_weights(request.param))


@pytest.fixture(params=[1, 40, 3_000_000], ids=["row by row", "some rows", "all rows"])
def chunks(request, monkeypatch):
    monkeypatch.setattr("crossfluence.words.skipgram.loss.NUMBERS_AT_ONCE", request.param)
    return request.param


# The loss from counts


def test_value_and_gradient_are_those_of_the_formula(counts, chunks):
    given, value = tables(0), formula(counts, 0.01)
    loss = ExpectedLoss.of(pairs(), 0.01, torch.float64, counts)
    found, *gradient = loss.value_and_gradient(*given)
    assert len(loss._rows) > 1 or chunks > 1_000
    assert found == pytest.approx(float(value(flat(given))), rel=1e-12)
    assert loss.value(*given) == pytest.approx(found, rel=1e-14)
    close(flat(gradient), grad(value)(flat(given)), rtol=1e-10, atol=1e-13)
    unvalued, *same = loss.value_and_gradient(*given, value=False)
    assert np.isnan(unvalued)
    assert torch.equal(flat(same), flat(gradient))


def test_products_and_blocks_are_those_of_the_formula(counts, chunks):
    given, along = tables(2), normal(2 * len(WORDS) * D, seed=3)
    loss, matrix = ExpectedLoss.of(pairs(), 0.01, torch.float64, counts), hessian(formula(counts, 0.01))(flat(given))
    given, direction = torch.stack(given), torch.stack(split(along))
    found = loss.curvature_products(given, torch.stack([direction, 2 * direction]), loss.bends(*given), full=True)
    close(found.flatten(1), torch.stack([matrix @ along, 2 * matrix @ along]), rtol=1e-9, atol=1e-12)
    for row, block in enumerate(torch.cat(loss.blocks(*given))):
        where = slice(row * D, (row + 1) * D)
        close(block, matrix[where, where], rtol=1e-9, atol=1e-12)


def test_blocks_of_large_vocabularies_are_estimated_and_precondition_as_well(monkeypatch):
    exact = torch.cat(risk().word_blocks())
    monkeypatch.setattr("crossfluence.words.skipgram.loss.FREQUENT", 6)
    monkeypatch.setattr("crossfluence.words.skipgram.loss.RARE", 4)
    chosen, share = representatives(14)
    assert chosen.tolist() == [0, 1, 2, 3, 4, 5, 7, 9, 11, 13]
    assert share.tolist() == [1, 1, 1, 1, 1, 1, 2, 2, 2, 2]
    estimated = torch.cat(risk().word_blocks())
    assert 0 < float((estimated - exact).norm() / exact.norm()) < 0.5
    assert torch.linalg.eigvalsh(estimated).min() >= risk().l2 * (1 - 1e-9)
    found = cf.influence(risk(), likenesses, PRECISE).values
    close(found, cf.influence(risk(), likenesses, cf.Exact()).values, rtol=1e-6, atol=1e-10)


def test_gauss_newton_products_leave_out_the_curvature_of_the_scores(counts, chunks):
    given, along = tables(4), normal(2 * len(WORDS) * D, seed=5)

    def scores(point):
        words, contexts = split(point)
        return (words @ contexts.T).flatten()

    seen, share = walks.dense(counts), scores(flat(given)).sigmoid()
    both = seen + pairs().sampling.negatives * seen.sum(1, keepdim=True) * torch.as_tensor(pairs().noise)
    bend, jacobian = both.flatten() * share * (1 - share) / pairs().all.total, jacrev(scores)(flat(given))
    loss = ExpectedLoss.of(pairs(), 0.01, torch.float64, counts)
    given, direction = torch.stack(given), torch.stack(split(along))
    found = loss.curvature_products(given, direction[None], loss.bends(*given), full=False)
    close(found.flatten(), jacobian.T @ (bend * (jacobian @ along)) + 0.01 * along, rtol=1e-9, atol=1e-12)


def test_the_change_of_a_pair_with_its_noise_words_is_its_derivative(chunks):
    given, along, noise = tables(7), tables(8), torch.as_tensor(pairs().noise)

    def pair(words, contexts):
        scores = words @ contexts.T
        return softplus(-scores) + pairs().sampling.negatives * (softplus(scores) @ noise)[:, None]

    loss, rows = ExpectedLoss.of(pairs(), 0.01, torch.float64), torch.tensor([3, 5])
    found = loss.pair_changes(rows, torch.stack(given), torch.stack(along))
    close(found, jvp(pair, given, along)[1][rows], rtol=1e-10, atol=1e-13)


def test_without_any_sentence_only_the_l2_term_is_left():
    loss = ExpectedLoss.of(pairs(), 0.3, torch.float64, pairs().all.minus(pairs().all))
    given = tables(9)
    found, *gradient = loss.value_and_gradient(*given)
    assert found == pytest.approx(0.15 * float(flat(given).square().sum()), rel=1e-12)
    close(flat(gradient), 0.3 * flat(given))


# Training


def same(one, other):
    return torch.equal(one.word_vectors, other.word_vectors) and torch.equal(one.context_vectors, other.context_vectors)


@pytest.mark.parametrize("kind", ["ones", "without", "fractions"])
def test_training_ends_where_the_gradient_vanishes_and_is_the_same_every_time(kind):
    weights = torch.as_tensor(some_weights(kind))
    model, ended = training().fit(weights)
    value = formula(pairs().weighted(weights.numpy()), training().l2)
    assert ended.gradient_norm <= 1e-9
    assert ended.value == pytest.approx(float(value(flat(model.parameters()))), rel=1e-12)
    assert float(grad(value)(flat(model.parameters())).norm()) < 1e-8
    assert same(training()(weights), model)
    assert kind != "ones" or same(training().train(), model)


def test_training_from_the_trained_model_ends_at_the_same_scores():
    weights = torch.ones(pairs().corpus.n)
    weights[7] = 0
    anew, near = training().train(weights), training().starting_from(trained()).train(weights)
    close(products(near), products(anew), rtol=0, atol=1e-5)


def test_training_from_its_own_end_takes_no_step_and_gives_another_model():
    model, ended = training().starting_from(trained()).fit()
    assert ended.steps == 0
    assert same(model, trained())
    assert model.word_vectors.data_ptr() != trained().word_vectors.data_ptr()


def test_training_that_is_cut_short_says_so():
    with pytest.warns(NotConvergedWarning, match="max_steps"):
        assert ExpectedTraining(pairs(), D, max_steps=2).fit()[1].steps == 2


def test_single_precision_comes_near():
    single = ExpectedTraining(pairs(), D, seed=1, dtype=torch.float32).train()
    assert single.word_vectors.dtype == torch.float32
    close(walks.likeness(single).double(), walks.likeness(trained()), rtol=0, atol=0.02)


# Checkpoints


@pytest.fixture
def interrupted(tmp_path):
    """A file that a training left behind when the user stopped it."""

    def stopped(which):
        write = expected_module._Checkpoint.write

        def stops(kept, number, point):
            write(kept, number, point)
            if number == 12:
                raise KeyboardInterrupt

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(expected_module._Checkpoint, "write", stops)
            with pytest.raises(KeyboardInterrupt):
                which.fit(checkpoint=tmp_path / "kept")
        assert (tmp_path / "kept").exists()
        return tmp_path / "kept"

    return stopped


def test_training_that_was_interrupted_goes_on_and_removes_its_file(interrupted):
    file = interrupted(training())
    model, ended = training().fit(checkpoint=file)
    assert ended.evaluations < training().fit()[1].evaluations
    assert ended.steps > ended.evaluations - 2  # those before it was stopped are counted
    close(products(model), products(trained()), rtol=0, atol=1e-5)
    assert not file.exists()


@pytest.mark.parametrize(
    "other",
    [
        lambda: ExpectedTraining(pairs(), D, seed=2, tolerance=1e-9),
        lambda: ExpectedTraining(pairs(), D, seed=1, prior=2.0, tolerance=1e-9),
        lambda: ExpectedTraining(pairs(), D + 1, seed=1, tolerance=1e-9),
        lambda: ExpectedTraining(Pairs(pairs().corpus, Sampling(window=2)), D, seed=1, tolerance=1e-9),
    ],
    ids=["seed", "prior", "dimensions", "sampling"],
)
def test_a_checkpoint_of_another_training_is_passed_over(interrupted, other):
    file = interrupted(other())
    assert same(training().fit(checkpoint=file)[0], trained())
    assert not file.exists()


def test_a_checkpoint_of_other_weights_is_passed_over(interrupted):
    weights = torch.as_tensor(some_weights("without"))
    assert same(training().fit(weights, checkpoint=interrupted(training()))[0], training().train(weights))


@pytest.mark.parametrize("content", [b"", b"no such thing", b"\xff" * 64, None])
def test_a_damaged_checkpoint_is_passed_over(interrupted, content):
    file = interrupted(training())
    file.write_bytes(file.read_bytes()[:-8] if content is None else content)
    assert same(training().fit(checkpoint=file)[0], trained())


# Refusals


def weights_with(value):
    weights = torch.ones(pairs().corpus.n)
    weights[4] = value
    return weights


@pytest.mark.parametrize(
    ("weights", "says"),
    [
        (torch.ones(3), r"needed \(240,\)"),
        (torch.ones(240, 1), r"needed \(240,\)"),
        (weights_with(torch.nan), "nan for sentence 4; needed finite"),
        (weights_with(torch.inf), "inf for sentence 4; needed finite"),
        (weights_with(-1.0), "-1 for sentence 4; needed finite"),
    ],
)
def test_weights_that_are_none_are_refused(weights, says):
    with pytest.raises(DataError, match=says):
        training().train(weights)


@pytest.mark.parametrize(
    "wrong",
    [{"prior": 0.0}, {"prior": torch.inf}, {"max_steps": 0}, {"dimensions": 0}, {"tolerance": torch.nan}],
    ids=str,
)
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="needed"):
        ExpectedTraining(pairs(), **{"dimensions": D, **wrong})


def with_nan(model):
    words = model.word_vectors.detach().clone()
    words[model.index["cat"], 0] = torch.nan
    return SkipGram(model.words, words, model.context_vectors.detach())


@pytest.mark.parametrize(
    ("start", "kind", "says"),
    [
        (lambda: with_nan(trained()), NonFiniteError, "'cat'"),
        (lambda: SkipGram.initial(list("abcdefghijklmn"), D), CorpusError, "14 only in the model"),
        (lambda: SkipGram.initial(list(map(str, range(28))), D), CorpusError, "28 only in the model"),
        (lambda: SkipGram.initial(trained().words, D + 2), CorpusError, "length 5; needed dimensions=3"),
        (lambda: trained().only(trained().words[::-1]), CorpusError, r"another order.*words=model\.words"),
    ],
    ids=["a NaN", "other words", "more words", "another length", "another order"],
)
def test_a_start_that_does_not_fit_is_refused(start, kind, says):
    with pytest.raises(kind, match=says):
        training().starting_from(start())


def test_a_corpus_without_pairs_is_refused():
    with pytest.raises(CorpusError, match="holds two words"):
        Pairs(corpus_of(["ant", "bee"]))
