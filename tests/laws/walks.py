"""Skip-gram on walks through a random graph of words: trained once, beside the formula and the generic risk."""

from functools import cache

import numpy as np
import torch
from grid import normal
from torch.nn.functional import cosine_similarity, softplus

import crossfluence as cf
from crossfluence.words.corpus.pairs import PairCounts, Pairs, Sampling
from crossfluence.words.corpus.vocabulary import corpus_of
from crossfluence.words.skipgram import ExpectedTraining, SkipGram, WordBlocks

WORDS = ["ant", "bee", "cat", "dog", "elk", "fox", "gnu", "hen", "ibis", "jay", "koi", "lark", "mole", "newt"]
D = 3
PRECISE = cf.CG(rtol=1e-10, max_steps=2_000, preconditioner=WordBlocks())


@cache
def texts(count=240, seed=0):
    generator = np.random.default_rng(seed)
    chain = generator.dirichlet(np.full(len(WORDS), 0.3), size=len(WORDS))
    found = []
    for _ in range(count):
        walk = [int(generator.integers(len(WORDS)))]
        for _ in range(generator.integers(9)):
            walk.append(int(generator.choice(len(WORDS), p=chain[walk[-1]])))
        found.append(" ".join(WORDS[word] for word in walk))
    return tuple(found)


@cache
def pairs():
    return Pairs(corpus_of(texts()), Sampling(window=3, negatives=2, subsample=0.05))


@cache
def training():
    return ExpectedTraining(pairs(), D, seed=1, tolerance=1e-9)


@cache
def trained():
    return training().train()


@cache
def risk():
    return training().risk(trained())


def tables(seed, size=14):
    return 0.7 * normal(size, D, seed=seed), 0.7 * normal(size, D, seed=seed + 100)


def flat(parts):
    return torch.cat([part.detach().flatten() for part in parts])


def split(point):
    half = len(point) // 2
    return point[:half].view(-1, D), point[half:].view(-1, D)


def products(model):
    return (model.word_vectors @ model.context_vectors.T).detach()


def turned(model, seed):
    """The same embedding, rotated."""
    d = model.word_vectors.shape[1]
    angle = normal(d, d, seed=seed)
    turn = torch.linalg.matrix_exp(angle - angle.T)
    return SkipGram(model.words, *(table.detach() @ turn for table in model.parameters()))


def likeness(model):
    row = {word: i for i, word in enumerate(model.words)}
    return cosine_similarity(model.word_vectors[row["cat"]], model.word_vectors[row["fox"]], dim=0)


def likenesses(model):
    row = {word: i for i, word in enumerate(model.words)}
    near = cosine_similarity(model.word_vectors[row["ant"]], model.word_vectors[row["hen"]], dim=0)
    return {"cat and fox": likeness(model), "ant and hen": near}


def dense(counts: PairCounts):
    full = torch.zeros(counts.size, counts.size, dtype=torch.float64)
    full[torch.as_tensor(counts.rows), torch.as_tensor(counts.columns).long()] = torch.as_tensor(counts.values)
    return full


def formula(counts, l2):
    """The loss as it stands, over all pairs of words, as a function of one flat point."""
    seen, noise = dense(counts), torch.as_tensor(pairs().noise)
    made_up = pairs().sampling.negatives * seen.sum(1, keepdim=True) * noise

    def value(point):
        words, contexts = split(point)
        scores = words @ contexts.T
        summed = (seen * softplus(-scores) + made_up * softplus(scores)).sum()
        return summed / pairs().all.total + l2 / 2 * point.square().sum()

    return value


@cache
def counts_of_sentences():
    """Pair counts of each sentence, shape (n, V, V); `test_pair_counts` holds the slow loop that they come from."""
    return torch.stack([dense(pairs().weighted(row)) for row in np.eye(pairs().corpus.n)])


def generic_risk(model, l2):
    """The same risk as a loss per sentence, differentiated by PyTorch."""
    counts, noise = counts_of_sentences(), torch.as_tensor(pairs().noise)
    scale, negatives = len(counts) / counts.sum(), pairs().sampling.negatives

    def scores(model, batch):
        return (model.word_vectors @ model.context_vectors.T).expand(len(batch), -1, -1)

    def losses(scores, batch):
        seen = (batch * softplus(-scores)).sum((1, 2))
        return scale * (seen + negatives * (batch.sum(2) * (softplus(scores) @ noise)).sum(1))

    return cf.Risk(model, cf.OnOutputs(scores, losses), cf.batches(counts), l2=l2, ids=pairs().corpus.ids)
