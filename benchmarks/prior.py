"""How strong the l2 term of skip-gram should be: held-out loss and word similarity, by prior.

Usage: CROSSFLUENCE_DATA=<folder> python benchmarks/prior.py [--words 1000000] [--vocabulary 5000] [--dimensions 50]
"""

import argparse
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from words import some_words

from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.corpus.readers import read_sentences
from crossfluence.words.corpus.vocabulary import build_corpus
from crossfluence.words.quality import held_out_loss, quality
from crossfluence.words.skipgram import ExpectedTraining


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--words", type=int, default=1_000_000)
    parser.add_argument("--vocabulary", type=int, default=5_000)
    parser.add_argument("--dimensions", type=int, default=50)
    asked = parser.parse_args()
    file = Path(os.environ["CROSSFLUENCE_DATA"], "enwiki", "enwiki2018plus_sample.txt.xz")
    corpus = build_corpus(some_words(read_sentences(file, split="sentences"), asked.words), max_words=asked.vocabulary)
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
