"""Skip-gram with negative sampling: trained by samples or in expectation, explained from its counts."""

from .blocks import WordBlocks
from .debias import hard_debiased
from .expected import ExpectedTraining
from .module import SkipGram
from .risk import SkipGramRisk
from .sampled import SampledTraining

__all__ = ["ExpectedTraining", "SampledTraining", "SkipGram", "SkipGramRisk", "WordBlocks", "hard_debiased"]
