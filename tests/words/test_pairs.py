"""Pair counts against a slow, obvious double loop."""

import numpy as np
import pytest

from crossfluence.words.corpus.pairs import Pairs, Sampling, pair_counts
from crossfluence.words.corpus.vocabulary import corpus_of


def slow(tokens, offsets, keep, window, weights):
    """Every two positions of a sentence, one after the other."""
    counts = np.zeros((len(keep), len(keep)))
    for number in range(len(offsets) - 1):
        sentence = tokens[offsets[number] : offsets[number + 1]]
        for i, a in enumerate(sentence):
            for j, b in enumerate(sentence):
                distance = abs(i - j)
                if 1 <= distance <= window:
                    counts[a, b] += weights[number] * keep[a] * keep[b] * (window - distance + 1) / window
    return counts


def dense(counts):
    full = np.zeros((counts.size, counts.size))
    full[counts.rows, counts.columns] = counts.values
    return full


def drawn(seed, sentences=30, size=7):
    random = np.random.default_rng(seed)
    lengths = random.integers(1, 9, sentences)
    return random.integers(0, size, lengths.sum()).astype(np.int32), np.concatenate([[0], np.cumsum(lengths)]), random


@pytest.mark.parametrize("window", [1, 2, 5, 40])
@pytest.mark.parametrize("kind", ["ones", "some zero", "fractional", "all zero"])
def test_pair_counts_are_those_of_the_double_loop(window, kind):
    tokens, offsets, random = drawn(window)
    n = len(offsets) - 1
    weights = {
        "ones": np.ones(n), "some zero": random.integers(0, 2, n).astype(float), "fractional": random.random(n),
        "all zero": np.zeros(n),
    }[kind]  # fmt: skip
    keep = random.uniform(0.2, 1, 7)
    found = pair_counts(tokens, offsets, keep, window, weights)
    np.testing.assert_allclose(dense(found), slow(tokens, offsets, keep, window, weights), atol=1e-12)


def test_counting_in_small_parts_changes_nothing(monkeypatch):
    tokens, offsets, random = drawn(3)
    keep = random.uniform(0.2, 1, 7)
    whole = dense(pair_counts(tokens, offsets, keep, 4))
    monkeypatch.setattr("crossfluence.words.corpus.pairs.PAIRS_AT_ONCE", 5)
    np.testing.assert_allclose(dense(pair_counts(tokens, offsets, keep, 4)), whole, atol=1e-12)


@pytest.mark.parametrize("left_out", [1, 5, 20, 30])
def test_leaving_sentences_out_is_counting_the_others(left_out):
    tokens, offsets, _ = drawn(4)
    corpus = corpus_of(
        " ".join("abcdefg"[t] for t in tokens[offsets[i] : offsets[i + 1]]) for i in range(len(offsets) - 1)
    )
    weights = np.ones(corpus.n)
    weights[:left_out] = 0
    pairs = Pairs(corpus, Sampling(window=3, subsample=1e-2))
    anew = pair_counts(corpus.tokens, corpus.offsets, pairs.keep, 3, weights)
    np.testing.assert_allclose(dense(pairs.weighted(weights)), dense(anew), atol=1e-12)


def test_a_corpus_shorter_than_the_window_has_pairs_all_the_same():
    assert Pairs(corpus_of(["he works"]), Sampling(window=9, subsample=0)).all.total == 2


@pytest.mark.parametrize("wrong", [{"window": 0}, {"negatives": 0}, {"window": 2.5}, {"subsample": -1}, {"power": 2}])
def test_settings_without_sense_are_refused(wrong):
    with pytest.raises(ValueError, match="needed"):
        Sampling(**wrong)
