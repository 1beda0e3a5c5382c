"""Skip-gram from its counts, against the written-out formula and against training again."""

import numpy as np
import pytest
import torch
from torch.func import grad, hessian
from torch.nn.functional import cosine_similarity, softplus

import crossfluence as cf
from crossfluence._errors import CorpusError, DataError, NotConvergedWarning, StaleError, UnsupportedError
from crossfluence.corpus.pairs import Pairs, Sampling, pair_counts
from crossfluence.corpus.vocabulary import corpus_of
from crossfluence.models.skipgram import ExpectedTraining, SampledTraining, SkipGram, SkipGramRisk, WordBlocks
from crossfluence.models.skipgram import expected as expected_module
from crossfluence.models.skipgram.loss import ExpectedLoss, representatives
from crossfluence.models.skipgram.rotations import Rotations
from crossfluence.models.skipgram.sampled import step

WORDS = ["aa", "bb", "cc", "dd", "ee", "ff", "gg", "hh", "ii", "jj", "kk", "ll"]


def texts(seed=0, sentences=120):
    """Walks through a random graph of words."""
    random = np.random.default_rng(seed)
    moves = np.exp(random.normal(size=(12, 12)) * 1.5)
    moves /= moves.sum(1, keepdims=True)
    made = []
    for _ in range(sentences):
        walk = [random.integers(12)]
        for _ in range(random.integers(2, 8)):
            walk.append(random.choice(12, p=moves[walk[-1]]))
        made.append(" ".join(WORDS[word] for word in walk))
    return made


@pytest.fixture(scope="module")
def pairs():
    return Pairs(corpus_of(texts(sentences=400)), Sampling(window=2, negatives=3, subsample=0))


@pytest.fixture(scope="module")
def training(pairs):
    return ExpectedTraining(pairs, 3, prior=20.0, tolerance=1e-10)


@pytest.fixture(scope="module")
def model(training):
    return training.train()


@pytest.fixture(scope="module")
def risk(training, model):
    return training.risk(model)


def question(model):
    return cosine_similarity(model.word_vectors[0], model.word_vectors[1], dim=0)


def split(flat, like):
    half = len(flat) // 2
    return flat[:half].view(like.word_vectors.shape), flat[half:].view(like.word_vectors.shape)


def formula(pairs, l2, counts):
    """F of one flat vector, all pairs written out."""
    full = torch.zeros(counts.size, counts.size, dtype=torch.float64)
    full[counts.rows, counts.columns] = torch.as_tensor(counts.values)
    noise = pairs.sampling.negatives * full.sum(1, keepdim=True) * torch.as_tensor(pairs.noise)

    def risk_at(flat):
        words, contexts = flat.view(2, counts.size, -1)
        scores = words @ contexts.T
        total = (full * softplus(-scores) + noise * softplus(scores)).sum()
        return total / pairs.all.total + l2 / 2 * flat.square().sum()

    return risk_at, full + noise


@pytest.fixture(params=["in one", "row by row"])
def parts(request, monkeypatch):
    if request.param == "row by row":
        monkeypatch.setattr("crossfluence.models.skipgram.loss.NUMBERS_AT_ONCE", 1)


def test_value_derivatives_and_blocks_are_those_of_the_formula(pairs, parts):
    weights = np.ones(pairs.corpus.n)
    weights[3:] = np.random.default_rng(0).integers(0, 2, pairs.corpus.n - 3) * 0.5
    counts, l2, d = pairs.weighted(weights), 1e-2, 3
    generator = torch.Generator().manual_seed(1)
    flat, along = torch.randn(2, 2 * counts.size * d, generator=generator, dtype=torch.float64)
    loss = ExpectedLoss.of(pairs, l2, torch.float64, counts)
    tables, direction = flat.view(2, counts.size, d), along.view(2, counts.size, d)
    risk_at, both = formula(pairs, l2, counts)
    value, *gradient = loss.value_and_gradient(*tables)
    torch.testing.assert_close(torch.tensor(value), risk_at(flat).float(), rtol=1e-6, atol=0)
    torch.testing.assert_close(torch.stack(gradient).flatten(), grad(risk_at)(flat))
    assert loss.value(*tables) == pytest.approx(value)
    matrix = hessian(risk_at)(flat)
    found = loss.curvature_products(tables, direction[None], loss.bends(*tables), full=True)
    torch.testing.assert_close(found.flatten(), matrix @ along)
    share = torch.sigmoid(tables[0] @ tables[1].T)
    jacobian = torch.func.jacrev(lambda x: x.view(2, counts.size, d)[0] @ x.view(2, counts.size, d)[1].T)(flat)
    jacobian = jacobian.reshape(-1, len(flat))
    bend = (both * share * (1 - share)).flatten() / pairs.all.total
    gauss_newton = jacobian.T @ (bend[:, None] * jacobian) + l2 * torch.eye(len(flat), dtype=torch.float64)
    found = loss.curvature_products(tables, direction[None], loss.bends(*tables), full=False)
    torch.testing.assert_close(found.flatten(), gauss_newton @ along)
    blocks = torch.cat(loss.blocks(*tables))
    for row in range(2 * counts.size):
        where = slice(row * d, (row + 1) * d)
        torch.testing.assert_close(blocks[row], matrix[where, where])


