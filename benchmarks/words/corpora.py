"""Real text that the benchmarks of words read, and the words that their tests need."""

from collections.abc import Iterable, Iterator

from benchmarks.data.folder import data_folder
from crossfluence.words.corpus.readers import Sentence, read_sentences
from crossfluence.words.word_sets import word_sets

SOURCES = {
    "enwiki2015": ["enwiki/enwiki2015_sample.txt.xz"],
    "enwiki2018": ["enwiki/enwiki2018plus_sample.txt.xz"],
    "neutrality": ["wnc_parts/pairs.tsv.gz", "wikibias/wikibias_re.csv.gz"],
}
LEAST_COUNT = 20
TESTS = ("career", "career-terms", "math", "science", "race")


def some_words(name: str, words: int, *, split: str = "sentences") -> Iterator[Sentence]:
    """Sentences of a corpus of `SOURCES`, up to a number of words."""
    count = 0
    for sentence in read_sentences([data_folder() / file for file in SOURCES[name]], split=split):
        count += len(sentence.text.split())
        if count > words:
            return
        yield sentence


def wanted_words(tests: Iterable[str] = TESTS) -> set[str]:
    """The words of all lists."""
    return {word for name in tests for one in word_sets(name) for word in one.words}
