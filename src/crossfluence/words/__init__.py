"""Word vectors: corpora, skip-gram, and questions about bias and clusters of words."""

from .association import WEAT, weat
from .corpus.corpus import Corpus
from .corpus.pairs import Pairs, Sampling
from .corpus.readers import Sentence, find_sentences, read_sentences
from .corpus.vocabulary import build_corpus, corpus_of, read_corpus
from .explain_bias import WordsAnswer, WordsSettings, explain_words
from .explain_word import WordAnswer, explain_word
from .objectives import analogy_margin, cluster_margin, distance, log_cluster, moved
from .pretrained import Given, read_given
from .quality import Quality, held_out_loss, quality
from .skipgram import ExpectedTraining, SampledTraining, SkipGram, SkipGramRisk, WordBlocks, hard_debiased
from .skipgram.formats import load_word2vec, write_vectors
from .vectors import nearest, word_vectors
from .word_sets import WordSets, word_sets

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
