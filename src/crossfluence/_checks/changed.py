"""A loss that is no longer what it was when it was looked at: something that it refers to was changed."""

from __future__ import annotations

from torch import Tensor

from .._autodiff.functional import evaluated
from .._types import Batch, Id
from ..errors import StaleError
from .looks import ELSEWHERE, ROUNDINGS
from .loss import Examined, Subject

CHANGED = 1e-5  # share of the largest loss; what runs on other threads or another kernel differs by less


def refuse_other_losses(
    subject: Subject, examined: Examined, batch: Batch, weights: Tensor, labels: tuple[Id, ...]
) -> None:
    """Compares the losses of the first batch with those that it had at the first look.

    Args:
        subject: The loss.
        examined: What was found then.
        batch: The first of the data.
        weights: One for each of its samples, as they were then.
        labels: Of its samples.

    Raises:
        StaleError: If a loss is another one.
    """
    before = examined.losses
    if before is None or not before.numel():
        return
    look = subject.look(batch, weights, examined.precision)

    def losses(factor: float = 1.0) -> Tensor:
        at = {name: factor * part for name, part in subject.theta.items()}
        return evaluated(lambda: look.terms(at, at))[: len(before)]  # batches of tensors may have grown since

    now, allowed = losses(), max(CHANGED, ROUNDINGS * examined.precision)
    if now.shape == before.shape:
        gap = (now - before).abs().nan_to_num(float("inf"))
        if float(gap.max()) <= allowed * float(before.abs().max()):
            return
        terms = max(float(losses(factor).abs().nan_to_num(posinf=0).max()) for factor in ELSEWHERE)
        if float(gap.max()) <= allowed * terms:  # they cancel where a fit is perfect, and rounding is left
            return
        row = int(gap.argmax())
        whose = f"sample {labels[row]!r}" if subject.kind.per_sample else "the first batch"
        came = f"that of {whose} was {float(before[row]):.6g} and is {float(now[row]):.6g}"
    else:
        came = f"it had {len(before)} values for the first batch and has {len(now)}"
    raise StaleError(
        f"The loss is not what it was when the risk was made: {came}. Something that it refers to was changed since "
        f"then, such as a list, a tensor or a setting of a module. Put it back, or make a new Risk, and inverses of it."
    )
