"""Which training samples made a model behave as it does, for any loss and any question, checked by training again."""

from ._compare import Agreement, Estimate, compare
from ._data import Batches, batches
from ._ensemble import ensemble
from ._errors import CrossfluenceError
from ._influence import influence, self_influence
from ._losses import FieldLoss, OnOutputs, WeightedLoss
from ._objective import each_of, mean_over
from ._plan import Plan, plan
from ._risk import Risk
from ._scores import Scores, SolveReport
from ._verdict import Verdict
from .actions.outcome import Outcome
from .actions.remove import remove
from .actions.steps import amplify, undo
from .actions.unlearn import unlearn
from .curvature.base import Relative
from .curvature.field import FieldJacobian
from .curvature.fisher import EmpiricalFisher, Fisher
from .curvature.gauss_newton import GaussNewton
from .curvature.hessian import Hessian
from .solvers.auto import Auto
from .solvers.base import load_inverse
from .solvers.cg import CG
from .solvers.ekfac import EKFAC
from .solvers.exact import Exact
from .solvers.gmres import GMRES
from .solvers.horizon import Horizon
from .solvers.identity import Identity
from .solvers.jacobi import Jacobi
from .solvers.lissa import LiSSA
from .solvers.low_rank import LowRank
from .solvers.nystrom import Nystrom
from .training.bank import Bank
from .training.checkpoints import tracin
from .training.data_gradient import data_gradient
from .training.lds import LDS, lds
from .training.optimizers import SGD, Adam, AdamW
from .training.recipe import Recipe
from .training.record import TrainingRecord
from .training.recorder import Recorder
from .training.removals import RemovalCurve, removal_curve
from .training.replay import replay
from .training.retrain import leave_out
from .training.schedules import StepDecay, WarmUp, cosine, linear
from .training.smoothness import smoothness
from .training.source import source

__all__ = [
    "Adam",
    "AdamW",
    "Agreement",
    "Auto",
    "Bank",
    "Batches",
    "CG",
    "CrossfluenceError",
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
    "Jacobi",
    "LDS",
    "LiSSA",
    "LowRank",
    "Nystrom",
    "OnOutputs",
    "Outcome",
    "Plan",
    "Recipe",
    "Recorder",
    "Relative",
    "RemovalCurve",
    "Risk",
    "SGD",
    "Scores",
    "SolveReport",
    "StepDecay",
    "TrainingRecord",
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
    "lds",
    "leave_out",
    "linear",
    "load_inverse",
    "mean_over",
    "plan",
    "removal_curve",
    "remove",
    "replay",
    "self_influence",
    "smoothness",
    "source",
    "tracin",
    "undo",
    "unlearn",
]
