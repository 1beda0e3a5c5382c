"""Counting pairs: against a loop over every two words, for any sentences, windows, thinning and weights."""

import numpy as np
import pytest

from crossfluence._errors import CrossfluenceError
from crossfluence.corpus import pairs as source
from crossfluence.corpus.pairs import Pairs, Sampling, neighbours, pair_counts, sentence_numbers
from crossfluence.corpus.vocabulary import corpus_of

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "koi", "lark"]


def sentences(count, *, seed, longest=9):
    """Lists of numbers of words from a random Markov chain; some sentences are a single word."""
    generator = np.random.default_rng(seed)
    chain = generator.dirichlet(np.full(len(WORDS), 0.4), size=len(WORDS))
    found = []
    for _ in range(count):
        sentence = [int(generator.integers(len(WORDS)))]
        for _ in range(generator.integers(longest)):
            sentence.append(int(generator.choice(len(WORDS), p=chain[sentence[-1]])))
        found.append(sentence)
    return found


def pairs(count=40, *, seed=0, **sampling):
    texts = (" ".join(WORDS[word] for word in sentence) for sentence in sentences(count, seed=seed))
    return Pairs(corpus_of(texts), Sampling(**sampling))


def packed(numbers):
    """Tokens and offsets."""
    tokens = np.array([word for sentence in numbers for word in sentence], dtype=np.int32)
    return tokens, np.concatenate([[0], np.cumsum([len(sentence) for sentence in numbers])]).astype(np.int64)


def slow(numbers, keep, window, weights):
    """Every word with every other within the window, from both sides."""
    counts = np.zeros((len(keep), len(keep)))
    for sentence, weight in zip(numbers, weights, strict=True):
        for i, a in enumerate(sentence):
            for j, b in enumerate(sentence):
                if i != j and abs(i - j) <= window:
                    counts[a, b] += weight * keep[a] * keep[b] * (window - abs(i - j) + 1) / window
    return counts


def dense(counts):
    table = np.zeros((counts.size, counts.size))
    np.add.at(table, (counts.rows, counts.columns), counts.values)
    return table


def unpacked(corpus):
    return [corpus.tokens[start:stop].tolist() for start, stop in zip(corpus.offsets, corpus.offsets[1:], strict=False)]


