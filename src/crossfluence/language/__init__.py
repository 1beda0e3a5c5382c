"""Language models: losses, questions and measures of bias for models of transformers."""

import importlib as _importlib
import typing as _typing

__all__ = [
    "Association",
    "Question",
    "Recorder",
    "association",
    "causal_loss",
    "class_logit",
    "classification_loss",
    "contrast",
    "crows_pairs",
    "dpo_loss",
    "embeddings",
    "in_batch_contrastive",
    "log_probability",
    "masked_loss",
    "pair_preference",
    "pronoun_preference",
    "recipe",
    "risk_of",
    "seat",
    "similarity",
    "stereoset",
    "winobias",
    "with_reference",
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