def test_blocks_of_large_vocabularies_are_estimated_and_precondition_as_well(risk, monkeypatch):
    exact = torch.cat(risk.word_blocks())
    monkeypatch.setattr("crossfluence.models.skipgram.loss.FREQUENT", 4)
    monkeypatch.setattr("crossfluence.models.skipgram.loss.RARE", 4)
    chosen, share = representatives(12)
    assert chosen.tolist() == [0, 1, 2, 3, 5, 7, 9, 11]
    assert share.tolist() == [1, 1, 1, 1, 2, 2, 2, 2]
    estimated = torch.cat(risk.word_blocks())
    assert 0 < float((estimated - exact).norm() / exact.norm()) < 0.5
    assert torch.linalg.eigvalsh(estimated).min() >= risk.l2 * (1 - 1e-9)
    closely = cf.influence(risk, question, cf.CG(rtol=1e-9, preconditioner=WordBlocks())).values
    torch.testing.assert_close(closely, cf.influence(risk, question, cf.Exact()).values, rtol=1e-6, atol=1e-12)


def test_training_ends_where_the_gradient_vanishes_and_is_the_same_every_time(training, model, risk):
    assert float(risk.gradient.norm()) < 1e-9
    again = training.train()
    assert torch.equal(again.word_vectors, model.word_vectors)
    assert torch.equal(training.train(torch.ones(training.n)).word_vectors, model.word_vectors)


def test_sensitivity_is_the_rows_along_a_direction_and_the_change_of_the_field(risk):
    generator = torch.Generator().manual_seed(2)
    directions = torch.randn(2, risk.p, generator=generator, dtype=torch.float64)
    rows = torch.cat(list(risk.influences()))
    torch.testing.assert_close(risk.sensitivity(directions), rows @ directions.T)
    torch.testing.assert_close(risk.gradient - risk.without([risk.labels[4]]).gradient, rows[4])


def test_candidates_that_repeat_a_sentence_score_like_it(risk, pairs):
    sentences = torch.full((3, 9), -1)
    for place, row in enumerate((0, 7, 9)):
        words = [pairs.corpus.index[word] for word in pairs.corpus.sentence(row)]
        sentences[place, : len(words)] = torch.tensor(words)
    added = cf.influence(risk, question, candidates=[sentences[:2], sentences[2:]])
    own = cf.influence(risk, question).values[[0, 7, 9]]
    torch.testing.assert_close(added.values, own)


