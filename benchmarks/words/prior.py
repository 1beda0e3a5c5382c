"""How strong the l2 term of skip-gram should be: held-out loss and word similarity, by prior.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.words.prior
       [--words 1000000] [--vocabulary 5000] [--dimensions 50]
"""

from dataclasses import replace

import numpy as np
import torch

from benchmarks.common.options import options
from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.corpus.vocabulary import build_corpus
from crossfluence.words.quality import held_out_loss, quality
from crossfluence.words.skipgram import ExpectedTraining

from .corpora import some_words


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", type=int, default=5_000)
    parser.add_argument("--dimensions", type=int, default=50)
    asked = parser.parse_args()
    corpus = build_corpus(some_words("enwiki2018", asked.words), max_words=asked.vocabulary)
    pairs = Pairs(corpus)
    held = np.random.default_rng(0).random(corpus.n) < 0.1
    rest = torch.as_tensor(~held).double()
    training, loss = ExpectedTraining(pairs, asked.dimensions, dtype=torch.float32), held_out_loss(pairs, held)
    for prior in (30.0, 10.0, 5.0, 3.0, 1.0):
        model = replace(training, prior=prior).train(rest)
        measured = ", ".join(f"{one.name} {one.value:.3f}" for one in quality(model))
        print(f"prior {prior:g}: held-out loss of a pair {loss(model):.4f}; {measured}", flush=True)


if __name__ == "__main__":
    main()
