"""What explains a model of gensim: scores at the model as it is, or after training went on from it to the minimum?

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.words.given [--words 250000] [--seeds 6]

The truth is gensim itself, trained again without a group of sentences: the change of the effect size, mean over seeds.
Groups are random ones and the strongest by either kind of scores.
"""

from collections.abc import Callable

import numpy as np
import torch
from gensim.models import Word2Vec

import crossfluence as cf
from benchmarks.common.options import options
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.vocabulary import build_corpus
from crossfluence.words.explain_bias import newton_step
from crossfluence.words.objectives import weat
from crossfluence.words.skipgram import ExpectedTraining, SkipGram, SkipGramRisk
from crossfluence.words.word_sets import word_sets

from .corpora import some_words

TEST, DIMENSIONS, EPOCHS = word_sets("career-terms")[0], 32, 10
SHARES = (0.01, 0.03)  # of the sentences, in a group


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--words", type=int, default=250_000)
    parser.add_argument("--seeds", type=int, default=6)
    asked = parser.parse_args()
    corpus = build_corpus(some_words("enwiki2018", asked.words), max_words=2_000, min_count=15)
    cut = [corpus.sentence(row) for row in range(corpus.n)]
    print(corpus)

    def gensim(kept: np.ndarray, seed: int) -> Word2Vec:
        left = [words for words, stays in zip(cut, kept, strict=True) if stays]
        return Word2Vec(left, vector_size=DIMENSIONS, min_count=1, sg=1, epochs=EPOCHS, seed=seed, workers=1)

    def effects(kept: np.ndarray) -> list[float]:
        models = [SkipGram.from_gensim(gensim(kept, seed)) for seed in range(asked.seeds)]
        return [float(weat(TEST, model.index, least=0.3)(model).detach()) for model in models]

    everything = np.ones(corpus.n, dtype=bool)
    given = SkipGram.from_gensim(gensim(everything, 0)).only(corpus.words)
    training = ExpectedTraining(Pairs(corpus, Sampling()), DIMENSIONS, start=given)
    model, ended = training.fit()
    bias, risk, whole = weat(TEST, corpus.index, least=0.5), training.risk(model), effects(everything)
    print(f"gensim {np.mean(whole):+.3f}, over seeds {np.std(whole):.3f}; this one {float(bias(given).detach()):+.3f}, "
          f"{ended.steps} steps on {float(bias(model).detach()):+.3f}")  # fmt: skip
    scores = {
        "as it is": cf.influence(SkipGramRisk(given, training.pairs, training.l2), bias.held_at(given)),
        "at the minimum": cf.influence(risk, bias.held_at(model)),
    }
    rows = []
    for name, ids in groups(scores):
        kept = ~np.isin(corpus.ids, ids)
        again = training.starting_from(model).train(torch.as_tensor(kept).double())
        before = float(bias(model).detach())
        row = {
            "gensim": np.mean(effects(kept)) - np.mean(whole),
            **{kind: -float(found.select(ids).values.sum()) for kind, found in scores.items()},
            "one Newton step": newton_step(risk, ids, bias) - before,
            "expected training": float(bias(again).detach()) - before,
        }
        rows.append(row)
        print(f"{name:40}", {kind: round(float(value), 2) for kind, value in row.items()}, flush=True)
    truth = np.array([row["gensim"] for row in rows])
    for kind in list(rows[0])[1:]:
        found = np.array([row[kind] for row in rows])
        print(f"{kind:20} Pearson {np.corrcoef(found, truth)[0, 1]:.3f}, slope {found @ truth / (found @ found):.2f}")


def groups(scores: dict[str, cf.Scores]) -> list[tuple[str, list[str]]]:
    """Random ones, and for each kind of scores those that raise and lower the effect most."""
    ids, draw = next(iter(scores.values())).ids, np.random.default_rng(0)
    effects: list[Callable] = [lambda found, n: found.top(n), lambda found, n: found.top(n, effect="lowers")]
    made = []
    for share in SHARES:
        size = int(share * len(ids))
        made.append((f"random {share}", [ids[row] for row in draw.choice(len(ids), size, replace=False)]))
        for kind, found in scores.items():
            for name, strongest in zip(("raise", "lower"), effects, strict=True):
                made.append((f"{name} {share}, {kind}", [label for label, _ in strongest(found, size)]))
    return made


if __name__ == "__main__":
    main()
