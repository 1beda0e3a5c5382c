"""Krylov subspaces: what a few products tell of a matrix."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch
from jaxtyping import Float, Shaped
from torch import Tensor
from tqdm.auto import tqdm

from .._curvature.base import AbstractCurvature
from .._curvature.operator import Operator
from .._risk.base import AbstractRisk
from .._storage.partial import NO_CHECKPOINT, Checkpoint

NUMBERS_AT_ONCE = 2**27  # held in the bases of questions that are solved together: 1 GB in double precision
LANCZOS_STEPS = 30  # products that find the ends of a spectrum


def orthogonalised(
    vectors: Shaped[Tensor, "m p"], *bases: Shaped[Tensor, "m _ p"]
) -> tuple[Shaped[Tensor, "m p"], Shaped[Tensor, "m k"]]:
    """The part of each vector outside its basis, and its coordinates inside; Gram-Schmidt twice.

    Args:
        vectors: One in each row.
        bases: Orthonormal rows, one basis for each vector, in blocks.

    Returns:
        The rests, orthogonal to the bases to working precision, and the coordinates.
    """
    inside = vectors.new_zeros(len(vectors), sum(block.shape[1] for block in bases))
    for _ in range(2):  # once loses orthogonality
        overlaps = [(block @ vectors.unsqueeze(2)).squeeze(2) for block in bases]
        for overlap, block in zip(overlaps, bases, strict=True):
            vectors = vectors - (overlap.unsqueeze(1) @ block).squeeze(1)
        inside = inside + torch.cat(overlaps, 1)
    return vectors, inside


def arnoldi(
    product: Callable[[Shaped[Tensor, "1 p"]], Shaped[Tensor, "1 p"]],
    like: Shaped[Tensor, " p"],
    steps: int,
    seed: int,
    kept: Checkpoint = NO_CHECKPOINT,
) -> tuple[Shaped[Tensor, "k p"], Float[Tensor, "k k"]]:
    """An orthonormal basis of a Krylov subspace, and the matrix in it; Lanczos, if the matrix is symmetric.

    Every vector is made orthogonal to all earlier ones, so no eigenvalue comes twice; where the subspace is invariant,
    it goes on from a new random vector, so eigenvalues that are equal are all found.

    Args:
        product: The matrix times a row.
        like: Has the length, type and place of the vectors.
        steps: Products to take; at most p.
        seed: Of the random start.
        kept: Is offered the subspace after each product.

    Returns:
        V, and V J Vᵀ in float64.

    References:
        Lanczos, "An iteration method for the solution of the eigenvalue problem of linear differential and integral
        operators", 1950; Arnoldi, "The principle of minimized iterations in the solution of the matrix eigenvalue
        problem", 1951.
    """
    generator, eps = torch.Generator().manual_seed(seed), torch.finfo(like.dtype).eps
    steps = min(steps, len(like))
    basis = like.new_empty(1, steps, len(like))
    core = torch.zeros(steps, steps, dtype=torch.float64, device=like.device)
    following, done = torch.randn(1, len(like), generator=generator).to(like), 0
    if kept.state:
        done, basis[0, : kept.state[0]], core, following, drawn = kept.state
        generator.set_state(drawn.cpu())
    bar = tqdm(range(done, steps), desc="Krylov subspace", unit="step", initial=done, disable=None, leave=False)
    for step in bar:
        basis[:, step] = following / following.norm()
        image = product(basis[:, step])
        following, inside = orthogonalised(image, basis[:, : step + 1])
        core[: step + 1, step] = inside[0].double()
        height = following.norm()
        if step + 1 == steps:
            break
        if height <= 10 * eps * image.norm():  # invariant: what is left is rounding
            fresh = torch.randn(1, len(like), generator=generator).to(like)
            following, _ = orthogonalised(fresh, basis[:, : step + 1])
        else:
            core[step + 1, step] = float(height)
        state = (step + 1, basis[0, : step + 1], core, following, generator.get_state())
        kept.maybe_save(lambda state=state: state)
    return basis[0], core


def lanczos_functions(
    product: Callable[[Shaped[Tensor, "m p"]], Shaped[Tensor, "m p"]],
    vectors: Shaped[Tensor, "m p"],
    functions: Sequence[Callable[[Tensor], Tensor]],
    *,
    rtol: float,
    max_steps: int,
) -> tuple[list[Shaped[Tensor, "m p"]], float, float]:
    """Functions of a symmetric matrix times vectors: each vector's Krylov subspace serves all functions.

    Args:
        product: The matrix times rows.
        vectors: One in each row.
        functions: Of eigenvalues.
        rtol: Stops where the last two basis vectors have at most this share of each result, measured by the largest.
        max_steps: Products to take at most.

    Returns:
        The results, one for each function; the smallest eigenvalue that was found; and the share where it stopped.

    References:
        Saad, "Analysis of some Krylov subspace approximations to the matrix exponential operator", SIAM Journal on
        Numerical Analysis 29(1), 1992.
    """
    parts = vectors.split(max(1, NUMBERS_AT_ONCE // (max_steps * vectors.shape[1])))
    found = [_lanczos_functions(product, part, functions, rtol, max_steps) for part in parts]
    results, lowest, shares = zip(*found, strict=True)
    return [torch.cat(each) for each in zip(*results, strict=True)], min(lowest), max(shares)


def _lanczos_functions(
    product: Callable[[Tensor], Tensor],
    vectors: Shaped[Tensor, "m p"],
    functions: Sequence[Callable[[Tensor], Tensor]],
    rtol: float,
    max_steps: int,
) -> tuple[list[Shaped[Tensor, "m p"]], float, float]:
    m, p = vectors.shape
    steps, eps = min(max_steps, p), torch.finfo(vectors.dtype).eps
    basis = vectors.new_empty(m, steps, p)  # memory is touched as it is written
    core = torch.zeros(m, steps, steps, dtype=torch.float64, device=vectors.device)
    following, values, weights, share = vectors, core[..., 0], [core[..., 0]], 1.0
    for step in tqdm(range(steps), desc="Krylov subspace", unit="step", disable=None, leave=False):
        height = following.norm(dim=1, keepdim=True)
        basis[:, step] = torch.where(height > 0, following / height, 0)  # an invariant subspace goes on with zeros
        image = product(basis[:, step])
        following, inside = orthogonalised(image, basis[:, : step + 1])
        core[:, step, : step + 1] = core[:, : step + 1, step] = inside.double()
        rounding = following.norm(dim=1, keepdim=True) <= 10 * eps * image.norm(dim=1, keepdim=True)
        following = torch.where(rounding, 0, following)
        values, turned = torch.linalg.eigh(core[:, : step + 1, : step + 1])
        weights = [(turned @ (each(values) * turned[:, 0]).unsqueeze(2)).squeeze(2) for each in functions]
        size = torch.stack([each.norm(dim=1, keepdim=True) for each in weights]).amax(0)
        share = max(float((each[:, -2:].abs() / size).nan_to_num().max()) for each in weights)
        share = 0.0 if step + 1 == p else share
        if step and share <= rtol:
            break
    basis, size = basis[:, : weights[0].shape[1]], vectors.norm(dim=1, keepdim=True)
    return [size * (each.to(basis).unsqueeze(1) @ basis).squeeze(1) for each in weights], float(values.min()), share


def extreme_eigenvalues(
    matrix: AbstractCurvature | Operator, risk: AbstractRisk, *, steps: int = LANCZOS_STEPS, seed: int = 0
) -> tuple[float, float]:
    """The ends of a symmetric matrix's spectrum by Lanczos: the largest is close, the smallest an upper bound.

    Args:
        matrix: A curvature, or a damped one in its own coordinates.
        risk: Where.
        steps: Products to take.
        seed: Of the random start.

    Returns:
        The smallest and the largest eigenvalue found.
    """
    product = matrix.product if isinstance(matrix, Operator) else partial(matrix.product, risk)
    _, core = arnoldi(product, risk.layout.flatten(risk.theta), steps, seed)
    found = torch.linalg.eigvalsh((core + core.T) / 2)
    return float(found[0]), float(found[-1])
