"""Reading a model's table of word vectors: rows, lengths, cosines, neighbours."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from crossfluence.errors import ObjectiveError, WordError

from .word_sets import rows_of

Table: TypeAlias = Callable[[nn.Module], Tensor]
"""`model -> (V, d)`: where a model keeps its word vectors."""


def word_vectors(model: nn.Module) -> Tensor:
    """The usual table: `model.word_vectors`, shape `(V, d)`.

    Args:
        model: As `models.skipgram.SkipGram`.

    Returns:
        The tensor itself.

    Raises:
        ObjectiveError: If the model has no such tensor.

    Example:
        >>> word_vectors(nn.Bilinear(2, 2, 1))
        Traceback (most recent call last):
        crossfluence.errors.ObjectiveError: Bilinear has no tensor word_vectors; needed a table (V, d)...
    """
    found = getattr(model, "word_vectors", None)
    if not isinstance(found, Tensor):
        tables = [name for name, tensor in model.named_parameters() if tensor.ndim == 2]
        raise ObjectiveError(
            f"{type(model).__name__} has no tensor word_vectors; needed a table (V, d). Its matrices are {tables[:5]}. "
            f"Type table=lambda model: model.{tables[0] if tables else '...'}"
        )
    return found


def nearest(
    model: nn.Module, word: str, index: Mapping[str, int], k: int = 10, *, table: Table = word_vectors
) -> list[tuple[str, float]]:
    """The words nearest to a word: to look at, not to differentiate.

    Args:
        model: Not changed.
        word: Not among its own neighbours.
        index: Word to row of the table; words with a vector of length zero are left out.
        k: How many.
        table: `model -> (V, d)`, where the model keeps its vectors elsewhere.

    Returns:
        At most k words with their cosines, the nearest first.

    Raises:
        WordError: If the word has no vector.

    Example:
        >>> model = nn.Module()
        >>> model.word_vectors = torch.tensor([[1.0, 0.0], [0.0, 1.0], [3.0, 4.0]])
        >>> [(word, round(cosine, 2)) for word, cosine in nearest(model, "sith", {"sith": 0, "hut": 1, "jedi": 2}, 1)]
        [('jedi', 0.6)]
    """
    own = list(rows_of([word], index).values())
    others = [(other, row) for other, row in index.items() if row != own[0]]
    with torch.no_grad():
        every = table(model)
        near = cosines(every, unit(read(every, own), [word])[0], [row for _, row in others])
    values, order = near.topk(min(max(k, 0), len(others)))
    best = zip(values.tolist(), order.tolist(), strict=True)
    return [(others[position][0], value) for value, position in best if value >= -2]


def read(table: Tensor, rows: Sequence[int]) -> Tensor:
    """Some rows of a table, `(rows, d)`; no other row is touched."""
    if table.ndim != 2 or max(rows) >= len(table):
        raise ObjectiveError(
            f"The table of word vectors has shape {tuple(table.shape)}, the index names row {max(rows)}; needed (V, d) "
            f"with a row for every word. Give the index and the table of one model."
        )
    return table[torch.tensor(rows, device=table.device)]


def unit(vectors: Tensor, names: Sequence[str]) -> Tensor:
    """Rows of length one; a row without direction is refused by name."""
    lengths = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    if zero := where(lengths[:, 0] == 0):
        raise ObjectiveError(
            f"The vectors of {[names[row] for row in zero[:5]]} have length zero, so they have no cosine with any "
            f"other. Leave these words out, or start their vectors at random."
        )
    return vectors / lengths


def cosines(table: Tensor, aim: Tensor, rows: Sequence[int]) -> Tensor:
    """The cosine of some rows with one vector; of rows of length zero, minus infinity."""
    chosen = read(table, rows)
    lengths = torch.linalg.vector_norm(chosen, dim=1)
    return torch.where(lengths > 0, chosen @ aim / (lengths * torch.linalg.vector_norm(aim)), -torch.inf)


def where(condition: Tensor) -> list[int]:
    """Positions at which a vector of conditions holds; none inside `vmap`, which lets nobody look at values."""
    try:
        return [int(position) for position in condition.nonzero()] if bool(condition.any()) else []
    except RuntimeError as error:
        if "vmap" not in str(error):
            raise
        return []  # the result is then NaN, which the library refuses wherever it reads one


def refuse_same_rows(rows: Sequence[tuple[str, int]], what: str) -> None:
    """Refuses two words that are looked up as one."""
    seen: dict[int, str] = {}
    for word, row in rows:
        if row in seen:
            raise WordError(
                f"{what}: {seen[row]!r} and {word!r} have the same vector (row {row}). Keep one of the two."
            )
        seen[row] = word
