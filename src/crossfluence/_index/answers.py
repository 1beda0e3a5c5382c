"""Questions in the coordinates of an index, and what is said of the scores that they get."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from .._kronecker.inverse import EKFACInverse
from .._results.scores import Scores, SolveReport
from .._results.verdict import ENDED, Evidence, Verdict, announce, of_influence
from .._types import Id
from ..errors import ParameterError
from .build import Opened
from .gradients import Asked, cpu
from .manifest import Manifest

MISSED = 0.9  # share of a question's scores, in root mean square, beyond which what is stored does not answer it
NOTED = 1e-3  # the same, beyond which the report says so
LOOSE, FIRM = 0.6, 0.99  # correlation with scores from full gradients: unreliable below, no reason above


@dataclass(frozen=True, eq=False)
class Chunk:
    """Some questions, as rows are multiplied with them.

    Attributes:
        names: m labels.
        values: At the trained parameters.
        drift: How far one more Newton step would move each.
        damped: Share of what was solved that is damping.
        blocks: `(m, k)` for each block.
        notes: Sentences for the report.
    """

    names: tuple[str, ...]
    values: Tensor
    drift: Tensor
    damped: Tensor
    blocks: list[Tensor]
    notes: tuple[str, ...] = ()

    @property
    def m(self) -> int:
        """How many."""
        return len(self.names)


def chunk_of(asked: Asked, opened: Opened) -> Chunk:
    """Questions in the coordinates of an index.

    Returns:
        As rows are multiplied with them.

    Raises:
        ParameterError: If most of one is about what is not stored.
    """
    blocks, (drift, whole, kept, length, energy) = opened.coordinates.of_questions(
        asked.gradients, opened.newton, len(asked.names)
    )
    missed = (1 - kept / whole).clamp(0, 1).sqrt().nan_to_num(0.0)  # no score at all is none that is left out
    damped = (opened.coordinates.inverse.damping * length / energy).nan_to_num(1.0, 1.0).clamp(max=1.0)
    worst, at = missed.max(0)
    name = asked.names[int(at)]
    if float(worst) > MISSED:
        raise ParameterError(
            f"The question {name!r} is about parameters that the index left out: {float(worst):.0%} of its scores, in "
            f"root mean square, are of these. It stores {_stored(opened)}. Ask influence(risk, question, inverse), or "
            f"build the index with a lower tolerance, or of a risk with these parameters."
        )
    note = (f"What is left out of the index holds {float(worst):.2g} of the scores of {name!r}, in root mean square.",)
    return Chunk(
        asked.names, asked.values.cpu(), drift.cpu(), damped.cpu(), cpu(blocks), note if float(worst) > NOTED else ()
    )  # fmt: skip


def _stored(opened: Opened) -> str:
    names = [name for block in opened.coordinates.blocks if len(block.kept) for name in block.block.slot.names]
    return ", ".join(names[:4]) + (f" and {len(names) - 4} others" if len(names) > 4 else "")


def answer(manifest: Manifest, values: Tensor, ids: tuple[Id, ...], chunks: Sequence[Chunk], started: float) -> Scores:
    """Scores of questions with report and verdict.

    Args:
        manifest: Of the index.
        values: Shape `(rows, m)`.
        ids: Labels of the rows.
        chunks: The questions.
        started: When the work began.

    Returns:
        The scores.
    """
    drift = tuple(each for chunk in chunks for each in chunk.drift.tolist())
    known = [each for chunk in chunks for each in chunk.values.tolist()]
    damped = tuple(each for chunk in chunks for each in chunk.damped.tolist())
    strongest = tuple(values.abs().amax(0).tolist())
    evidence = replace(_evidence(manifest), drift=drift, strongest=strongest, damped=damped)
    if evidence.left <= ENDED:
        evidence = replace(evidence, kinks=0.0)
    verdict = announce(_coded(of_influence(evidence), manifest.agreement), depth=4)
    report = _report(manifest, started, known, drift, [note for chunk in chunks for note in chunk.notes])
    names = tuple(name for chunk in chunks for name in chunk.names)
    return Scores(values, ids, names, report.solver, replace(report, verdict=str(verdict)), verdict=verdict)


def own_losses(manifest: Manifest, values: Tensor, ids: tuple[Id, ...], started: float) -> Scores:
    """Scores of the samples' own losses with report and verdict.

    Args:
        manifest: Of the index.
        values: Shape `(rows, 1)`.
        ids: Labels of the rows.
        started: When the work began.

    Returns:
        The scores.
    """
    whole = float(values.abs().sum() / manifest.n) ** 0.5
    evidence = replace(_evidence(manifest), kinks=0.0, drift=(abs(manifest.remainder) ** 0.5,), strongest=(whole,))
    verdict = announce(of_influence(evidence), depth=4)
    report = replace(_report(manifest, started, (), (), ()), verdict=str(verdict))
    return Scores(values, ids, ("own loss",), manifest.solver, report, verdict=verdict)


def _evidence(manifest: Manifest) -> Evidence:
    """What is known without a question; eigenvalues of a Fisher matrix are not negative."""
    notes = tuple(note for note in manifest.notes if "sizes" in note)
    return Evidence(kinks=manifest.kinks, approximation=EKFACInverse.approximation, notes=notes)


def _report(
    manifest: Manifest, started: float, values: Sequence[float], drift: Sequence[float], notes: Sequence[str]
) -> SolveReport:
    known = "" if manifest.agreement is None else (
        f" Among some samples, scores from it and from full gradients had a correlation of {manifest.agreement:.4f}."
    )  # fmt: skip
    about = (
        f"From an index of {manifest.rows:,} samples: {manifest.coordinates:,} of {manifest.parameters:,} coordinates "
        f"as {manifest.dtype}.{known}"
    )
    return SolveReport(
        solver=manifest.solver, damping=manifest.damping, values=tuple(values), drift=tuple(drift),
        gradient_norm=manifest.gradient_norm, smallest_eigenvalue=manifest.smallest_eigenvalue,
        coverage=manifest.coverage, seconds=time.perf_counter() - started, fingerprint=manifest.fingerprint,
        notes=(about, *notes, *manifest.notes),
    )  # fmt: skip


def _coded(verdict: Verdict, r: float | None) -> Verdict:
    """The verdict, with what the code of the rows costs."""
    if r is None or r >= FIRM:
        return verdict
    reason = f"what the index stores gives scores with a correlation of {r:.2g} with those of full gradients"
    advice = ("Build it with a lower tolerance, or as float16.", *verdict.advice)
    return Verdict("unreliable" if r < LOOSE else verdict.level, (reason, *verdict.reasons), advice)
