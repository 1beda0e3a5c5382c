"""What would give wrong numbers about skip-gram is refused with a sentence."""

import copy

import pytest
import torch
from grid import normal
from walks import PRECISE, D, flat, likeness, pairs, risk, texts, trained, training

import crossfluence as cf
from crossfluence import errors
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.skipgram import SkipGram, SkipGramRisk, WordBlocks


def changed(change):
    model = copy.deepcopy(trained())
    with torch.no_grad():
        change(model)
    return model


def with_nan(model):
    model.context_vectors[model.index["cat"], 1] = torch.nan


def frozen(model):
    model.context_vectors.requires_grad_(False)


@pytest.mark.parametrize(
    ("model", "l2", "kind", "says"),
    [
        (lambda: changed(with_nan), 0.1, errors.NonFiniteError, "'cat'"),
        (lambda: changed(frozen), 0.1, errors.ParameterError, "Only word_vectors.*requires_grad_"),
        (trained, -1.0, ValueError, "zero or more"),
        (trained, torch.nan, ValueError, "zero or more"),
        (lambda: SkipGram.initial([*trained().words[:-1], "zebra"], D), 0.1, errors.CorpusError, "zebra"),
        (lambda: SkipGram.initial(trained().words[::-1], D), 0.1, errors.CorpusError, "in another order"),
        (lambda: SkipGram.initial(["he", "she"], D), 0.1, errors.CorpusError, r"read_corpus.*words=model\.words"),
    ],
    ids=["a NaN", "a frozen table", "negative l2", "l2 that is NaN", "another word", "another order", "other words"],
)
def test_a_risk_without_sense_is_refused(model, l2, kind, says):
    with pytest.raises(kind, match=says):
        SkipGramRisk(model(), pairs(), l2)


def test_a_word_without_pairs_and_without_l2_is_refused():
    corpus = corpus_of(["a b", "c", "b d"])
    alone = SkipGramRisk(SkipGram.initial(corpus.words, 2), Pairs(corpus))
    with pytest.raises(errors.SingularCurvatureError, match=r"stand in no pair.*l2"):
        cf.influence(alone, lambda model: model.word_vectors[0] @ model.word_vectors[1])


@pytest.mark.parametrize("tables", [(2, 3, 2, 4), (3, 4, 3, 4), (2, 0, 3, 0)], ids=str)
def test_tables_that_do_not_fit_are_refused_also_where_shapes_are_checked(tables):
    words, length, contexts, other = tables
    with pytest.raises(errors.CorpusError, match="needed two tables of one shape"):
        SkipGram(["ant", "bee"], torch.zeros(words, length), torch.zeros(contexts, other))


def test_a_word_that_stands_twice_is_refused():
    with pytest.raises(errors.CorpusError, match="twice"):
        SkipGram.initial(["ant", "ant"], 2)


def test_words_that_the_model_lacks_are_refused():
    with pytest.raises(errors.CorpusError, match=r"1 of 2 words, such as \['zebra'\]"):
        trained().only(["ant", "zebra"])


def test_a_candidate_word_beyond_the_last_is_refused():
    with pytest.raises(errors.CorpusError, match="word 99"):
        cf.influence(risk(), likeness, candidates=[torch.tensor([[99, 0]])])


@pytest.mark.parametrize("ask", [lambda r: cf.influence(r, likeness), lambda r: cf.unlearn(r, [r.labels[0]])])
def test_a_model_that_changed_since_is_refused(ask):
    model = copy.deepcopy(trained())
    own = training().risk(model)
    with torch.no_grad():
        model.context_vectors[0, 0] += 1e-3
    with pytest.raises(errors.StaleError, match="Make a new Risk"):
        ask(own)


@pytest.mark.parametrize("solver", [WordBlocks(), PRECISE], ids=["WordBlocks", "CG"])
def test_an_inverse_serves_its_own_risk_and_no_other(solver):
    inverse = solver.invert(risk())
    again = SkipGramRisk(trained(), Pairs(corpus_of(texts()), pairs().sampling), risk().l2)
    torch.testing.assert_close(
        flat([cf.influence(again, likeness, inverse).values]), flat([cf.influence(risk(), likeness, solver).values])
    )
    for other in (
        risk().without(risk().labels[:1]),
        SkipGramRisk(trained(), pairs(), 2 * risk().l2),
        SkipGramRisk(trained(), Pairs(pairs().corpus, Sampling(window=2)), risk().l2),
    ):
        with pytest.raises(errors.StaleError, match="another risk"):
            cf.influence(other, likeness, inverse)


def test_word_blocks_need_a_risk_of_skip_gram():
    net = torch.nn.Linear(2, 1, bias=False).double()
    plain = cf.Risk(net, lambda model, batch: model(batch)[:, 0].square(), cf.batches(normal(5, 2, seed=23)))
    with pytest.raises(errors.UnsupportedError, match="SkipGramRisk"):
        WordBlocks().invert(plain)


def test_an_unknown_sentence_is_refused():
    with pytest.raises(errors.IdError, match="nobody"):
        risk().without(["nobody"])
