"""Which training samples made a model behave as it does, for any loss and any question, checked by training again."""

import importlib as _importlib
import typing as _typing

__version__ = "0.1.0"

__all__ = [
    "Adam",
    "AdamW",
    "Agreement",
    "Auto",
    "Bank",
    "Batches",
    "BlockDiagonal",
    "CG",
    "CrossfluenceError",
    "Diagonal",
    "EKFAC",
    "EmpiricalFisher",
    "Estimate",
    "Exact",
    "FieldJacobian",
    "FieldLoss",
    "Fisher",
    "GMRES",
    "GaussNewton",
    "Hessian",
    "Horizon",
    "Identity",
    "Index",
    "InfluenceKernel",
    "Jacobi",
    "KFAC",
    "LDS",
    "LastLayer",
    "LiSSA",
    "LowRank",
    "NTK",
    "Nystrom",
    "OnOutputs",
    "Outcome",
    "Plan",
    "QLD",
    "Recipe",
    "Recommendation",
    "Recorder",
    "Relative",
    "RemovalCurve",
    "Representers",
    "Risk",
    "SGD",
    "Scores",
    "SolveReport",
    "StepDecay",
    "SuggestedChange",
    "Suggestions",
    "Trained",
    "TrainingRecord",
    "TrainingState",
    "Verdict",
    "WarmUp",
    "WeightedLoss",
    "amplify",
    "batches",
    "compare",
    "cosine",
    "data_gradient",
    "each_of",
    "ensemble",
    "influence",
    "invariant",
    "lds",
    "leave_out",
    "linear",
    "load_inverse",
    "mean_over",
    "parameters",
    "plan",
    "qld",
    "recommend",
    "removal_curve",
    "remove",
    "replay",
    "representers",
    "self_influence",
    "smoothness",
    "source",
    "suspected",
    "tail_patch",
    "tracin",
    "undo",
    "unlearn",
    "what_if",
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
