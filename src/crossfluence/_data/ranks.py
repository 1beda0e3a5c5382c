"""Ranks of one torchrun job: each reads its part of the data, and what they find is added up in one place."""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from itertools import accumulate
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import CrossfluenceError, RankError

Key = TypeVar("Key", bound=Hashable)
Found = TypeVar("Found")
JOINING = timedelta(minutes=5)  # that ranks wait for each other at the first risk
WAITING = timedelta(hours=4)  # that ranks wait for a slower one; one that has died is noticed at once
SETTINGS = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
ALONE_HINT = "Every rank has to make the same calls; a risk of one rank alone is Risk(..., shared=False)."


@dataclass(frozen=True, eq=False)
class Ranks:
    """The processes that work on one risk.

    Attributes:
        number: Of this one.
        count: Of all.
        group: Of `torch.distributed`, this library's own; `None` for one process.
    """

    number: int = 0
    count: int = 1
    group: Any = None

    def part(self, sizes: Sequence[int]) -> range:
        """The batches of this rank: neighbours, about as many samples as other ranks have.

        Args:
            sizes: Samples in each batch.

        Returns:
            Their numbers; none where there are fewer batches than ranks.
        """
        whole = 2 * sum(sizes) or 1
        middles = [2 * end - size for size, end in zip(sizes, accumulate(sizes), strict=True)]
        owners = [min(middle * self.count // whole, self.count - 1) for middle in middles]
        start = sum(owner < self.number for owner in owners)
        return range(start, start + owners.count(self.number))

    def added(
        self, what: str, work: Callable[[], Mapping[Key, Tensor]], device: torch.device | None = None
    ) -> dict[Key, Tensor]:
        """Sums over all ranks of what each finds in its part of the data: the one place where results come together.

        Args:
            what: Is done, as a clause for errors; ranks that do different things are refused.
            work: The part of this rank.
            device: Where the sums go; default: where the part is.

        Returns:
            Sums by key, the same on every rank; a key that some ranks lack counts as zeros there.

        Raises:
            RankError: If ranks differ, or one has ended.
            error: Of another rank, where its part failed.
        """
        if self.count == 1:
            return dict(work())
        with _last_words():
            return self._added(what, work, device)

    def _added(
        self, what: str, work: Callable[[], Mapping[Key, Tensor]], device: torch.device | None
    ) -> dict[Key, Tensor]:
        found: dict[Key, Tensor] = {}

        def shapes() -> dict[Key, tuple[tuple[int, ...], torch.dtype]]:
            found.update(work())
            return {key: (tuple(part.shape), part.dtype) for key, part in found.items()}

        told = self._heard(what, shapes)
        keys = {key: shape for own in told for key, shape in own.items()}
        if any(own.get(key, shape) != shape for own in told for key, shape in keys.items()):
            raise RankError(f"Ranks have found tensors of different shapes ({what}). {ALONE_HINT}")
        return {key: self._sum(what, found.get(key), shape, kind, device) for key, (shape, kind) in keys.items()}

    def _sum(
        self, what: str, own: Tensor | None, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device | None
    ) -> Tensor:
        part = torch.zeros(shape, dtype=dtype) if own is None else own.detach().cpu().contiguous()
        with self._connected(what):
            self.group.allreduce([part]).wait()
        return part.to(own.device if device is None and own is not None else device or part.device)

    def heard(self, what: str, work: Callable[[], Found]) -> list[Found]:
        """Results of all ranks' work, by rank.

        Args:
            what: Is done, as a clause for errors.
            work: Of this rank; what it returns can be pickled.

        Returns:
            One of each rank.

        Raises:
            RankError: If ranks do different things, or one has ended.
            error: Of another rank, where its work failed.
        """
        if self.count == 1:
            return [work()]
        with _last_words():
            return self._heard(what, work)

    def first(self, what: str, work: Callable[[], Found]) -> Found:
        """The result of work that rank 0 does for all, such as writing a file.

        Args:
            what: Is done, as a clause for errors.
            work: Of rank 0; what it returns can be pickled.

        Returns:
            The same on every rank.
        """
        found = self.heard(what, lambda: work() if self.number == 0 else None)[0]
        return cast("Found", found)

    def gathered(self, what: str, work: Callable[[], Sequence[Tensor]], p: int) -> Tensor:
        """Rows of all ranks, one rank's after another's.

        Args:
            what: Is done, as a clause for errors.
            work: Pieces of this rank, each of shape `(b, p)`.
            p: Numbers in a row.

        Returns:
            The same on every rank, in one type: where a rank has none, that of the others.
        """
        if self.count == 1:
            parts = work()
            return parts[0] if len(parts) == 1 else torch.cat(list(parts))
        own: list[Tensor] = []

        def size() -> tuple[int, torch.dtype | None]:
            own.extend(work())
            return sum(map(len, own)), own[0].dtype if own else None

        sizes = self.heard(what, size)
        starts = [0, *accumulate(b for b, _ in sizes)]
        dtype = next(kind for _, kind in sizes if kind is not None)

        def placed() -> dict[str, Tensor]:
            whole = torch.zeros(starts[-1], p, dtype=dtype)
            if own:
                whole[starts[self.number] : starts[self.number + 1]] = torch.cat(own).cpu()
            return {"rows": whole}

        return self.added(what, placed)["rows"]

    def _heard(self, what: str, work: Callable[[], Found]) -> list[Found]:
        found, failure = None, None
        try:
            found = work()
        except RankError:  # torchrun has ended this rank
            raise
        except Exception as error:  # the others have to hear of it
            failure = error
        told = self.told(what, (_words(failure), found))
        if failure is not None:
            raise failure
        for number, (words, _) in enumerate(told):
            if words is not None:
                error = _again(number, *words)
                raise error
        return [found for _, found in told]

    def told(self, what: str, own: Any) -> list[Any]:
        """Messages of all ranks, by rank.

        Args:
            what: Is done, as a clause for errors.
            own: The message of this rank; anything that can be pickled.

        Returns:
            One of each rank.

        Raises:
            RankError: If ranks do different things, or one has ended.
        """
        if self.count == 1:
            return [own]
        said = torch.frombuffer(bytearray(pickle.dumps((what, own))), dtype=torch.uint8)
        with self._connected(what):
            lengths = self._gathered(torch.tensor([len(said)]))
            longest = int(torch.cat(lengths).max())
            parts = self._gathered(torch.cat([said, said.new_zeros(longest - len(said))]))
        heard = [pickle.loads(part[: int(n)].numpy().tobytes()) for part, n in zip(parts, lengths, strict=True)]
        for number, (doing, _) in enumerate(heard):
            if doing != what:
                raise RankError(f"Rank {self.number} is {what}, and rank {number} is {doing}. {ALONE_HINT}")
        return [own for _, own in heard]

    def _gathered(self, own: Tensor) -> list[Tensor]:
        found = [torch.empty_like(own) for _ in range(self.count)]
        self.group.allgather([found], [own]).wait()
        return found

    @contextmanager
    def _connected(self, what: str) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:
            raise RankError(
                f"Rank {self.number} of {self.count} has lost another rank while {what}: that one has ended, and its "
                f"own message says why; killed, it has none. Start the same command again: it goes on from the files "
                f"that are whole. {ALONE_HINT}"
            ) from error

    def refuse_differing(self, own: Mapping[str, str]) -> None:
        """Makes sure that all ranks have the same.

        Args:
            own: What this rank has, by name: content hashes and numbers.

        Raises:
            RankError: If some rank has something else, with its name.
        """
        heard = self.told("comparing models and data", dict(own))
        for number, other in enumerate(heard):
            wrong = [name for name in heard[0] if heard[0][name] != other.get(name)]
            if wrong:
                raise RankError(
                    f"Rank {number} has another {' and '.join(wrong)} than rank 0 ({heard[0][wrong[0]][:12]}, there "
                    f"{other.get(wrong[0], 'none')[:12]}). All ranks need the same trained model and all of the data, "
                    f"of which each reads its part: load the model from a file, or train it with torch.manual_seed; "
                    f"leave samplers that split the data away."
                )


ALONE = Ranks()


@contextmanager
def _last_words() -> Iterator[None]:
    """An error with a sentence in place of the signal by which torchrun ends all ranks once one has failed."""
    main = threading.current_thread() is threading.main_thread()
    if not main or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return

    def ended(*_: object) -> None:
        raise RankError(
            "torchrun has ended this rank, since it has lost another rank of the job, whose own message says why; "
            "killed, it has none. Start the same command again: it goes on from the files that are whole."
        )

    after: Any = signal.SIG_DFL
    signal.signal(signal.SIGTERM, ended)
    try:
        yield
    except RankError:  # the signal may still come while the sentence is printed
        after = _ignored_once
        raise
    finally:
        signal.signal(signal.SIGTERM, after)


def _ignored_once(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)


def ranks_for(shared: bool | None) -> Ranks:
    """The ranks that a risk is shared by.

    Args:
        shared: `None` for those of a torchrun job whose script has made no process group of its own; true for those of
            such a script, too; false for this process alone.

    Returns:
        One or several.

    Raises:
        RankError: If ranks are asked for and there are none, or some do not come.
    """
    if shared is False or (shared is None and not _by_default()):
        return ALONE
    missing = [name for name in SETTINGS if name not in os.environ]
    if missing or not dist.is_available():
        raise RankError(
            f"Risk(shared=True) needs the settings of a torchrun job; {', '.join(missing)} are not there. Start the "
            f"script as: torchrun --nproc-per-node 2 script.py"
        )
    return _joined() if int(os.environ["WORLD_SIZE"]) > 1 else ALONE


def works_alone() -> bool:
    """True if this is one of several ranks of a script that has a process group of its own."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def _by_default() -> bool:
    """True if torchrun started this very process, and the script has made no process group."""
    return (
        dist.is_available()
        and all(name in os.environ for name in SETTINGS)
        and dist.is_torchelastic_launched()
        and not dist.is_initialized()
        and multiprocessing.parent_process() is None
        and threading.current_thread() is threading.main_thread()
    )


@cache
def _joined() -> Ranks:
    """All ranks of the job, in a group beside the script's own."""
    store, number, count = next(dist.rendezvous("env://"))  # pyright: ignore[reportPrivateImportUsage]
    store = dist.PrefixStore("crossfluence", store)  # pyright: ignore[reportPrivateImportUsage]
    if store.add(f"processes of {number}", 1) > 1:
        raise RankError(
            f"A process that rank {number} has started would share a risk as that rank. Type Risk(..., shared=False) "
            f"there."
        )
    names = [f"here {other}" for other in range(count)]
    store.set(names[number], "1")
    try:
        store.wait(names, JOINING)
    except RuntimeError as error:
        absent = [other for other, name in enumerate(names) if not store.check([name])]
        raise RankError(
            f"Rank {number} of {count} has waited {JOINING.seconds // 60} minutes at its first risk for rank "
            f"{', '.join(map(str, absent))}. {ALONE_HINT}"
        ) from error
    return Ranks(number, count, dist.ProcessGroupGloo(store, number, count, WAITING))


def _kinds(kind: type[CrossfluenceError]) -> Iterator[type[CrossfluenceError]]:
    for each in kind.__subclasses__():
        yield each
        yield from _kinds(each)


def _words(failure: Exception | None) -> tuple[str, str] | None:
    return None if failure is None else (type(failure).__name__, str(failure))


def _again(number: int, kind: str, message: str) -> CrossfluenceError:
    """The error that another rank has raised."""
    known = {each.__name__: each for each in _kinds(CrossfluenceError)}.get(kind)
    if known is not None and kind != "MissingExtraError":
        return known(message)
    return RankError(f"Rank {number} has failed with {kind}: {message}")