@pytest.mark.parametrize("window", [1, 2, 5, 9, 40])
@pytest.mark.parametrize("seed", [0, 1])
def test_counts_are_those_of_a_double_loop(window, seed):
    numbers, generator = sentences(30, seed=seed), np.random.default_rng(seed)
    keep, weights = generator.random(len(WORDS)), generator.random(30) * generator.integers(0, 2, 30)
    found = pair_counts(*packed(numbers), keep, window, weights)
    np.testing.assert_allclose(dense(found), slow(numbers, keep, window, weights), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("length", range(12))
@pytest.mark.parametrize("window", [1, 3, 4, 5, 6, 9, 11])
def test_a_window_may_be_longer_than_the_whole_corpus(length, window):
    sentence = [word % 5 for word in range(length)]
    found = dense(pair_counts(*packed([sentence]), np.ones(5), window))
    np.testing.assert_allclose(found, slow([sentence], np.ones(5), window, [1]), rtol=1e-12)


def test_a_word_beside_itself_counts_from_both_sides():
    assert dense(pair_counts(*packed([[0, 0]]), np.ones(2), 1)).tolist() == [[2, 0], [0, 0]]
    assert dense(pair_counts(*packed([[1, 1, 1]]), np.ones(2), 2)).tolist() == [[0, 0], [0, 5]]


def test_sentences_of_one_word_have_no_pairs():
    counts = pair_counts(*packed([[0], [1], [2], [1]]), np.ones(3), 5)
    assert counts.total == 0
    assert counts.of_word.tolist() == [0, 0, 0]


@pytest.mark.parametrize("size", [1, 2, 7, 50])
def test_counting_in_small_parts_changes_nothing(monkeypatch, size):
    numbers = sentences(25, seed=3)
    keep, weights = np.random.default_rng(4).random(len(WORDS)), np.linspace(0, 2, 25)
    whole = pair_counts(*packed(numbers), keep, 4, weights)
    monkeypatch.setattr(source, "PAIRS_AT_ONCE", size)
    parts = pair_counts(*packed(numbers), keep, 4, weights)
    assert parts.columns.tolist() == whole.columns.tolist()
    np.testing.assert_allclose(dense(parts), dense(whole), rtol=1e-12)


def test_counts_are_a_symmetric_matrix_with_its_columns_in_order():
    counts = pairs(subsample=0.05).all
    np.testing.assert_allclose(dense(counts), dense(counts).T, rtol=1e-14)
    keys = counts.rows * counts.size + counts.columns
    assert (np.diff(keys) > 0).all()
    np.testing.assert_allclose(counts.of_word, dense(counts).sum(1), rtol=1e-12)
    np.testing.assert_allclose(counts.total, dense(counts).sum(), rtol=1e-12)


@pytest.mark.parametrize("subsample", [0, 0.02, 1])
def test_words_are_kept_as_word2vec_keeps_them(subsample):
    given = pairs(subsample=subsample)
    share = given.corpus.counts / given.corpus.counts.sum()
    wanted = [1 if not subsample else min(1, (subsample / s) ** 0.5 + subsample / s) for s in share]
    np.testing.assert_allclose(given.keep, wanted, rtol=1e-12)
    np.testing.assert_allclose(given.noise, share**0.75 / (share**0.75).sum(), rtol=1e-12)


@pytest.mark.parametrize("kind", ["ones", "few left out", "few kept", "half", "none kept", "fractions", "above one"])
@pytest.mark.parametrize("subsample", [0, 0.05])
def test_weighted_sentences_are_as_if_counted_anew(kind, subsample):
    given, generator = pairs(subsample=subsample, window=3), np.random.default_rng(7)
    n = given.corpus.n
    chosen, fractions = generator.permutation(n), generator.random(n)
    weights = {
        "ones": np.ones(n),
        "few left out": np.isin(np.arange(n), chosen[:3], invert=True).astype(float),
        "few kept": np.isin(np.arange(n), chosen[:3]).astype(float),
        "half": (np.arange(n) % 2).astype(float),
        "none kept": np.zeros(n),
        "fractions": fractions * (fractions > 0.3),
        "above one": 1 + fractions,
    }[kind]
    wanted = slow(unpacked(given.corpus), given.keep, 3, weights)
    np.testing.assert_allclose(dense(given.weighted(weights)), wanted, rtol=1e-12, atol=1e-13)


def test_what_is_left_without_a_pairs_only_sentence_is_exactly_zero():
    given = Pairs(corpus_of(["ant bee cat", "dog bee", "cat bee ant", "cat dog"]), Sampling(subsample=0.1))
    index = {word: row for row, word in enumerate(given.corpus.words)}
    left = dense(given.weighted(np.array([1.0, 0.0, 1.0, 1.0])))
    assert left[index["dog"], index["bee"]] == left[index["bee"], index["dog"]] == 0
    assert left[index["dog"], index["cat"]] > 0


def test_asking_for_weighted_counts_does_not_change_those_of_the_whole():
    given = pairs()
    before = given.all.values.copy()
    weights = np.ones(given.corpus.n)
    weights[:4] = 0
    given.weighted(weights)
    assert (given.all.values == before).all()


@pytest.mark.parametrize(
    "wrong", [{"window": 0}, {"window": 2.5}, {"negatives": 0}, {"subsample": -0.1}, {"subsample": 2}, {"power": 1.5}]
)
def test_sampling_that_makes_no_sense_is_refused_by_its_name(wrong):
    with pytest.raises(ValueError, match=next(iter(wrong))):
        Sampling(**wrong)


@pytest.mark.parametrize("kind", ["few kept", "half", "fractional", "negative and large"])
def test_weighted_counts_are_the_weighted_sum_of_each_sentence_counted_alone(kind):
    random = np.random.default_rng(5)
    corpus = corpus_of(" ".join(random.choice(list("abcdef"), random.integers(1, 7))) for _ in range(24))
    given = Pairs(corpus, Sampling(window=3, subsample=0.05))
    weights = {
        "few kept": np.eye(corpus.n)[3], "half": np.arange(corpus.n) % 2.0, "fractional": random.random(corpus.n),
        "negative and large": random.normal(size=corpus.n) * 1e3,
    }[kind]  # fmt: skip
    wanted = sum(w * dense(given.weighted(row)) for w, row in zip(weights, np.eye(corpus.n), strict=True))
    np.testing.assert_allclose(dense(given.weighted(weights)), wanted, atol=1e-9)


def test_counts_taken_away_leave_exact_zeros_where_no_other_sentence_has_the_pair():
    given = Pairs(corpus_of(["a b c"] * 3 + ["a d"] + ["a b"] * 7), Sampling(window=3, subsample=0.02))
    weights = np.ones(11)
    weights[3] = 0
    rest = given.weighted(weights)
    a, d = given.corpus.index["a"], given.corpus.index["d"]
    assert rest.of_word[d] == 0
    assert dense(rest)[a, d] == 0
    assert (rest.values >= 0).all()
    np.testing.assert_array_equal(rest.columns, given.all.columns)


def test_counts_taken_away_are_exact_where_a_common_pair_almost_vanishes():
    corpus = corpus_of(["a b"] * 3000 + ["a x x x x b"])
    given = Pairs(corpus, Sampling(window=5, subsample=0))
    weights = np.zeros(corpus.n)
    weights[-1] = 1
    counted = dense(given.all.minus(given.weighted(1 - weights)))
    np.testing.assert_allclose(counted, dense(given.weighted(weights)), atol=1e-9)
    assert counted[corpus.index["a"], corpus.index["b"]] == pytest.approx(0.2)


def test_sentences_of_one_word_have_no_part_in_the_pairs_of_others():
    with_others = pair_counts(np.array([0, 1, 2, 0]), np.array([0, 1, 3, 4]), np.ones(3), 5)
    assert with_others.of_word.tolist() == [0, 1, 1]


def test_every_two_words_come_once_with_their_sentence():
    tokens, offsets = packed(sentences(30, seed=6))
    found = list(neighbours(tokens, sentence_numbers(offsets), np.ones(len(WORDS)), 3))
    per_sentence = np.bincount(np.concatenate([part[0] for part in found]), minlength=len(offsets) - 1)
    lengths = np.diff(offsets)
    np.testing.assert_array_equal(per_sentence, [sum(max(0, n - t) for t in (1, 2, 3)) for n in lengths])


def test_the_order_of_sentences_does_not_matter_to_the_counts():
    parts, random = sentences(30, seed=7), np.random.default_rng(7)
    keep = random.uniform(0.2, 1, len(WORDS))
    shuffled = pair_counts(*packed([parts[row] for row in random.permutation(30)]), keep, 4)
    np.testing.assert_allclose(dense(shuffled), dense(pair_counts(*packed(parts), keep, 4)), atol=1e-12)


@pytest.mark.xfail(strict=True, reason="weights of another shape are taken, and NaN makes pairs disappear")
@pytest.mark.parametrize("weights", [np.ones(3), np.array([1.0, np.nan])], ids=["too many", "NaN"])
def test_weights_that_are_no_weights_of_the_sentences_are_refused(weights):
    with pytest.raises(CrossfluenceError, match="weights"):
        Pairs(corpus_of(["a b", "b c"]), Sampling(subsample=0)).weighted(weights)
