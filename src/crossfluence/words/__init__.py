"""Word vectors: corpora, skip-gram, and questions about bias and clusters of words."""

import importlib as _importlib
import typing as _typing

__all__ = [
    "Corpus",
    "ExpectedTraining",
    "Given",
    "Pairs",
    "Quality",
    "SampledTraining",
    "Sampling",
    "Sentence",
    "SkipGram",
    "SkipGramRisk",
    "WEAT",
    "WordAnswer",
    "WordBlocks",
    "WordSets",
    "WordsAnswer",
    "WordsSettings",
    "analogy_margin",
    "build_corpus",
    "cluster_margin",
    "corpus_of",
    "distance",
    "explain_word",
    "explain_words",
    "find_sentences",
    "hard_debiased",
    "held_out_loss",
    "load_word2vec",
    "log_cluster",
    "moved",
    "nearest",
    "quality",
    "read_corpus",
    "read_given",
    "read_sentences",
    "weat",
    "word_sets",
    "word_vectors",
    "write_vectors",
]

if _typing.TYPE_CHECKING:
    from ._public import *
else:  # a checker would take any name for an object

    def __getattr__(name: str) -> object:
        """Imports all public names when the first is used: the command line starts without waiting for PyTorch."""
        if name not in __all__:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        public = _importlib.import_module("._public", __name__)
        globals().update({each: getattr(public, each) for each in __all__})
        return globals()[name]

    def __dir__() -> list[str]:
        return sorted({*globals(), *__all__})
