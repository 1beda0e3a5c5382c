"""Cluster memberships explained: deep embedded clustering and questions about it."""

import importlib as _importlib
import typing as _typing

__all__ = [
    "ClusterSettings",
    "DEC",
    "Explanation",
    "Settled",
    "anchored_target",
    "assignments",
    "divergence",
    "encoder",
    "explain",
    "fixed_target_loss",
    "log_assignment",
    "margin",
    "moving_target",
    "pretrain",
    "settled",
    "start_centres",
    "target",
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
