"""The effect of one optimizer on one parameter, as a factor on a lasting gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .._autodiff.params import digest_tensors, wide
from .._horizon.moments import adam_scaling
from .._require import described, require
from .._storage.archive import stored
from .._types import Params
from ..errors import DataError, UnsupportedError
from .optimizers import SGD, AbstractOptimizer, Adam, AdamW

LATELY = 0.1  # the weight of a step in a running mean


@stored("ParameterRecord")
@dataclass(frozen=True, eq=False)
class ParameterRecord:
    """The record of one parameter tensor.

    Attributes:
        digest: Content hash of the tensor at the end; it finds the parameter in a model, whatever its name.
        rate: The sum of learning rates, each times the factor by which the gradient was clipped.
        square: Adam's second moment, bias-corrected; `None` for SGD.
        mean: The running mean of the clipped gradient with Adam's second decay rate, bias-corrected; or `None`.
        decay: The sum of learning rates times AdamW's weight decay, which is outside of the loss.
        value: The tensor itself, in segments that end before the training does.
    """

    digest: str
    rate: float
    square: Tensor | None = None
    mean: Tensor | None = None
    decay: float = 0.0
    value: Tensor | None = None


@stored("OptimizerRule")
@dataclass(frozen=True)
class Rule:
    """The optimizer's part of the formula.

    Attributes:
        name: "SGD", "Adam" or "AdamW".
        momentum: Of SGD.
        eps: Added to Adam's root.
        eps_root: Added under it.
    """

    name: str
    momentum: float = 0.0
    eps: float = 1e-8
    eps_root: float = 0.0

    @classmethod
    def of(cls, optimizer: AbstractOptimizer) -> Rule:
        """Of this library's optimizers."""
        if isinstance(optimizer, SGD):
            return cls("SGD", momentum=optimizer.momentum)
        require(optimizer, (Adam, AdamW), "TrainingRecord", "SGD, Adam or AdamW", "optimizer=crossfluence.AdamW(2e-3)")
        assert isinstance(optimizer, (Adam, AdamW))
        return cls(type(optimizer).__name__, eps=optimizer.eps, eps_root=optimizer.eps_root)

    def scaling(self, part: ParameterRecord) -> Tensor | float:
        r"""$S P \max(0, 1 - \bar g^2 P^2)$, or $S / (1 - \text{momentum})$."""
        if part.square is None:
            return part.rate / (1 - self.momentum)
        return part.rate * adam_scaling(part.square, part.mean, self.eps, self.eps_root)


class Lately:
    """A running mean of the squared length of gradients, over about the last ten steps."""

    def __init__(self) -> None:
        self.steps, self._total = 0, 0.0

    def add(self, square: float) -> None:
        """Takes the squared length of a step's gradient."""
        self.steps += 1
        self._total += (square - self._total) * max(LATELY, 1 / self.steps)

    @property
    def length(self) -> float | None:
        """The root of the mean; `None` before the first step."""
        return self._total**0.5 if self.steps else None


def second_moment(optimizer: torch.optim.Optimizer, parameter: Tensor, group: dict) -> Tensor:
    """Adam's second moment of a parameter, bias-corrected; zeros for one that never had a gradient."""
    state = optimizer.state.get(parameter, {})
    if "exp_avg_sq" not in state:
        check_state(optimizer, "exp_avg_sq")
        if not optimizer.state:
            raise DataError(
                f"The {type(optimizer).__name__} has no state: it has taken no step, or it was not loaded. Type "
                f"optimizer.load_state_dict(checkpoint[...]) first, or use TrainingRecord.from_settings(...)."
            )
        return torch.zeros_like(wide(parameter.detach()))
    return wide(state["exp_avg_sq"].detach()) / (1 - group["betas"][1] ** float(state["step"]))


def check_state(optimizer: torch.optim.Optimizer, needed: str) -> None:
    """Refuses the state of another optimizer, such as a checkpoint of one loaded into the other.

    Args:
        optimizer: As PyTorch has it.
        needed: What its own state has for a parameter.

    Raises:
        DataError: If no parameter has that, and some have something else.
    """
    held = sorted({key for state in optimizer.state.values() for key in state if state[key] is not None} - {"step"})
    if held and needed not in held:
        raise DataError(
            f"Got a {type(optimizer).__name__} whose state holds {', '.join(held)} and no {needed}: it is that of "
            f"another optimizer. Load it into the optimizer that trained, or use TrainingRecord.from_settings(risk, "
            f"optimizer=..., steps=..., batch_size=...)."
        )


def rule_of(optimizer: torch.optim.Optimizer) -> Rule:
    """The numbers of a PyTorch optimizer.

    Args:
        optimizer: `AdamW`, `Adam` or `SGD`.

    Returns:
        The same for all of its parameter groups, but for learning rates.

    Raises:
        UnsupportedError: If it is another one, or has settings that the formulas do not describe.
        DataError: If its state is that of another optimizer.
    """
    known = {torch.optim.SGD: "SGD", torch.optim.AdamW: "AdamW", torch.optim.Adam: "Adam"}
    name = next((name for kind, name in known.items() if type(optimizer) is kind), None)
    if name is None:
        raise UnsupportedError(
            f"Got {described(optimizer)} for the optimizer; the formulas describe torch.optim.SGD, Adam and AdamW. "
            f"Check groups with leave_out(train, objective, groups), or ask influence(risk, objective) with no record."
        )
    if name == "Adam" and all(group.get("decoupled_weight_decay") for group in optimizer.param_groups):
        name = "AdamW"  # newer PyTorch has one class for both
    rules = {_rule_of_group(name, group) for group in optimizer.param_groups}
    if name == "SGD" and rules != {Rule("SGD")}:
        check_state(optimizer, "momentum_buffer")
    if len(rules) > 1:
        raise UnsupportedError(
            f"The {len(optimizer.param_groups)} parameter groups differ in more than learning rate and weight decay: "
            f"{sorted(map(str, rules))[:2]}. Needed one momentum and one eps for all."
        )
    return rules.pop()


def _rule_of_group(name: str, group: dict) -> Rule:
    wrong = [option for option in ("amsgrad", "maximize", "nesterov") if group.get(option)]
    if wrong or group.get("dampening"):
        raise UnsupportedError(
            f"The {name} has {(wrong or ['dampening'])[0]}, which the formulas do not describe. Check groups with "
            f"leave_out, or ask without a record."
        )
    if name == "SGD":
        return Rule("SGD", momentum=float(group["momentum"]))
    return Rule(name, eps=float(group["eps"]))


def decay_of_group(rule: Rule, group: dict) -> float:
    """The weight decay outside of the loss; that of SGD and Adam is an l2 term of the risk."""
    return float(group["weight_decay"]) if rule.name == "AdamW" else 0.0


def weight_decay(optimizer: AbstractOptimizer, theta: Params) -> dict[str, float]:
    """The same of this library's optimizers, for each parameter."""
    return optimizer.taken(theta) if isinstance(optimizer, AdamW) else dict.fromkeys(theta, 0.0)


def digest_of(part: Tensor) -> str:
    """A content hash of a parameter, by which a record finds it again."""
    return digest_tensors([("parameter", part.detach())])
