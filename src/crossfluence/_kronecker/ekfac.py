"""Four block-diagonal solvers over one Kronecker-factored fit."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import InitVar, dataclass
from typing import TYPE_CHECKING, ClassVar, Literal

from .._curvature.base import Relative, Trained
from .._curvature.fisher import AbstractFisher
from .inverse import AbstractBlockSolver


@dataclass(frozen=True)
class EKFAC(AbstractBlockSolver):
    r"""Block-diagonal: for each layer $(U_L \otimes U_R)\operatorname{diag}(\lambda)(U_L \otimes U_R)^\top$.

    $U_L$ and $U_R$ are the eigenvectors of the second moments of the layer's output gradients and inputs, and $\lambda$
    the mean squared gradients along them. Two passes over the data, whatever the number of questions.

    Blocks: weight and bias of each linear layer, convolution and embedding (a table's rows keep their own
    coordinates) have Kronecker factors; scales and shifts of normalisations, biases beside a shared weight, and other
    parameters of at most 1,024 numbers are exact; larger ones outside of these layers have the factors of
    their own gradients. A side of more than 8,192 keeps its own coordinates. The report gives the shares. Where a
    `WeightedLoss` couples samples, each sample's row, taken through its whole batch, stands for its gradient.

    Attributes:
        damping: Added to the eigenvalues of each block; `Relative(x)` is x times the block's own mean. `Trained()`
            puts the horizon of the training in its place, of the risk's record.
        curvature: Default: `Fisher()` for an `OnOutputs` loss, and `EmpiricalFisher()` for other per-sample losses.
        tolerance: Share of the scores, in root mean square, that may be missed when hundreds of questions
            (`each_of`) are answered together; 0 for none. A tenth of it may go to products in bfloat16, of layers with
            many positions, where the processor has instructions for these.
        blocks: Deprecated; type `KFAC()`, `BlockDiagonal()` or `Diagonal()` instead.
        pilot: How many random samples the fit is made of; `None` for all of them, "auto" for as many as it takes until
            the fits of two halves agree. The report says how many, and how far they agree.
        layers: Glob or globs over names of layers or parameters: others are left out, as if they had been fixed. The
            report names them.

    Example:
        >>> EKFAC(damping=1e-3)
        EKFAC(damping=0.001, curvature=None, tolerance=0.05)
        >>> EKFAC(pilot="auto")
        EKFAC(damping=Relative(factor=0.1), curvature=None, tolerance=0.05, pilot='auto')

    References:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015;
        George et al., "Fast approximate natural gradient descent in a Kronecker-factored eigenbasis", NeurIPS 2018;
        Grosse et al., "Studying large language model generalization with influence functions", 2023.
    """

    name: ClassVar[str] = "EK-FAC"
    string: ClassVar[str] = "corrected"
    damping: float | Relative | Trained = Relative(0.1)
    curvature: AbstractFisher | None = None
    tolerance: float = 0.05
    blocks: InitVar[str | None] = None
    pilot: int | Literal["auto"] | None = None  # pyright: ignore[reportIncompatibleVariableOverride]
    layers: str | Sequence[str] = "*"  # pyright: ignore[reportIncompatibleVariableOverride]

    if not TYPE_CHECKING:

        def __new__(
            cls,
            damping: float | Relative | Trained = Relative(0.1),
            curvature: AbstractFisher | None = None,
            tolerance: float = 0.05,
            blocks: str | None = None,
            pilot: int | str | None = None,
            layers: str | Sequence[str] = "*",
        ) -> AbstractBlockSolver:
            """The solver that a string stood for, until 0.3."""
            if blocks is None:
                return super().__new__(cls)
            strings = {kind.string: kind for kind in (EKFAC, KFAC, BlockDiagonal, Diagonal)}
            if blocks not in strings:
                raise ValueError(f"Got blocks={blocks!r}; needed one of {', '.join(map(repr, strings))}.")
            kind = strings[blocks]
            warnings.warn(f"EKFAC(blocks={blocks!r}) is {kind.__name__}() now.", DeprecationWarning, stacklevel=2)
            return super().__new__(cls) if kind is EKFAC else kind(damping, curvature, tolerance)

    def __post_init__(self, blocks: str | None) -> None:
        self._check()
        whole = isinstance(self.pilot, int) and not isinstance(self.pilot, bool) and self.pilot >= 2
        if self.pilot not in (None, "auto") and not whole:
            raise ValueError(f'Got pilot={self.pilot!r}; needed a number of samples, at least 2, "auto" or None.')

    def __repr__(self) -> str:
        shown = [f"damping={self.damping!r}, curvature={self.curvature!r}, tolerance={self.tolerance!r}"]
        shown += [f"pilot={self.pilot!r}"] if self.pilot is not None else []
        shown += [f"layers={self.layers!r}"] if self.layers != "*" else []
        return f"EKFAC({', '.join(shown)})"


@dataclass(frozen=True)
class KFAC(AbstractBlockSolver):
    r"""As `EKFAC`, with products of the Kronecker factors' eigenvalues for $\lambda$: one pass over the data.

    Where a layer is used at many positions, these count as samples.

    Attributes:
        damping: Added to the eigenvalues of each block; `Relative(x)` is x times the block's own mean. `Trained()`
            puts the horizon of the training in its place, of the risk's record.
        curvature: As in `EKFAC`.
        tolerance: As in `EKFAC`.

    Example:
        >>> KFAC(damping=1e-3)
        KFAC(damping=0.001, curvature=None, tolerance=0.05)

    References:
        Martens and Grosse, "Optimizing neural networks with Kronecker-factored approximate curvature", ICML 2015.
    """

    name: ClassVar[str] = "K-FAC"
    string: ClassVar[str] = "kronecker"
    by_squares: ClassVar[bool] = False
    damping: float | Relative | Trained = Relative(0.1)
    curvature: AbstractFisher | None = None
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class BlockDiagonal(AbstractBlockSolver):
    """Second moments of each layer's whole gradient, up to 8,192 numbers; larger layers as in `KFAC`. One pass.

    Attributes:
        damping: Added to the eigenvalues of each block; `Relative(x)` is x times the block's own mean. `Trained()`
            puts the horizon of the training in its place, of the risk's record.
        curvature: As in `EKFAC`.
        tolerance: As in `EKFAC`.

    Example:
        >>> BlockDiagonal(damping=1e-3)
        BlockDiagonal(damping=0.001, curvature=None, tolerance=0.05)
    """

    name: ClassVar[str] = "Block-diagonal"
    string: ClassVar[str] = "exact"
    by_squares: ClassVar[bool] = False
    in_full: ClassVar[bool] = True
    damping: float | Relative | Trained = Relative(0.1)
    curvature: AbstractFisher | None = None
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        self._check()


@dataclass(frozen=True)
class Diagonal(AbstractBlockSolver):
    """Mean squared gradients of each parameter alone: one pass over the data.

    Attributes:
        damping: Added to the eigenvalues of each block; `Relative(x)` is x times the block's own mean. `Trained()`
            puts the horizon of the training in its place, of the risk's record.
        curvature: As in `EKFAC`.
        tolerance: As in `EKFAC`.

    Example:
        >>> Diagonal(damping=1e-3)
        Diagonal(damping=0.001, curvature=None, tolerance=0.05)
    """

    name: ClassVar[str] = "Diagonal"
    string: ClassVar[str] = "diagonal"
    by_factors: ClassVar[bool] = False
    damping: float | Relative | Trained = Relative(0.1)
    curvature: AbstractFisher | None = None
    tolerance: float = 0.05

    def __post_init__(self) -> None:
        self._check()
