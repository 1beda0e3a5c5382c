"""Comparison of the loss of a risk with the one that its record's training minimised, by lengths of gradients."""

from __future__ import annotations

from .._curvature.scale import squared_gradients
from .._risk.risk import Risk

SHORT, LONG = 1 / 2, 3.0  # the last steps' gradients over those of the loss: outside, it is another loss


def gradient_ratio(risk: Risk) -> float:
    r"""Length of the training's last gradients over that of the gradients that batches of the risk's loss have.

    $\lVert g\rVert^2 + \sigma^2/b\cdot(n - b)/(n - 1)$ is the mean squared length of the gradient of random batches,
    with the variance $\sigma^2$ of the samples' gradients by random signs: one pass over the data.

    Args:
        risk: With a record.

    Returns:
        About 1 if the training minimised this loss; 1 where the record does not tell, or samples were taken out.
    """
    known = None if risk.record is None else risk.record.batch_gradient
    if known is None or not bool((risk.weights == 1).all()):
        return 1.0
    size, length = known
    own = float(risk.gradient.double().square().sum())
    mean = risk.gradient - risk.decay * risk.layout.flatten(risk.theta)
    spread = max(0.0, float(squared_gradients(risk).sum()) - float(mean.double().square().sum()))
    batch = risk.n if size is None else min(size, risk.n)
    whole = own + spread / batch * (risk.n - batch) / max(risk.n - 1, 1)
    return length / whole**0.5 if whole > 0 else 1.0


def other_loss(risk: Risk) -> str:
    """Says as a clause that the training minimised another loss; empty if it may have been this one."""
    known = None if risk.record is None else risk.record.batch_gradient
    if known is None:
        return ""
    ratio, longest = gradient_ratio(risk), float("inf") if known[0] is None else LONG  # of any size: any longer
    if SHORT <= ratio <= longest:
        return ""
    return (
        f"the gradients of the training's last steps were {ratio:.2g} times as long as those of this loss, so that it "
        f"trained on another one, such as a mean over tokens for a sum, and sizes are off by as much"
    )
