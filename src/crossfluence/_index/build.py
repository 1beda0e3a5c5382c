"""An index is made: fit, coordinates, a look at how well they serve, then files of rows, one after another."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

import torch
from torch import Tensor, nn

from .._attribution.evidence import kinks
from .._autodiff.params import fingerprint, trained_parameters
from .._autodiff.trained import refuse_sharded
from .._curvature.base import Trained as HorizonOfTraining
from .._data.batches import numbered_batches
from .._data.ranks import ALONE, Ranks
from .._kronecker.factors import largest_batch
from .._kronecker.gradients import ByBlock
from .._kronecker.inverse import AbstractBlockSolver, EKFACInverse
from .._risk.base import training_modes
from .._risk.risk import Risk
from .._solvers.base import inverse_of, load_inverse
from .._storage.archive import fitting, read_tensors, write_tensors
from .._storage.hashing import content_hash
from .._types import Batch, Id
from ..errors import StaleError, UnsupportedError
from .codes import CODES, AbstractCode, Parts
from .coordinates import Coordinates, strongest
from .gradients import Trained, cpu
from .manifest import FILE, Block, Listed, Manifest, Part, read_manifest
from .row_code import RowCode
from .shards import rows_in_shard
from .writing import NewSamples, written

FIT, START = "fit.safetensors", "start.safetensors"
FORM = "crossfluence.index-start/1"
OURS = re.compile(r"\.?(manifest\.json|(fit|start|sketch|rows-\d+)\.safetensors|building\.lock)(\..*)?")
ZEROS = 0.1  # share of zeros in a block, from which on signs say which numbers are
COMPARED = 64  # samples among which scores from stored and from full gradients are compared


@dataclass(frozen=True, eq=False)
class Opened:
    """A fit and its coordinates, as files of an index hold them.

    Attributes:
        coordinates: Of samples and questions.
        newton: The inverse times the gradient of the risk, by block, in the eigenbases.
        code: Of the rows.
    """

    coordinates: Coordinates
    newton: tuple[Tensor, ...]
    code: RowCode

    @property
    def energies(self) -> list[Tensor]:
        """Of the coordinates of each block."""
        return [block.energy for block in self.coordinates.blocks]

    def coded(self, gradients: ByBlock, b: int, n: int) -> Parts:
        """Tensors of one file, for b samples."""
        rows, norms = self.coordinates.of_samples(gradients, b)
        return {**self.code.encoded(rows, self.energies), "own": (-norms / n).float().cpu()}


def build(
    risk: Risk, solver: AbstractBlockSolver | EKFACInverse, folder: Path, dtype: str, tolerance: float | None
) -> Manifest:
    """Makes an index, or goes on where an earlier build of the same stopped; the caller holds the folder.

    Args:
        risk: The trained model.
        solver: How to fit, or a fit.
        folder: Where to.
        dtype: Of the stored numbers.
        tolerance: Share of the scores that coordinates left out may hold; `None` for the code's own.

    Returns:
        The list of its files.

    Raises:
        ValueError: If the dtype is none, or the tolerance no share.
        StaleError: If the folder holds the index of something else.
        ResultFileError: If the disk is full.
        UnsupportedError: If the solver puts the training's horizon in the place of a damping.
    """
    code = _code(dtype)
    tolerance = code.tolerance if tolerance is None else tolerance
    if not 0 <= tolerance < 1:
        raise ValueError(f"Got tolerance={tolerance!r}; needed a share of the scores, at least 0 and below 1.")
    kind = solver.solver if isinstance(solver, EKFACInverse) else repr(solver)
    if solver.trained if isinstance(solver, EKFACInverse) else isinstance(solver.damping, HorizonOfTraining):
        raise UnsupportedError(
            f"An index judges its scores as those of a minimum; {kind} answers for a training that stopped before one. "
            f"Ask influence(risk, questions, inverse), or build the index with a damping such as Relative(0.1)."
        )
    manifest = risk.ranks.first("reading an index", lambda: _found(folder))
    if manifest is None:
        manifest = _begun(risk, solver, folder, code, tolerance)
    else:
        manifest.refuse_other(folder, kind, risk.signature, dtype, tolerance)
    if manifest.parts:
        return manifest
    opened = opened_from(folder, manifest, risk.weights.device)
    gradients = _gradients(risk, opened.coordinates)
    samples = NewSamples(
        risk.reading.sizes, risk.labels, lambda wanted: ((index, batch) for index, batch, _ in risk.passes(wanted)),
        risk.nan_message, lambda batch, b: opened.coded(gradients(batch), b, risk.n),
    )  # fmt: skip
    return written(folder, manifest, samples, rows_in_shard(opened.code), risk.ranks)


def _found(folder: Path) -> Manifest | None:
    """The list of a folder, if it has one; what a stopped builder has left half written is deleted."""
    for left in folder.glob(".*.safetensors.*"):
        left.unlink(missing_ok=True)
    return read_manifest(folder) if (folder / FILE).exists() else None


def append(
    trained: Trained,
    losses: Callable[[nn.Module, Batch], Tensor],
    folder: Path,
    manifest: Manifest,
    data: Iterable[Batch],
    sizes: Sequence[int],
    ids: Sequence[Id],
    digest: str,
    ranks: Ranks = ALONE,
) -> Manifest:
    """Adds samples that the fit did not have; the caller holds the folder.

    Args:
        trained: The model that was fitted.
        losses: Of single samples.
        folder: Of the index.
        manifest: Its list.
        data: Batches.
        sizes: Samples in each.
        ids: Of all samples.
        digest: Content hash of the data and the ids.
        ranks: Who share the work.

    Returns:
        The list with one more part.
    """
    under_way = manifest.unfinished is not None and manifest.unfinished.data == digest
    manifest = manifest if under_way else _with_part(manifest, digest)
    opened = opened_from(folder, manifest, next(iter(trained.theta.values())).device)
    largest = max(range(len(sizes)), key=sizes.__getitem__)
    gradients = trained.sample_gradients(losses, next(batch for _, batch in numbered_batches(data, {largest})))
    samples = NewSamples(
        sizes, ids, lambda wanted: numbered_batches(data, wanted),
        lambda index, _: f"Batch {index} of the new data gives a NaN or an infinity. Clean or drop it.",
        lambda batch, b: opened.coded(gradients(batch), b, manifest.n),
    )  # fmt: skip
    return written(folder, manifest, samples, rows_in_shard(opened.code), ranks)


def trained_of(model: nn.Module, manifest: Manifest, inverse: EKFACInverse) -> Trained:
    """The model that an index was built for.

    Args:
        model: Of the user.
        manifest: Of the index.
        inverse: Its fit.

    Returns:
        What gradients are made from.

    Raises:
        StaleError: If it is another model, or has other weights.
        UnsupportedError: If it is sharded.
    """
    refuse_sharded(model)
    shapes = {name: tensor.shape for name, tensor in model.named_parameters()}
    wrong = [
        f"{name} {tuple(shape)} (the model has {tuple(shapes[name]) if name in shapes else 'none'})"
        for name, shape in zip(inverse.layout.names, inverse.layout.shapes, strict=True)
        if shapes.get(name) != shape
    ]
    if wrong:
        raise StaleError(
            f"The index is of another model, one with {', '.join(wrong[:3])}. Give the model that it was built for."
        )
    now = fingerprint(model)
    if now != manifest.fingerprint:
        raise StaleError(
            f"The model has other weights or buffers than the one that the index was built for (content hash "
            f"{manifest.fingerprint[:8]}, now {now[:8]}). Load those weights, or build an index of this model."
        )
    if training_modes(model) != manifest.modes:
        raise StaleError(
            "The model's modules are in other modes, training or evaluation, than when the index was built. "
            "Type: model.eval(), or put it back as it was."
        )
    theta = trained_parameters(model, list(inverse.layout.names))
    slots = [block.slot for block in inverse.blocks]
    return Trained(model, theta, manifest.precision, manifest.decays, slots)


def opened_from(folder: Path, manifest: Manifest, device: torch.device) -> Opened:
    """The fit and the coordinates of an index.

    Args:
        folder: Where it lies.
        manifest: Its list.
        device: Where the fit goes: that of the model.

    Returns:
        Both.

    Raises:
        ResultFileError: If a file is missing or another one.
    """
    inverse = load_inverse(manifest.fit.check(folder), device=device)
    path = manifest.start.check(folder)
    with fitting(path):
        assert isinstance(inverse, EKFACInverse)
        found = read_tensors(path, FORM, device=device).tensors
        numbers = range(len(inverse.blocks))
        kept = [found[f"{number}.kept"].long() for number in numbers]
        coordinates = Coordinates.of(inverse, kept, equalised=not _code(manifest.dtype).exact)
        newton = tuple(found[f"{number}.newton"] for number in numbers)
        return Opened(coordinates, newton, RowCode.of(manifest.dtype, manifest.blocks))


def ours(name: str) -> bool:
    """True for the name of a file of an index."""
    return OURS.fullmatch(name) is not None


def _code(dtype: str) -> AbstractCode:
    if dtype not in CODES:
        raise ValueError(f"Got dtype={dtype!r}; needed one of {', '.join(map(repr, CODES))}.")
    return CODES[dtype]


def _begun(
    risk: Risk, solver: AbstractBlockSolver | EKFACInverse, folder: Path, code: AbstractCode, tolerance: float
) -> Manifest:
    """Fits, chooses coordinates, and lists what is there; the fit itself may have been stopped on its way."""
    inverse = _fitted(risk, solver, folder)
    kept = strongest(inverse, tolerance, equalised=not code.exact)
    coordinates = Coordinates.of(inverse, [own.to(risk.weights.device) for own in kept], equalised=not code.exact)
    newton = coordinates.newton(risk.layout.split(risk.gradient))
    tensors = {f"{number}.kept": own.to(torch.int32) for number, own in enumerate(kept)}
    tensors |= {f"{number}.newton": own for number, own in enumerate(newton)}
    risk.ranks.first("writing an index", lambda: write_tensors(folder / START, FORM, tensors))
    first = _FirstSamples.of(risk, coordinates, newton)
    blocks = tuple(
        Block(one.slot.names, one.slot.form, len(own), zeros)
        for one, own, zeros in zip(inverse.blocks, kept, first.zeros, strict=True)
    )
    step = inverse.solve(risk.gradient.unsqueeze(0)).vectors[0]
    fit, start = risk.ranks.first("listing an index", lambda: (Listed.of(folder / FIT), Listed.of(folder / START)))
    manifest = Manifest(
        solver=inverse.solver, signature=risk.signature, dtype=code.name, tolerance=tolerance, n=risk.n,
        damping=inverse.damping, blocks=blocks,
        modes=risk.modes, decays=risk.decays if len(set(risk.decays.values())) > 1 else {},
        precision=risk.precision, coverage=risk.coverage, gradient_norm=float(risk.gradient.norm()),
        smallest_eigenvalue=inverse.smallest_eigenvalue,
        remainder=float(step @ risk.gradient), kinks=kinks(risk), notes=risk.notes,
        agreement=first.agreement(RowCode.of(code.name, blocks)),
        fit=fit, start=start,
    )  # fmt: skip
    manifest = _with_part(manifest, content_hash(risk.reading.digests, risk.labels, versions=False))
    return risk.ranks.first("listing an index", lambda: manifest.written(folder))


def _fitted(risk: Risk, solver: AbstractBlockSolver | EKFACInverse, folder: Path) -> EKFACInverse:
    if isinstance(solver, AbstractBlockSolver):
        inverse = solver.invert(risk, checkpoint=folder / FIT)
    else:
        inverse = inverse_of(solver, risk)
    if risk.ranks.count > 1 or inverse is solver:
        risk.ranks.heard(
            "fitting an index", lambda: None
        )  # every rank has kept its own: the last word is that of rank 0
        risk.ranks.first("keeping a fit", lambda: inverse.save(folder / FIT))
    assert isinstance(inverse, EKFACInverse)
    return inverse


def _with_part(manifest: Manifest, digest: str) -> Manifest:
    return replace(manifest, unfinished=Part(digest))


def _gradients(risk: Risk, coordinates: Coordinates) -> Callable[[Batch], ByBlock]:
    slots = [block.block.slot for block in coordinates.blocks]
    decays = risk.decays if len(set(risk.decays.values())) > 1 else {}
    trained = Trained(risk.model, risk.theta, risk.precision, decays, slots)
    largest = next(islice(risk.data, largest_batch(risk), None))
    return trained.sample_gradients(risk.kind.losses, largest)


@dataclass(frozen=True, eq=False)
class _FirstSamples:
    """Some samples, to look at what is stored.

    Attributes:
        coordinates: Of samples and questions.
        rows: What is to be stored, by block.
        asked: What the same samples' losses ask, by block.
        full: Scores from full gradients, times -n, shape `(b, b)`; nothing where no block is reached.
    """

    coordinates: Coordinates
    rows: list[Tensor]
    asked: list[Tensor]
    full: Tensor

    @classmethod
    def of(cls, risk: Risk, coordinates: Coordinates, newton: Sequence[Tensor]) -> _FirstSamples:
        """At most 64 of the first batch."""
        _, batch, weights = next(iter(risk.passes()))
        b = min(COMPARED, len(weights))
        few = {slot: part[:b] for slot, part in _gradients(risk, coordinates)(batch).items()}
        full = torch.zeros(())
        for block in coordinates.blocks:
            if block.block.slot in few:
                flat = block.flat(few[block.block.slot])
                full = full + (flat * block.inverse_eigenvalues.flatten()) @ flat.T
        asked, _ = coordinates.of_questions(few, newton, b)
        return cls(coordinates, coordinates.of_samples(few, b)[0], asked, full)

    @property
    def zeros(self) -> list[bool]:
        """Of which blocks many numbers are zero."""
        return [bool(len(part.T)) and float((part == 0).double().mean()) > ZEROS for part in self.rows]

    def agreement(self, code: RowCode) -> float | None:
        """Correlation of scores from stored and from full gradients, among the samples, pairs of two."""
        if not self.full.ndim or not any(code.lengths):
            return None
        tensors = code.encoded(self.rows, [block.energy for block in self.coordinates.blocks])
        found = code.question(cpu(self.asked)).products(tensors)
        return _correlation(self.full.cpu().double(), found.double())


def _correlation(first: Tensor, second: Tensor) -> float | None:
    apart = ~torch.eye(len(first), dtype=torch.bool)
    both = torch.stack([first[apart], second[apart]])
    if both.shape[1] < 3 or not (both.std(1) > 0).all():
        return None
    return round(float(torch.corrcoef(both)[0, 1]), 6)
