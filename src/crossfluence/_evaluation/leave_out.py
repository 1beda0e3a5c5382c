"""The ground truth: train again without some samples, and ask again."""

from __future__ import annotations

import json
import os
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import CancelledError, Executor, Future, as_completed
from pathlib import Path
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn
from tqdm.auto import tqdm

from .._require import AbstractTraining, described, labelled, listed, require, require_question, require_training
from .._results.ids import numbered, plain_id, row_of
from .._results.noise import over_orders
from .._results.scores import Scores
from .._results.verdict import Verdict, announce
from .._risk.objectives import evaluate
from .._storage.atomic import write_atomically
from .._storage.hashing import content_hash
from .._types import Id, Objective, Train
from ..errors import DataError, NonFiniteError, ObjectiveError, StoreWarning, UnsupportedError

Answer: TypeAlias = tuple[tuple[str, ...], list[float]]
"""Names and values of the objectives at one retrained model."""

Training: TypeAlias = Train | AbstractTraining
"""What can be trained again with other sample weights."""


def leave_out(
    train: Training,
    objective: Objective,
    drop: Iterable[Id] | Mapping[Id, Iterable[Id]],
    *,
    n: int | None = None,
    ids: Sequence[Id] | None = None,
    seeds: int = 1,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> Scores:
    r"""The ground truth: $m(\text{trained on all}) - m(\text{trained without})$, by training again.

    Each dropped sample or group gets weight 0 in one retraining; n stays fixed. A `Recipe` trains many models at once.

    Two trainings of one recipe in other orders of the data differ, and with them what a group did. Where that is as
    large as the effects, one order is one draw: `seeds=k` takes the mean over k orders, with its standard error, and
    the verdict says how well another such mean would agree.

    Args:
        train: Sample weights `(n,)` to a trained model, the same way every time; or a `Recipe`, or a `Bank` of its
            models. Every call begins with the same state of PyTorch's global generator.
        objective: The question, asked of each retrained model.
        drop: Ids, each left out alone; or `{group name: ids}`, each group left out together.
        n: Number of training samples; needed unless `train` is a recipe.
        ids: n labels, default 0 to n-1.
        seeds: Orders of the data, from the recipe's own seed on; each trains every model once. Where no seed changes
            anything (steps of all samples), one is enough, and the errors are zero.
        executor: Runs retrainings side by side: threads, processes, loky, dask, MPI. What it sends to other
            processes must be picklable. Threads share PyTorch's global generator: with them, a training function needs
            a generator of its own.
        store: A folder that keeps every finished retraining under a content hash of training, question and weights.
            A run that was stopped goes on where it was; what changed is trained anew, never mixed up.

    Returns:
        One score for each id or group, with the sign and unit of `influence`; with several seeds, `errors` too.

    Raises:
        DataError: If n is missing or does not fit.
        IdError: If an id is unknown.
        ObjectiveError: If the objective's names differ from model to model.
        NonFiniteError: If an answer is NaN or infinite.
        CancelledError: If the executor gave up retrainings; what had finished is in the store.
        UnsupportedError: If the executor is something else, such as a dask client; if there is no training, or no
            question; if a training function is asked for several seeds.
        ValueError: If there are no seeds.

    Warns:
        UnreliableWarning: If nearly all of the mean over several seeds is noise.

    Example:
        >>> from crossfluence import SGD, Recipe
        >>> class Mean(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.at = nn.Parameter(torch.zeros(1))
        >>> x = torch.tensor([[0.0], [2.0], [4.0]])
        >>> loss = lambda model, batch: (batch[:, 0] - model.at) ** 2 / 2
        >>> recipe = Recipe(Mean(), loss, x, optimizer=SGD(0.5), epochs=60)
        >>> leave_out(recipe, lambda model: model.at[0], [0, 2]).values[:, 0].round(decimals=3)
        tensor([-1.,  1.], dtype=torch.float64)
    """
    require_training(train, "leave_out")
    _refuse_wrong_kinds(objective, store, "leave_out")
    if not (executor is None or isinstance(executor, Executor)):
        raise UnsupportedError(
            f"Got the executor {type(executor).__name__}; needed a concurrent.futures.Executor, such as "
            f"loky.get_reusable_executor() or, of dask, client.get_executor(pure=False)."
        )
    orders = _orders(train, seeds)
    ids = None if ids is None else labelled(ids)
    n = _count(train, n, ids)
    rows = numbered(range(n) if ids is None else ids)
    groups = _groups(drop, rows)
    weights = torch.ones(len(groups) + 1, n)  # row 0: nothing left out
    for position, members in enumerate(groups.values(), start=1):
        weights[position, members] = 0
    found = {one: _effects(one, objective, weights, tuple(groups), executor, store) for one in dict.fromkeys(orders)}
    if len(orders) == 1:
        return found[orders[0]]
    scores = over_orders([found[one] for one in orders])
    assert scores.verdict is not None
    _ = announce(scores.verdict)
    return scores


def _orders(train: Training, seeds: int) -> list[Training]:
    """The training in so many orders of its data; one several times, where no seed changes anything."""
    if not isinstance(seeds, int) or isinstance(seeds, bool) or seeds < 1:
        raise ValueError(f"Got seeds={seeds!r}; needed a whole number of at least 1.")
    if seeds == 1:
        return [train]
    if not isinstance(train, AbstractTraining):
        raise UnsupportedError(
            f"Got seeds={seeds} and {described(train)}; a training function has no seed. Needed a crossfluence.Recipe, "
            f"or type ensemble(leave_out(train_of(seed), objective, drop, n=n) for seed in range(5))."
        )
    return [train.with_seed(train.recipe.seed + number) for number in range(seeds)]


def _effects(
    train: Training,
    objective: Objective,
    weights: Float[Tensor, "r n"],
    names: tuple[Id, ...],
    executor: Executor | None,
    store: str | os.PathLike[str] | None,
) -> Scores:
    """Of one order: the first row of the weights is the training on all samples."""
    asked, values = answers(train, objective, weights, executor=executor, store=store)
    trained = Verdict("sizes", ("trained again",))
    return Scores(values[:1] - values[1:], names, asked, "retraining", verdict=trained)


def answers(
    train: Training,
    objective: Objective,
    weights: Float[Tensor, "r n"],
    *,
    executor: Executor | None = None,
    store: str | os.PathLike[str] | None = None,
) -> tuple[tuple[str, ...], Float[Tensor, "r m"]]:
    """Trains once for each row of weights, and asks each model.

    Args:
        train: As in `leave_out`.
        objective: As in `leave_out`.
        weights: Sample weights, one training in each row.
        executor: As in `leave_out`.
        store: As in `leave_out`.

    Returns:
        Names of the objectives, and their values in float64.

    Raises:
        ObjectiveError: If the objective's names differ from model to model.
        NonFiniteError: If an answer is NaN or infinite.
    """
    _refuse_wrong_kinds(objective, store, "a retrained model")
    with torch.random.fork_rng(), torch.enable_grad():
        found = _answers(train, objective, weights, executor, None if store is None else Path(store))
    names = found[0][0]
    if any(other != names for other, _ in found):
        raise ObjectiveError(f"The objective's names differ between retrained models; the first gave {names}.")
    values = torch.tensor([answer for _, answer in found], dtype=torch.float64)
    if not values.isfinite().all():
        raise NonFiniteError(
            "The objective is NaN or infinite at a retrained model: training diverged, or the question did."
        )
    return names, values


def _refuse_wrong_kinds(objective: object, store: object, verb: str) -> None:
    require_question(objective, verb)
    if store is not None:
        require(store, (str, os.PathLike), "store=", "a folder", 'store="retrained"')


def _count(train: Training, n: int | None, ids: Sequence[Id] | None) -> int:
    known = train.n if isinstance(train, AbstractTraining) else n
    if known is None:
        raise DataError("leave_out needs n, the number of training samples, when train is a function. Type: n=len(x).")
    if n is not None and n != known:
        raise DataError(f"Got n={n}, but the recipe has {known} samples.")
    if ids is not None and len(ids) != known:
        raise DataError(f"Got {len(ids)} ids for {known} samples; needed one each.")
    return known


def _groups(drop: Iterable[Id] | Mapping[Id, Iterable[Id]], rows: Mapping[Id, int]) -> dict[Id, list[int]]:
    words = "the samples of leave_out"
    named = drop if isinstance(drop, Mapping) else {plain_id(label): [label] for label in listed(drop, words)}
    groups = {name: [row_of(label, rows) for label in listed(members, words)] for name, members in named.items()}
    if not groups:
        raise DataError("Got nothing to leave out; needed ids, or {group name: ids}.")
    return groups


def _answers(
    train: Training,
    objective: Objective,
    weights: Float[Tensor, "r n"],
    executor: Executor | None,
    store: Path | None,
) -> list[Answer]:
    files = _files(train, objective, weights, store)
    found = {row: answer for row, file in enumerate(files) if file and (answer := _read(file)) is not None}
    missing = [row for row in range(len(weights)) if row not in found]
    size = train.recipe.at_once if isinstance(train, AbstractTraining) else 1
    jobs = [missing[start : start + size] for start in range(0, len(missing), size)]
    with tqdm(total=len(weights), initial=len(found), desc="retraining", unit="model", disable=None) as bar:
        for job, answers in _run(train, objective, weights, jobs, executor):
            for row, answer in zip(job, answers, strict=True):
                found[row] = answer
                if (file := files[row]) is not None:
                    write_atomically(file, json.dumps({"names": answer[0], "values": answer[1]}).encode())
            bar.update(len(job))
    if store is not None and missing:
        _warn_of_moving(files[0], _files(train, objective, weights[:1], store)[0])
    return [found[row] for row in range(len(weights))]


def _run(
    train: Training,
    objective: Objective,
    weights: Float[Tensor, "r n"],
    jobs: list[list[int]],
    executor: Executor | None,
) -> Iterator[tuple[list[int], list[Answer]]]:
    if executor is None:
        for job in jobs:
            yield job, retrained_values(train, objective, weights[job])
        return
    futures: dict[Future[list[Answer]], list[int]] = {}
    failure: BaseException | None = None
    try:
        try:
            futures.update((executor.submit(retrained_values, train, objective, weights[job]), job) for job in jobs)
        except Exception as error:  # the pool broke while jobs were handed to it
            failure, futures = error, _under_way(futures)
        while futures:
            for future in as_completed(futures):
                job, error = futures.pop(future), _failure(future)
                if error is None:
                    answers = future.result()
                    del future  # dask would train again what a lost worker had finished, for whoever still holds it
                    yield job, answers
                elif failure is None:
                    failure, futures = error, _under_way(futures)
                    break
    finally:
        _under_way(futures)
    if failure is not None:
        raise failure


def _under_way(futures: dict[Future[list[Answer]], list[int]]) -> dict[Future[list[Answer]], list[int]]:
    """Cancels what has not begun; the rest is waited for, and kept."""
    return {future: job for future, job in futures.items() if not future.cancel()}


def _failure(future: Future[list[Answer]]) -> BaseException | None:
    if not future.cancelled():
        return future.exception()
    return CancelledError(
        "The executor gave up retrainings that had not finished: it was shut down, or lost its connection. With "
        "store=folder, the same call with a new executor trains what is missing."
    )


def retrained_values(train: Training, objective: Objective, weights: Float[Tensor, "c n"]) -> list[Answer]:
    """Trains once for each row and asks; runs wherever the executor puts it.

    Args:
        train: As in `leave_out`.
        objective: As in `leave_out`.
        weights: Sample weights, one training in each row.

    Returns:
        Names and values for each row.
    """
    return [_asked(objective, model) for model in trained_models(train, weights)]


def trained_models(train: Training, weights: Float[Tensor, "c n"]) -> Iterator[nn.Module]:
    """One model for each row; every training function begins with the same state of the global generator.

    Args:
        train: A training function or a recipe.
        weights: Sample weights, one training in each row.

    Yields:
        Trained modules, in order.

    Raises:
        UnsupportedError: If the training function does not return a module.
    """
    if isinstance(train, AbstractTraining):
        yield from train.retrain(weights)
        return
    start = torch.Generator().manual_seed(0).get_state()
    for row in weights:
        torch.set_rng_state(start)  # the caller puts the global state back
        model = train(row)
        if not isinstance(model, nn.Module):
            raise UnsupportedError(f"The training function returned {type(model).__name__}; needed a torch.nn.Module.")
        yield model


def _asked(objective: Objective, model: nn.Module) -> Answer:
    names, values = evaluate(objective, model)
    return names, values.tolist()


def _files(train: Training, objective: Objective, weights: Tensor, store: Path | None) -> list[Path | None]:
    if store is None:
        return [None] * len(weights)
    store.mkdir(parents=True, exist_ok=True)
    what = content_hash(train.recipe.content if isinstance(train, AbstractTraining) else train, objective)
    return [store / f"{content_hash(what, row)}.json" for row in weights]


def _warn_of_moving(before: Path | None, now: Path | None) -> None:
    """Results are found again by the content of all that made them, which must not change while it is used."""
    if before != now:
        warnings.warn(
            "Using it changed something that the training or the question refers to: a counter, a cache, a random "
            "generator. So what the store keeps now will not be found again, and the next call trains anew. Make what "
            "changes inside the function.",
            StoreWarning,
            stacklevel=2,
        )


def _read(file: Path) -> Answer | None:
    try:
        content = json.loads(file.read_bytes())
        return tuple(content["names"]), [float(value) for value in content["values"]]
    except (OSError, ValueError, KeyError, TypeError):  # absent or damaged: train again
        return None
