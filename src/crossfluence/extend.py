"""Names for somebody who writes a risk, a curvature, a solver or a domain package; users need none of them.

A **risk** is an `AbstractRisk`: the trained parameters, their field, its products and its derivatives by the sample
weights. A **curvature** is an `AbstractCurvature`: a product. A **solver** is an `AbstractSolver`, a setting that makes
an `AbstractInverse`; most begin with `operator(curvature, damping, risk)`. What `Auto` takes for a risk is registered:
`@preferred.register`. So are gradients of a layer of one's own, for `EKFAC`: `@layer_gradients.register`. A domain
package imports `crossfluence`, `crossfluence.errors` and this module, and nothing else.
"""

from ._autodiff.functional import isolated
from ._autodiff.params import Layout, fingerprint, trained_parameters
from ._curvature.base import AbstractCurvature, absolute, refuse_damping
from ._curvature.operator import Operator, natural_curvature, operator
from ._default.auto import preferred
from ._kronecker.recognised import layer_gradients
from ._require import AbstractTraining, require, require_question, require_risk
from ._results.ids import numbered
from ._risk.base import AbstractRisk, signed, training_modes
from ._risk.objectives import evaluate, questions
from ._solvers.base import (
    AbstractInverse,
    AbstractPairwise,
    AbstractSolver,
    QueryScores,
    Solution,
    inverse_of,
    require_symmetric,
    within,
)
from ._solvers.cost import Cost
from ._storage.archive import fitting, read_if_whole, read_tensors, stored, write_tensors
from ._storage.atomic import write_atomically
from ._storage.hashing import content_hash
from ._types import Batch, Id, Objective, Params, SampleLoss, Train

__all__ = [
    "AbstractCurvature",
    "AbstractInverse",
    "AbstractPairwise",
    "AbstractRisk",
    "AbstractSolver",
    "AbstractTraining",
    "Batch",
    "Cost",
    "Id",
    "Layout",
    "Objective",
    "Operator",
    "Params",
    "QueryScores",
    "SampleLoss",
    "Solution",
    "Train",
    "absolute",
    "content_hash",
    "evaluate",
    "fingerprint",
    "fitting",
    "inverse_of",
    "isolated",
    "layer_gradients",
    "natural_curvature",
    "numbered",
    "operator",
    "preferred",
    "questions",
    "read_if_whole",
    "read_tensors",
    "refuse_damping",
    "require",
    "require_question",
    "require_risk",
    "require_symmetric",
    "signed",
    "stored",
    "trained_parameters",
    "training_modes",
    "within",
    "write_atomically",
    "write_tensors",
]
