"""Models of gensim in, word vectors out, and corpora that are read with the words of a model."""

import numpy as np
import pytest
import torch
from walks import texts, trained

import crossfluence as cf
from crossfluence.errors import CorpusError, ResultFileError
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.vocabulary import corpus_of, read_corpus
from crossfluence.words.skipgram import ExpectedTraining, SkipGram, SkipGramRisk
from crossfluence.words.skipgram.formats import load_word2vec, write_vectors

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")  # a short training

gensim = pytest.importorskip("gensim.models")


def word2vec(sentences=None, kind=gensim.Word2Vec, **options):
    made = {"vector_size": 4, "min_count": 1, "negative": 5, "sg": 1, "workers": 1, "seed": 0, "epochs": 1}
    return kind([text.split() for text in sentences or texts()], **made | options)


def beside(one, other):
    def score(model):
        return model.word_vectors[model.index[one]] @ model.context_vectors[model.index[other]]

    return score


def test_a_model_of_gensim_keeps_its_words_and_both_tables_as_a_copy():
    theirs = word2vec()
    ours = SkipGram.from_gensim(theirs)
    assert ours.words == tuple(theirs.wv.index_to_key)
    assert ours.context_vectors.tolist() == theirs.syn1neg.tolist()
    with torch.no_grad():
        for row, word in enumerate(ours.words):
            assert ours.word_vectors[row].tolist() == theirs.wv[word].tolist()
        ours.word_vectors.add_(1)
    assert ours.word_vectors[0].tolist() != theirs.wv.vectors[0].tolist()


@pytest.mark.filterwarnings("ignore")  # gensim's own, about these settings
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"sg": 0}, r"continuous bag of words \(sg=0\)"),
        ({"hs": 1}, r"hierarchical softmax as well \(hs=1\)"),
        ({"hs": 1, "negative": 0}, "syn1neg"),
        ({"kind": gensim.FastText}, "parts of words"),
    ],
)
def test_a_model_of_another_loss_is_refused(options, says):
    with pytest.raises(CorpusError, match=says):
        SkipGram.from_gensim(word2vec(**options))


def test_vectors_alone_are_refused():
    with pytest.raises(CorpusError, match="KeyedVectors without context vectors"):
        SkipGram.from_gensim(word2vec().wv)


def test_pairs_are_drawn_as_gensim_drew_them_or_refused():
    theirs = word2vec(window=3, negative=2, sample=1e-2, ns_exponent=0.5)
    assert Sampling.from_gensim(theirs) == Sampling(window=3, negatives=2, subsample=1e-2, power=0.5)
    for wrong, says in (({"shrink_windows": False}, "random width"), ({"ns_exponent": -0.5}, "between 0 and 1")):
        with pytest.raises(CorpusError, match=says):
            Sampling.from_gensim(word2vec(**wrong))


# Files


@pytest.mark.parametrize("ending", [".txt", ".bin", ".kv"])
def test_vectors_are_written_whole_and_read_back_word_by_word(tmp_path, ending):
    file = tmp_path / f"vectors{ending}"
    write_vectors(trained(), file)
    if ending == ".kv":
        read = gensim.KeyedVectors.load(str(file))
    else:
        read = gensim.KeyedVectors.load_word2vec_format(str(file), binary=ending == ".bin")
    assert read.index_to_key == list(trained().words)
    np.testing.assert_allclose(read.vectors, trained().word_vectors.detach().float(), rtol=1e-6)
    assert list(tmp_path.iterdir()) == [file]


def test_an_ending_that_names_no_format_is_refused(tmp_path):
    with pytest.raises(ResultFileError, match=r"must end in \.txt"):
        write_vectors(trained(), tmp_path / "vectors.npy")


def test_a_saved_model_of_gensim_is_read_and_what_is_none_is_refused(tmp_path):
    theirs = word2vec()
    theirs.save(str(tmp_path / "model"))
    theirs.wv.save(str(tmp_path / "vectors"))
    (tmp_path / "text").write_text("no model")
    ours = SkipGram.from_gensim(load_word2vec(tmp_path / "model"))
    assert torch.equal(ours.context_vectors, SkipGram.from_gensim(theirs).context_vectors)
    for wrong, says in (("vectors", "its context vectors"), ("text", "Word2Vec.save"), ("absent", "There is no file")):
        with pytest.raises(CorpusError, match=says):
            load_word2vec(tmp_path / wrong)


# A corpus that is read with the words of a model


def test_a_model_of_gensim_is_explained_on_the_corpus_that_it_was_trained_on(tmp_path):
    made = ["b a", "a b", "c d", "d c", "x y z", "z y x", "rare words only"]
    (tmp_path / "corpus.txt").write_text("\n".join(made))
    theirs = word2vec(made, min_count=2)
    model = SkipGram.from_gensim(theirs)
    corpus = read_corpus(tmp_path / "corpus.txt", words=model.words)
    assert corpus.words == model.words != corpus_of(made, min_count=2).words  # gensim orders ties in another way
    assert corpus.counts.tolist() == [theirs.wv.get_vecattr(word, "count") for word in model.words]
    assert (corpus.n, corpus.dropped) == (6, 1)
    pairs = Pairs(corpus, Sampling.from_gensim(theirs))
    assert cf.influence(SkipGramRisk(model, pairs, l2=1.0), beside("a", "b")).ids == ("1", "2", "3", "4", "5", "6")
    training = ExpectedTraining(pairs, 4, prior=0.01, start=model)
    scores = cf.influence(training.risk(training.train()), beside("a", "b")).values
    assert scores[:2].min() > scores[2:].max()  # the two sentences that say so


def test_a_corpus_with_the_words_of_a_model_has_only_those_that_occur():
    corpus = corpus_of(["he works here", "she works"], words=["she", "never", "works", "he"])
    assert corpus.words == ("she", "works", "he")
    assert corpus.counts.tolist() == [1, 2, 1]
    assert corpus.sentence(0) == ["he", "works"]
    model = SkipGram.initial(["she", "never", "works", "he"], 2)
    with pytest.raises(CorpusError, match=r"1 only in the model.*model\.only\(corpus\.words\)"):
        SkipGramRisk(model, Pairs(corpus))
    only = model.only(corpus.words)
    assert torch.equal(only.word_vectors, model.word_vectors[[0, 2, 3]])
    assert SkipGramRisk(only, Pairs(corpus)).n == 2


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["He", "She"], r"0 of the 2 given words.*tokenizer='words'.*not \['He', 'She'\]"),
        (["he", "She"], "1 of the 2 given words"),
        (["he", "he"], "stands twice"),
        ("he", "one string"),
    ],
)
def test_words_that_make_no_vocabulary_are_refused(words, says):
    with pytest.raises(CorpusError, match=says):
        corpus_of(["he works", "she works"], words=words)