def test_a_candidate_whose_word_has_no_pairs_is_scored_like_any_other():
    corpus = corpus_of(["ant bee cat", "bee cat ant", "dog", "ant cat"])
    alone = SkipGramRisk(SkipGram.initial(corpus.words, 2), Pairs(corpus, Sampling(window=2, subsample=0)), 0.1)
    direction = torch.randn(1, alone.p, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    pair = [corpus.index["dog"], corpus.index["ant"]]
    keep, (words, contexts) = alone.pairs.keep, (alone.theta["word_vectors"], alone.theta["context_vectors"])
    counts = pair_counts(np.array(pair), np.array([0, 2]), keep, 2)
    gradient = ExpectedLoss.of(alone.pairs, 0.0, torch.float64, counts).value_and_gradient(words, contexts)[1:]
    wanted = torch.stack(gradient).flatten() @ direction[0]
    torch.testing.assert_close(alone.sensitivity_of([torch.tensor([pair])], direction)[0, 0], wanted)
    with pytest.raises(CorpusError, match="word 99"):
        alone.sensitivity_of([torch.tensor([[99, 0]])], direction)


def test_solvers_agree_and_scores_are_what_retraining_finds(risk, training, model, pairs):
    exact = cf.influence(risk, question, cf.Exact())
    closely = cf.influence(risk, question, cf.CG(rtol=1e-9, preconditioner=WordBlocks()))
    torch.testing.assert_close(closely.values, exact.values, rtol=1e-5, atol=1e-9)
    auto = cf.influence(risk, question)
    assert "skip-gram" in auto.report.notes[-1]
    assert float((auto.values - exact.values).norm() / exact.values.norm()) < 0.1
    dropped = pairs.corpus.ids[::10]
    truth = cf.leave_out(training.starting_from(model), question, dropped, n=pairs.corpus.n, ids=pairs.corpus.ids)
    found = cf.compare(exact, truth)
    assert found.pearson > 0.98
    assert 0.85 < found.slope < 1.2


def test_one_newton_step_goes_where_retraining_goes_and_does_not_rotate(risk, training, model):
    gone = list(risk.labels[:12])
    stepped = cf.unlearn(risk, gone, watch=question)
    weights = torch.ones(risk.n)
    weights[:12] = 0
    retrained = training.starting_from(model).train(weights)
    actual = float(question(retrained).detach() - question(model).detach())
    assert stepped.achieved.item() == pytest.approx(actual, rel=0.5, abs=0.01)
    before, after = (torch.stack([one.word_vectors, one.context_vectors]).detach() for one in (model, stepped.model))
    moved = (after - before)[None]
    torch.testing.assert_close(Rotations.of(before).taken_out(moved), moved)


def test_undo_lowers_and_amplify_raises_the_fit_of_the_chosen(risk):
    chosen = list(risk.labels[:5])
    only = risk.only(chosen)

    counts = only.expected.counts
    risk_at, _ = formula(risk.pairs, 0.0, counts)

    def loss(model):
        return risk_at(torch.stack([model.word_vectors, model.context_vectors]).flatten())

    assert cf.undo(risk, chosen, steps=2, lr=1e-2, watch=loss).achieved > 0
    assert cf.amplify(risk, chosen, steps=2, lr=1e-2, watch=loss).achieved < 0


def test_taking_rotations_out_is_an_orthogonal_projection():
    generator = torch.Generator().manual_seed(3)
    tables, one, other = torch.randn(3, 2, 9, 4, generator=generator, dtype=torch.float64)
    rotations = Rotations.of(tables)
    angle = one[0, :4] - one[0, :4].T
    torch.testing.assert_close(rotations.taken_out((tables @ angle)[None]), torch.zeros_like(tables)[None])
    first, second = rotations.taken_out(torch.stack([one, other]))
    torch.testing.assert_close(rotations.taken_out(first[None])[0], first)
    torch.testing.assert_close((first * other).sum(), (one * second).sum())


def test_permuting_the_sentences_permutes_the_scores(risk, model, pairs):
    made = texts(sentences=400)
    order = np.random.default_rng(4).permutation(400)
    shuffled = Pairs(corpus_of([made[row] for row in order]), pairs.sampling)
    assert shuffled.corpus.words == model.words
    scores = cf.influence(SkipGramRisk(model, shuffled, risk.l2), question)
    torch.testing.assert_close(scores.values, cf.influence(risk, question).values[order], rtol=1e-4, atol=1e-8)


def test_the_model_and_the_random_state_are_untouched(risk, model, pairs):
    before, state = model.word_vectors.detach().clone(), torch.get_rng_state()
    cf.influence(risk, question)
    cf.unlearn(risk, risk.labels[:2])
    SampledTraining(pairs, 2, epochs=1).train()
    assert torch.equal(model.word_vectors, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert model.word_vectors.grad is None


def test_a_sampled_step_is_gradient_descent_on_the_summed_loss(model):
    generator = torch.Generator().manual_seed(5)
    centres, observed = torch.randint(0, 12, (2, 8), generator=generator)
    noise = torch.randint(0, 12, (8, 3), generator=generator)
    weights = torch.rand(8, generator=generator, dtype=torch.float64)
    tables = torch.stack([model.word_vectors.detach(), model.context_vectors.detach()])

    def loss(both):
        own, contexts = both[0][centres], both[1]
        positive = softplus(-(own * contexts[observed]).sum(1))
        negative = softplus((own[:, None] * contexts[noise]).sum(2)).sum(1)
        return (weights * (positive + negative)).sum()

    wanted = tables - 0.1 * grad(loss)(tables)
    words, contexts = tables.clone()
    step(words, contexts, centres, observed, noise, weights, 0.1)
    torch.testing.assert_close(torch.stack([words, contexts]), wanted)


def test_sampled_training_is_fixed_by_its_seed_and_weights(pairs):
    def trained(seed, weights=None):
        return SampledTraining(pairs, 4, epochs=2, seed=seed, batch_size=50).train(weights).word_vectors

    assert torch.equal(trained(0), trained(0))
    assert torch.equal(trained(0), trained(0, torch.ones(pairs.corpus.n)))
    assert not torch.equal(trained(0), trained(1))
    without = torch.ones(pairs.corpus.n)
    without[0] = 0
    assert 0 < float((trained(0, without) - trained(0)).detach().abs().max()) < 0.1


def test_a_stopped_training_goes_on_from_its_checkpoint(pairs, model, tmp_path, monkeypatch):
    training = ExpectedTraining(pairs, 3, prior=20.0, tolerance=1e-10)
    file, written = tmp_path / "training.safetensors", []
    original = expected_module._Checkpoint.write

    def stops(self, number, point):
        original(self, number, point)
        written.append(number)
        if number == 20:
            raise KeyboardInterrupt

    monkeypatch.setattr(expected_module._Checkpoint, "write", stops)
    with pytest.raises(KeyboardInterrupt):
        training.fit(checkpoint=file)
    monkeypatch.setattr(expected_module._Checkpoint, "write", original)
    assert file.exists()
    whole = training.fit()[1]
    resumed, ended = training.fit(checkpoint=file)
    assert ended.steps < whole.steps
    assert not file.exists()
    product = resumed.word_vectors @ resumed.context_vectors.T
    torch.testing.assert_close(product, model.word_vectors @ model.context_vectors.T, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("content", [b"", b"no such thing", None])
def test_a_damaged_checkpoint_or_that_of_another_training_is_passed_over(pairs, tmp_path, content):
    file = tmp_path / "training.safetensors"
    if content is None:
        expected_module._Checkpoint(file, "another").write(10, torch.zeros(3))
    else:
        file.write_bytes(content)
    training = ExpectedTraining(pairs, 2, tolerance=1e-6)
    assert torch.equal(training.fit(checkpoint=file)[0].word_vectors, training.train().word_vectors)


def test_training_that_did_not_end_says_so(pairs):
    with pytest.warns(NotConvergedWarning, match="max_steps"):
        ExpectedTraining(pairs, 3, max_steps=2).train()


def test_single_precision_comes_near(pairs, model):
    single = ExpectedTraining(pairs, 3, prior=20.0, dtype=torch.float32).train()
    assert single.word_vectors.dtype == torch.float32
    torch.testing.assert_close(question(single).double(), question(model), rtol=0, atol=0.02)


def test_what_does_not_fit_is_refused(pairs, risk, model):
    with pytest.raises(CorpusError, match="only in the model"):
        SkipGramRisk(SkipGram.initial(["he", "she"], 3), pairs)
    with pytest.raises(DataError, match="one for each sentence"):
        ExpectedTraining(pairs, 3).train(torch.ones(3))
    with pytest.raises(DataError, match="one for each sentence"):
        SampledTraining(pairs, 3).train(torch.ones(3))
    plain = cf.Risk(torch.nn.Linear(2, 1), lambda m, b: m(b)[:, 0] ** 2, cf.batches(torch.ones(3, 2)))
    with pytest.raises(UnsupportedError, match="SkipGramRisk"):
        WordBlocks().invert(plain)
    for wrong in ({"prior": 0}, {"max_steps": 0}):
        with pytest.raises(ValueError, match="needed"):
            ExpectedTraining(pairs, 3, **wrong)
    copy = SkipGram(model.words, model.word_vectors.detach().clone(), model.context_vectors.detach().clone())
    stale = SkipGramRisk(copy, pairs, risk.l2)
    copy.word_vectors.data += 1
    with pytest.raises(StaleError, match="changed"):
        cf.influence(stale, question)


def test_tables_go_to_gensim_and_come_back(tmp_path):
    models = pytest.importorskip("gensim.models")
    theirs = models.Word2Vec([text.split() for text in texts()], vector_size=4, min_count=1, sg=1, seed=0)
    ours = SkipGram.from_gensim(theirs)
    np.testing.assert_allclose(ours.word_vectors.detach(), theirs.wv.vectors)
    np.testing.assert_allclose(ours.context_vectors.detach(), theirs.syn1neg)
    for binary in (False, True):
        ours.to_gensim().save_word2vec_format(tmp_path / "vectors", binary=binary)
        read = models.KeyedVectors.load_word2vec_format(tmp_path / "vectors", binary=binary)
        np.testing.assert_allclose(read["aa"], theirs.wv["aa"], rtol=1e-5)
    softmax = models.Word2Vec([text.split() for text in texts()], vector_size=4, min_count=1, hs=1, negative=0)
    with pytest.raises(CorpusError, match="negative"):
        SkipGram.from_gensim(softmax)


def test_conjugate_gradients_may_end_at_negative_curvature():
    class Saddle(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.at = torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))

    bends = torch.tensor([[2.0, -1.0]], dtype=torch.float64)
    saddle = cf.Risk(Saddle(), lambda model, batch: (batch * model.at**2).sum(1) / 2, cf.batches(bends))
    asked = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
    solution = cf.CG(truncate=True).invert(saddle).solve(asked)
    torch.testing.assert_close(solution.vectors, torch.tensor([[0.5, 0.0], [0.0, 0.0]], dtype=torch.float64))
    assert "negative curvature" in solution.notes[0]
    with pytest.raises(cf.CrossfluenceError, match="negative curvature"):
        cf.CG().invert(saddle).solve(asked)
