"""What word vectors are worth: human judgements, analogies, sentences that were held out."""

import itertools
from pathlib import Path

import numpy as np
import pytest
import torch
from gensim.test.utils import datapath
from grid import normal
from scipy.stats import spearmanr
from torch.nn.functional import cosine_similarity, softplus

from crossfluence.errors import CorpusError
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.quality import held_out_loss, quality
from crossfluence.words.skipgram import SkipGram

TEXTS = ["one two three", "two three four two", "four one", "three four one two"] * 2


def lines(name):
    return Path(datapath(name)).read_text(encoding="utf-8").splitlines()


def test_the_loss_held_out_is_that_of_its_pairs_one_by_one():
    pairs = Pairs(corpus_of(TEXTS), Sampling(window=1, negatives=3, subsample=0))
    held = np.array([False, True, True, *[False] * 5])
    model = SkipGram(pairs.corpus.words, normal(4, 3, seed=0), normal(4, 3, seed=1))
    scores = (model.word_vectors @ model.context_vectors.T).detach()
    expected = softplus(scores) @ torch.as_tensor(pairs.noise)
    rows = [[pairs.corpus.index[word] for word in TEXTS[place].split()] for place in (1, 2)]
    both = [(a, b) for row in rows for a, b in itertools.pairwise(row)]
    losses = [softplus(-scores[a, b]) + 3 * expected[a] for pair in both for a, b in (pair, pair[::-1])]
    loss = held_out_loss(pairs, held)
    assert loss(model) == pytest.approx(float(torch.stack(losses).mean()))
    assert loss(SkipGram(model.words, model.word_vectors.float(), model.context_vectors.float())) == pytest.approx(
        loss(model), rel=1e-5
    )
    with pytest.raises(CorpusError, match="0 sentences that are held out have no pairs"):
        held_out_loss(pairs, np.zeros(8, dtype=bool))


def test_similarities_and_analogies_are_those_of_the_published_sets(tmp_path):
    (tmp_path / "word_similarity").mkdir()
    judged = [line.split("\t") for line in lines("wordsim353.tsv") if line[0] != "#"]
    judged = [(a.lower(), b.lower(), float(score)) for a, b, score in judged if a != "Word 1"]
    asked = [word for line in lines("questions-words.txt")[1:40] for word in line.lower().split()]
    words = list(dict.fromkeys([word for pair in judged for word in pair[:2]] + asked))
    model = SkipGram(words, normal(len(words), 6, seed=2), normal(len(words), 6, seed=3))
    (tmp_path / "word_similarity" / "EN-MEN-TR-3k.txt").write_text(
        "".join(f"{a} {b} {10 - score}\n" for a, b, score in judged)
    )
    found = {one.name: one for one in quality(model, data=tmp_path)}
    v, rows = model.word_vectors.detach(), model.index
    cosines = [float(cosine_similarity(v[rows[a]], v[rows[b]], dim=0)) for a, b, _ in judged]
    correlation = spearmanr(cosines, [score for _, _, score in judged]).statistic
    assert found["WordSim-353"].used == len(judged) == 353
    assert found["WordSim-353"].value == pytest.approx(correlation, abs=1e-6)
    assert found["MEN"].value == pytest.approx(-correlation, abs=1e-6)
    assert found["analogies"].used >= 39
    assert "MEN" not in {one.name for one in quality(model, data=tmp_path / "elsewhere")}
