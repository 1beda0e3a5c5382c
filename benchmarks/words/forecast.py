"""The forecast of `crossfluence words` beside what really happened, on some sizes of corpus.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.words.forecast [--words 500000] [--vocabulary 1500 3000]
"""

import time

from benchmarks.common.options import options
from benchmarks.common.timing import peak_gigabytes
from crossfluence.app.forecast_words import Extent, forecast_words
from crossfluence.words.corpus.vocabulary import build_corpus
from crossfluence.words.explain_bias import WordsSettings, explain_words
from crossfluence.words.word_sets import word_sets

from .corpora import some_words, wanted_words


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--words", type=int, default=500_000)
    parser.add_argument("--vocabulary", type=int, nargs="+", default=[1_500, 3_000])
    parser.add_argument("--dimensions", type=int, default=32)
    asked = parser.parse_args()
    lists = word_sets("career-terms")
    keep = wanted_words(["career-terms"])
    for size in asked.vocabulary:
        sentences = some_words("enwiki2018", asked.words, split="lines")
        corpus = build_corpus(sentences, max_words=size, keep=keep, keep_count=5)
        settings = WordsSettings(asked.dimensions)
        said = forecast_words(Extent.of(corpus), len(lists), settings)
        began = time.perf_counter()
        answer = explain_words(corpus, lists, settings)
        took = time.perf_counter() - began
        peak = peak_gigabytes()
        phases = ", ".join(f"{name} {seconds:.0f} s" for name, seconds in answer.seconds.items())
        print(f"{size:,} words: forecast {said.seconds:.0f} s, {said.gigabytes:.2f} GiB; took {took:.0f} s", end=", ")
        print(f"{peak:.2f} GiB (steps {answer.steps}; {phases})", flush=True)


if __name__ == "__main__":
    main()
