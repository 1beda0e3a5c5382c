"""An index: the samples' gradients on disk, asked again and again."""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from .._autodiff.functional import isolated
from .._data.batches import beside, probe
from .._data.ranks import ALONE, Ranks
from .._kronecker.inverse import AbstractBlockSolver, EKFACInverse
from .._losses import AbstractLoss, as_loss
from .._require import described, labelled, require, require_question, require_risk
from .._results.ids import numbered
from .._results.scores import Scores
from .._risk.risk import Risk
from .._storage.hashing import content_hash
from .._types import Batch, Id, Objective, SampleLoss
from ..errors import DataError, StaleError, UnsupportedError
from .answers import Chunk, answer, chunk_of, own_losses
from .build import Opened, append, build, opened_from, ours, trained_of
from .gradients import Trained
from .manifest import Manifest, read_manifest
from .row_code import RowCode
from .scan import Strongest, picked, scanned
from .shards import ShardReader, building
from .sketch import Sketch


class Index:
    """Samples' gradients on disk, in the eigenbases of a fit: questions need the model, and the data no more.

    Made by `Index.build` and read by `Index.open`. A question reads every row once, in chunks; memory does not grow
    with the number of samples but for the answer itself.

    Args:
        folder: Where the files lie.
        manifest: Their list.
        model: The trained module; `None` where nothing is asked.
        loss: Of single samples, for `append`.
        ranks: Who share the work of a torchrun job.

    Example:
        >>> import tempfile
        >>> from crossfluence import EKFAC, Risk, batches
        >>> net, x = nn.Linear(2, 1), torch.eye(2).repeat(3, 1)
        >>> _ = nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)  # where training ends
        >>> risk = Risk(net, lambda model, batch: model(batch).square().sum(1), batches(x), l2=0.1)
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Index.build(risk, EKFAC(damping=0.1), f"{folder}/net.index", dtype="float32")
        ...     Index.open(f"{folder}/net.index", risk.model).scores(lambda model: model.weight.sum()).values.shape
        torch.Size([6, 1])
    """

    def __init__(
        self, folder: Path, manifest: Manifest, model: nn.Module | None, loss: AbstractLoss | None,
        ranks: Ranks = ALONE,
    ) -> None:  # fmt: skip
        self.folder, self._manifest, self._model, self._loss = folder, manifest, model, loss
        self._reader, self._ranks = ShardReader(folder), ranks

    @classmethod
    def build(
        cls,
        risk: Risk,
        solver: AbstractBlockSolver | EKFACInverse,
        folder: str | os.PathLike[str],
        *,
        dtype: Literal["float32", "float16", "int8", "int4", "sign"] = "float16",
        tolerance: float | None = None,
    ) -> Index:
        r"""Fits, and writes every sample's gradient; stopped and called again, it goes on where it was.

        Args:
            risk: What training minimised, and where it ended; with a loss of single samples.
            solver: `EKFAC`, `KFAC`, `BlockDiagonal` or `Diagonal`, or what its `invert` returned.
            folder: Where to; made if it is not there, in a folder that is.
            dtype: Of the stored numbers: "float32", "float16", "int8" or "int4" (with a scale for each sample and
                block), or "sign" (one bit, and the scale).
            tolerance: Share of the scores, in root mean square, that coordinates left out may hold. Default: 0 for
                "float32", and .05 otherwise.

        Returns:
            The index, with the risk's model and loss.

        Raises:
            UnsupportedError: If the loss couples samples, or the solver has no blocks.
            StaleError: If the folder holds an index of something else.
            ResultFileError: If the folder cannot be written, holds other files, or somebody is building there.

        Example:
            >>> import tempfile
            >>> from crossfluence import EKFAC, batches
            >>> net, x = nn.Linear(2, 1), torch.eye(2).repeat(3, 1)
            >>> _ = nn.init.zeros_(net.weight), nn.init.zeros_(net.bias)  # where training ends
            >>> risk = Risk(net, lambda model, batch: model(batch).square().sum(1), batches(x), l2=0.1)
            >>> with tempfile.TemporaryDirectory() as folder:
            ...     index = Index.build(risk, EKFAC(damping=0.1), f"{folder}/net.index", dtype="float32")
            ...     index.scores(lambda model: model.weight.sum()).values.shape
            torch.Size([6, 1])
        """
        require_risk(risk, Risk, "Index.build")
        require(
            solver, (AbstractBlockSolver, EKFACInverse), "Index.build", "a solver with blocks",
            "crossfluence.Index.build(risk, crossfluence.EKFAC(), folder)",
        )  # fmt: skip
        if not risk.kind.per_sample:
            raise UnsupportedError(
                f"An index holds a gradient for each sample alone; a {type(risk.kind).__name__} has none. Use "
                f"influence(risk, questions, EKFAC()), which takes each sample's row through its batch."
            )
        place = Path(folder)
        with isolated():
            risk.check()
            _ = risk.gradient  # first of all: it finds a NaN and names its batch
            with building(place, risk.ranks, ours):
                manifest = build(risk, solver, place, dtype, tolerance)
        return cls(place, manifest, risk.model, risk.kind, risk.ranks)

    @classmethod
    def open(cls, folder: str | os.PathLike[str], model: nn.Module | None = None) -> Index:
        """Reads the list of an index's files; what is in them is looked at as it is used.

        Args:
            folder: That `build` wrote.
            model: The trained module that it was built for. Without it, only `info`, `ids` and `self_influence` answer.

        Returns:
            The index.

        Raises:
            ResultFileError: If the folder holds no index, or one that is damaged.
            DataError: If it is not finished.
            StaleError: If the model is another one, or has other weights.
            UnsupportedError: If it is no module.
        """
        place = Path(folder)
        manifest = read_manifest(place)
        if not manifest.parts:
            written = 0 if manifest.unfinished is None else manifest.unfinished.rows
            raise DataError(
                f"The index in {place} is not finished: {written:,} of {manifest.n:,} samples are in it. Run the same "
                f"crossfluence.Index.build(...) again; it goes on from there."
            )
        index = cls(place, manifest, model, None)
        if model is not None and not isinstance(model, nn.Module):
            raise UnsupportedError(
                f"Got {described(model)} for the model of an index; needed the trained torch.nn.Module. "
                f"Type: crossfluence.Index.open(folder, model)."
            )
        if model is not None:
            with isolated():
                _ = index._trained
        return index

    @cached_property
    def ids(self) -> tuple[Id, ...]:
        """Labels of all samples, in order."""
        return tuple(label for shard in self._reader.all(self._manifest.shards) for label in shard.ids)

    def info(self) -> dict[str, Any]:
        """Contents and sizes of the index.

        Returns:
            Numbers and sentences by name: samples, n of the fit, solver, dtype, tolerance, agreement (correlation of
            scores from stored and from full gradients, measured at building among some samples), coordinates and
            parameters, bytes a sample, bytes in all, signature, library and the folder.
        """
        own = self._manifest
        return {
            "folder": str(self.folder), "samples": own.rows, "n": own.n, "solver": own.solver, "damping": own.damping,
            "dtype": own.dtype, "tolerance": own.tolerance, "agreement": own.agreement,
            "coordinates": own.coordinates, "parameters": own.parameters,
            "bytes a sample": RowCode.of(own.dtype, own.blocks).bytes,
            "bytes": sum(each.bytes for each in (*own.shards, own.fit, own.start)), "files": len(own.shards),
            "signature": own.signature, "library": own.library,
        }  # fmt: skip

    def __repr__(self) -> str:
        own = self._manifest
        return f"Index({str(self.folder)!r}: {own.rows:,} samples as {own.dtype}, {own.solver})"

    def scores(self, objective: Objective) -> Scores:
        """Influence of each sample on each objective, as `influence` gives it with the same fit.

        Args:
            objective: As in `influence`; at most 256 questions are answered in one pass over the index.

        Returns:
            One score for each sample and objective, with a verdict; memory for these, and for one file of rows.

        Raises:
            UnsupportedError: If the index was opened without a model.
            StaleError: If the model changed.
            ObjectiveError: If the objective does not depend on the trained parameters.
            ParameterError: If most of a question is about what the index left out.

        Warns:
            UnreliableWarning: If the scores cannot be believed.
        """
        started, answers, columns = time.perf_counter(), [], []
        with isolated():
            for chunk in self._asked(objective, "Index.scores"):
                found = self._ranks.added("asking an index", lambda chunk=chunk: {"rows": self._part_of_scores(chunk)})
                answers.append(chunk)
                columns.append(found["rows"])
        whole = columns[0] if len(columns) == 1 else torch.cat(columns, 1)
        return answer(self._manifest, whole, self.ids, answers, started)

    def _part_of_scores(self, chunk: Chunk) -> Tensor:
        """Scores of the rows in this rank's files; zeros elsewhere."""
        sizes = [shard.rows for shard in self._manifest.shards]
        own = self._ranks.part(sizes)
        values, first = torch.zeros(sum(sizes), chunk.m), sum(sizes[: own.start])
        shards, question = self._manifest.shards[own.start : own.stop], self._opened.code.question(chunk.blocks)
        for start, part in scanned(self._reader, shards, question):
            values[first + start : first + start + len(part)] = part / -self._manifest.n
        return values

    def search(self, objective: Objective, k: int = 10, *, share: float = 1.0) -> Scores:
        """The samples that raised and that lowered each question most.

        With `share=1` every row is read, as in `scores`, but only the strongest are kept. With less, rows along 128 to
        512 principal directions, which stay in memory, say which share of the rows is read, for each question. They are
        found the first time, with a pass over the index.

        Args:
            objective: As in `influence`.
            k: How many on either side, for each question.
            share: Of the rows to read.

        Returns:
            Scores of all these samples for all questions: `.top(k, name)`, `.top(k, name, effect="lowers")`.

        Raises:
            ValueError: If k or the share is out of its range.

        Warns:
            UnreliableWarning: If the scores cannot be believed.
        """
        if k < 1 or not 0 < share <= 1:
            raise ValueError(f"Got k={k}, share={share}; needed at least 1, and a share above 0 of at most 1.")
        started, answers, found = time.perf_counter(), [], []
        with isolated():
            for chunk in self._asked(objective, "Index.search"):
                found.extend(self._found(chunk, k, share))
                answers.append(chunk)
            rows = torch.cat([own for own, _ in found]).unique()
            values = self._values(rows, answers) if len(found) > 1 else found[0][1]
        ids = self.ids
        return answer(self._manifest, values, tuple(ids[row] for row in rows.tolist()), answers, started)

    def _found(self, chunk: Chunk, k: int, share: float) -> Iterator[tuple[Tensor, Tensor]]:
        """The strongest rows of some questions, in order, and their scores."""
        shards, count = self._manifest.shards, self._manifest.rows
        if share == 1:
            best = Strongest(k, chunk.m)
            for start, part in scanned(self._reader, shards, self._opened.code.question(chunk.blocks)):
                best.add(torch.arange(start, start + len(part)), part / -self._manifest.n)
            yield best.found()
            return
        number = max(k, round(share * count))
        for at, rows in self._sketch.strongest(chunk.blocks, number, self._opened):
            best = Strongest(k, len(range(chunk.m)[at]))
            question = self._opened.code.question([part[at] for part in chunk.blocks])
            for own, part in picked(self._reader, shards, question, rows):
                best.add(own, part / -self._manifest.n)
            yield best.found()

    def _values(self, rows: Tensor, answers: Sequence[Chunk]) -> Tensor:
        """Scores of some rows for all questions."""
        columns = []
        for chunk in answers:
            question = self._opened.code.question(chunk.blocks)
            parts = [part for _, part in picked(self._reader, self._manifest.shards, question, rows)]
            columns.append(torch.cat(parts) / -self._manifest.n)
        return torch.cat(columns, 1)

    def self_influence(self) -> Scores:
        """Influence of each sample on its own loss; needs neither model nor data.

        Returns:
            Shape `(n, 1)`, in units of the loss, from full gradients whatever the dtype.

        Warns:
            UnreliableWarning: If the scores cannot be believed.
        """
        started, own = time.perf_counter(), self._manifest
        values = torch.cat([shard.own.clone() for shard in self._reader.all(own.shards)]).unsqueeze(1)
        return own_losses(own, values, self.ids, started)

    def append(
        self,
        data: Iterable[Batch],
        *,
        ids: Iterable[Id] | None = None,
        loss: SampleLoss | AbstractLoss | None = None,
    ) -> None:
        """Adds samples that were not trained on, or came later; the fit and its n stay as they are.

        Their scores are those of `influence(risk, question, inverse, candidates=data)`. Stopped and called again with
        the same data, it goes on where it was.

        Args:
            data: Batches like those of the training data.
            ids: A label for each; default: numbers that continue those of the index.
            loss: The training loss, if the index was opened and not built.

        Raises:
            DataError: If an id is there twice, or the data cannot be read twice.
            StaleError: If it is another loss than that of the fit.
            UnsupportedError: If there is no model, or no loss.
        """
        kind = self._kind(loss)
        trained = self._trained
        with isolated():
            reading = probe(data, "new data", ranks=self._ranks)
            count = sum(reading.sizes)
            start = len(self.ids)
            labels = list(range(start, start + count)) if ids is None else labelled(ids)
            if len(labels) != count:
                raise DataError(f"Got {len(labels)} ids for {count} new samples; needed one each.")
            with building(self.folder, self._ranks):
                now = self._ranks.first("reading an index", lambda: read_manifest(self.folder))
                if now.parts != self._manifest.parts:
                    raise StaleError(f"{self.folder} was written to since it was opened. Open it again.")
                new = tuple(numbered(labels))
                _refuse_known(new, self.ids)
                digest = content_hash(reading.digests, new, versions=False)
                self._manifest = append(
                    trained, kind.losses, self.folder, now, beside(data, trained.model), reading.sizes, new, digest,
                    self._ranks,
                )  # fmt: skip
        for name in ("ids", "_sketch"):
            self.__dict__.pop(name, None)

    def _kind(self, loss: SampleLoss | AbstractLoss | None) -> AbstractLoss:
        if loss is None and self._loss is None:
            raise UnsupportedError(
                "This index was opened from its files, which hold no loss. Type: index.append(data, loss=loss), with "
                "the loss of the risk that it was built from."
            )
        if loss is None:
            assert self._loss is not None
            return self._loss
        kind, known = as_loss(loss), self._manifest.loss
        now = content_hash(kind, versions=False)
        if not known.startswith("object-") and now != known:
            raise StaleError(
                f"The loss is another one than the index was built with (content hash {known[:8]}, now {now[:8]}). "
                f"Give that one: scores of two losses do not compare."
            )
        return kind

    @cached_property
    def _opened(self) -> Opened:
        model = self._needed_model
        return opened_from(self.folder, self._manifest, next(model.parameters()).device)

    @property
    def _needed_model(self) -> nn.Module:
        if self._model is None:
            raise UnsupportedError(
                f"This index was opened without the model, which has to be asked for the question's gradient. Type: "
                f"crossfluence.Index.open({str(self.folder)!r}, model)."
            )
        return self._model

    @property
    def _trained(self) -> Trained:
        """The model, compared with the one that was fitted."""
        _ = self._needed_model
        return trained_of(self._needed_model, self._manifest, self._opened.coordinates.inverse)

    @cached_property
    def _sketch(self) -> Sketch:
        return Sketch.of(self.folder, self._manifest.shards, self._opened, self._reader)

    def _asked(self, objective: Objective, verb: str) -> Iterator[Chunk]:
        require_question(objective, verb)
        trained, opened = self._trained, self._opened
        for asked in trained.questions(objective):
            yield chunk_of(asked, opened)


def _refuse_known(new: Sequence[Id], known: Sequence[Id]) -> None:
    twice = set(new) & set(known)
    if twice:
        shown = ", ".join(repr(label) for label in list(twice)[:3])
        raise DataError(
            f"{len(twice)} of the {len(new)} new ids are in the index already: {shown}. Give others: "
            f"index.append(data, ids=[...])."
        )
