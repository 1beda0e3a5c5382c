"""The whole Wikipedia sample: time and memory of training 25,000 word vectors in expectation, and of explaining them.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.words.large [--vocabulary 25000] [--dimensions 100] [--out large]

12.7 million words; a run that was stopped goes on from its checkpoint (its seconds then count from there). Processor
seconds stand beside the clock's: on a machine that does other things too, only they can be compared.
"""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.timing import peak_gigabytes
from benchmarks.data.folder import data_folder
from crossfluence.words.corpus.pairs import Pairs
from crossfluence.words.corpus.vocabulary import read_corpus
from crossfluence.words.objectives import weat
from crossfluence.words.quality import quality
from crossfluence.words.skipgram import ExpectedTraining, SkipGram
from crossfluence.words.word_sets import word_sets

from .corpora import SOURCES

FILES = (*SOURCES["enwiki2015"], *SOURCES["enwiki2018"])


class Clock:
    """Prints what a phase took since the one before."""

    def __init__(self) -> None:
        self.last = time.perf_counter(), time.process_time()

    def note(self, phase: str) -> None:
        """Wall and processor time of a phase, and the peak memory so far."""
        now = time.perf_counter(), time.process_time()
        wall, cpu = (new - old for new, old in zip(now, self.last, strict=True))
        self.last = now
        print(f"{phase}: {wall:.0f} s, processors {cpu:.0f} s, peak memory {peak_gigabytes():.2f} GiB", flush=True)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--vocabulary", type=int, default=25_000)
    parser.add_argument("--dimensions", type=int, default=100)
    parser.add_argument("--weat", nargs="+", default=["career", "career-terms"])
    parser.add_argument("--out", type=Path, default=Path("large"))
    asked = parser.parse_args()
    asked.out.mkdir(exist_ok=True)
    clock, folder = Clock(), data_folder()
    corpus = read_corpus([folder / name for name in FILES], max_words=asked.vocabulary, split="sentences")
    clock.note(f"reading {corpus}")
    training = ExpectedTraining(Pairs(corpus), asked.dimensions)
    found = len(training.pairs.all.values)
    clock.note(f"counting {found:,} pairs of words")
    kept = asked.out / "model.safetensors"
    if kept.exists():
        model = SkipGram(corpus.words, **load_file(kept))
    else:
        model, ended = training.fit(checkpoint=asked.out / "training.safetensors")
        save_file(model.state_dict(), kept)
        clock.note(f"training, {ended.steps} steps, {ended.evaluations} gradients, loss {ended.value:.6f}")
    tests = [weat(word_sets(name)[0], model.index) for name in asked.weat]
    print({test.sets.name: round(float(test(model).detach()), 3) for test in tests})
    print({one.name: round(one.value, 3) for one in quality(model)})

    def questions(of: torch.nn.Module) -> dict[str, torch.Tensor]:
        return {test.sets.name: held(of) for test, held in held_tests}

    held_tests = [(test, test.held_at(model)) for test in tests]
    scores = cf.influence(training.risk(model), questions)
    clock.note(f"scores of {scores.values.shape[0]:,} sentences, {scores.report.steps} steps")
    scores.save(asked.out / "scores.safetensors")


if __name__ == "__main__":
    main()
