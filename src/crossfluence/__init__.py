"""Which training samples made a model behave as it does, for any loss and any question, checked by training again."""

from ._actions.outcome import Outcome
from ._actions.recommend import Recommendation, recommend
from ._actions.remove import remove
from ._actions.steps import amplify, undo
from ._actions.unlearn import unlearn
from ._actions.what_if import what_if
from ._attribution.data_gradient import data_gradient
from ._attribution.influence import influence, self_influence
from ._attribution.kernels import NTK, InfluenceKernel, LastLayer
from ._attribution.plan import Plan, plan
from ._attribution.replay import replay
from ._attribution.representers import Representers, representers
from ._attribution.source import source
from ._attribution.tracin import tracin
from ._curvature.base import Relative, Trained
from ._curvature.fisher import EmpiricalFisher, Fisher
from ._curvature.gauss_newton import GaussNewton
from ._curvature.hessian import FieldJacobian, Hessian
from ._data.batches import Batches, batches
from ._default.auto import Auto
from ._evaluation.lds import LDS, lds
from ._evaluation.leave_out import leave_out
from ._evaluation.model_cache import Bank
from ._evaluation.qld import QLD, qld
from ._evaluation.removal_curve import RemovalCurve, removal_curve
from ._evaluation.smoothness import smoothness
from ._evaluation.suggestions import SuggestedChange, Suggestions
from ._horizon.horizon import Horizon
from ._index.index import Index
from ._kronecker.ekfac import EKFAC, KFAC, BlockDiagonal, Diagonal
from ._kronecker.identity import Identity
from ._losses import FieldLoss, OnOutputs, WeightedLoss
from ._results.agreement import Agreement, Estimate, compare
from ._results.ensemble import ensemble
from ._results.invariant import invariant, suspected
from ._results.scores import Scores, SolveReport
from ._results.verdict import Verdict
from ._risk.objectives import each_of, mean_over
from ._risk.parameters import parameters
from ._risk.risk import Risk
from ._solvers.base import load_inverse
from ._solvers.cg import CG
from ._solvers.exact import Exact
from ._solvers.gmres import GMRES
from ._solvers.jacobi import Jacobi
from ._solvers.lissa import LiSSA
from ._solvers.low_rank import LowRank
from ._solvers.nystrom import Nystrom
from ._training.optimizers import SGD, Adam, AdamW
from ._training.recipe import Recipe
from ._training.record import TrainingRecord
from ._training.recorder import Recorder
from ._training.schedules import StepDecay, WarmUp, cosine, linear
from ._training.state import TrainingState
from .errors import CrossfluenceError

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
    "tracin",
    "undo",
    "unlearn",
    "what_if",
]
