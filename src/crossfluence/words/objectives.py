"""Questions to a table of word vectors: what is near what, what answers an analogy, how far did a word move?"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn

from crossfluence.errors import ObjectiveError, WordError
from crossfluence.extend import Objective

from .association import WEAT, PermutationTest, weat
from .vectors import Table, cosines, nearest, read, refuse_same_rows, unit, word_vectors
from .word_sets import rows_of

__all__ = [
    "WEAT", "PermutationTest", "analogy_margin", "cluster_margin", "distance", "log_cluster", "moved", "nearest",
    "weat", "word_vectors",
]  # fmt: skip

Clusters: TypeAlias = Tensor | Sequence[Sequence[str]]
"""Fixed centres `(k, d)`, or the member words of each cluster, whose mean is its centre."""


def analogy_margin(
    a: str,
    b: str,
    c: str,
    d: str,
    index: Mapping[str, int],
    *,
    rival: str | None = None,
    table: Table = word_vectors,
) -> Objective:
    """Margin of the analogy "a is to b as c is to d": positive if d is the first answer.

    The cosine of b - a + c with d, less its cosine with a rival, all vectors of length one first. The rival is the
    best other word of the model that is asked, so the sign always says whether the answer is right; where two rivals
    are level the margin has a kink, and a fixed `rival` gives a smooth question.

    Args:
        a: As "man" in: man is to king as woman is to queen.
        b: "king".
        c: "woman".
        d: "queen".
        index: Word to row of the table.
        rival: One word to compare with always.
        table: `model -> (V, d)`, where the model keeps its vectors elsewhere.

    Returns:
        An objective; positive scores helped the answer. Unit: cosines.

    Raises:
        WordError: If a word has no vector, or two of them the same.

    Example:
        >>> model = nn.Module()
        >>> model.word_vectors = torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0], [-1.0, 1.0], [-1.0, 0.0]])
        >>> index = {"man": 0, "king": 1, "woman": 2, "queen": 3, "hut": 4}
        >>> round(analogy_margin("man", "king", "woman", "queen", index)(model).item(), 3)
        0.647
    """
    named = rows_of([a, b, c, d, *([rival] if rival is not None else [])], index)
    rows = [named[word] for word in (a, b, c, d)]
    refuse_same_rows(list(zip((a, b, c, d), rows, strict=True)), "analogy_margin")
    others = sorted({named[rival]} if rival is not None else set(index.values()))
    others = [row for row in others if row not in rows]
    if not others:
        raise WordError(f"analogy_margin has no rival to {d!r}: needed a word that is none of {[a, b, c, d]}.")

    def question(model: nn.Module) -> Tensor:
        every = table(model)
        first, second, third, answer = unit(read(every, rows), (a, b, c, d))
        aim = second - first + third
        best = cosines(every.detach(), aim.detach(), others).argmax(0, keepdim=True)  # its index has no derivative
        beaten = unit(every[torch.tensor(others, device=every.device)[best]], [f"the rival of {d}"])[0]
        return unit(aim.unsqueeze(0), [f"{b} - {a} + {c}"])[0] @ (answer - beaten)

    return question


def distance(
    first: str, second: str, index: Mapping[str, int], *, metric: str = "cosine", table: Table = word_vectors
) -> Objective:
    """Distance between two words.

    Args:
        first: A word.
        second: Another.
        index: Word to row of the table.
        metric: `"cosine"`, one less the cosine, from 0 to 2; or `"euclidean"`, in units of the vectors.
        table: `model -> (V, d)`, where the model keeps its vectors elsewhere.

    Returns:
        An objective; positive scores pushed the words apart.

    Raises:
        ValueError: If there is no such metric.
        WordError: If a word has no vector, or both the same.

    Example:
        >>> model = nn.Module()
        >>> model.word_vectors = torch.tensor([[3.0, 0.0], [0.0, 4.0]])
        >>> distance("jedi", "sith", {"jedi": 0, "sith": 1}, metric="euclidean")(model)
        tensor(5.)
    """
    if metric not in {"cosine", "euclidean"}:
        raise ValueError(f"metric={metric!r}; needed 'cosine' or 'euclidean'.")
    rows = [rows_of([word], index)[word] for word in (first, second)]
    refuse_same_rows(list(zip((first, second), rows, strict=True)), "distance")

    def question(model: nn.Module) -> Tensor:
        vectors = read(table(model), rows)
        if metric == "euclidean":
            return torch.linalg.vector_norm(vectors[0] - vectors[1])
        one, other = unit(vectors, (first, second))
        return 1 - one @ other

    return question


def cluster_margin(
    word: str,
    clusters: Clusters,
    first: int,
    second: int,
    index: Mapping[str, int],
    *,
    length_one: bool = True,
    table: Table = word_vectors,
) -> Objective:
    """Margin of a word between two clusters, as a log ratio.

    Memberships are those of deep embedded clustering, Student's t with one degree of freedom: with z the vector of the
    word, log (1 + |z - second|²) - log (1 + |z - first|²).

    Clusters given by their words have a centre in every model that is asked, the mean of its members without the word
    itself. Training again turns and stretches a space of word vectors: then such a question still means the same, while
    fixed centres are left behind.

    Args:
        word: The word.
        clusters: The words of each cluster, or fixed centres `(k, d)`.
        first: The position of the cluster whose side is positive.
        second: That of the other.
        index: Word to row of the table.
        length_one: Scale the vectors to length one first, so that only directions count. For fixed centres this must be
            as it was when they were found.
        table: `model -> (V, d)`, where the model keeps its vectors elsewhere.

    Returns:
        An objective; positive scores pulled the word from the second cluster to the first. Unit: nats.

    Raises:
        WordError: If a word has no vector.
        ObjectiveError: If there are no such clusters, or one has no other word.

    Example:
        >>> model = nn.Module()
        >>> model.word_vectors = torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 2.0]])
        >>> index = {"dooku": 0, "sith": 1, "jedi": 2}
        >>> round(cluster_margin("dooku", [["sith", "dooku"], ["jedi"]], 0, 1, index)(model).item(), 3)
        1.089

    References:
        Xie, Girshick and Farhadi, "Unsupervised deep embedding for clustering analysis", ICML 2016.
    """
    _refuse_positions(clusters, first, second)
    kernels = _log_kernels(word, clusters, index, length_one, table)

    def question(model: nn.Module) -> Tensor:
        near = kernels(model)
        return near[first] - near[second]

    return question


def log_cluster(
    word: str,
    clusters: Clusters,
    cluster: int,
    index: Mapping[str, int],
    *,
    length_one: bool = True,
    table: Table = word_vectors,
) -> Objective:
    """The log of the probability that a word belongs to a cluster rather than to any of the others.

    Args:
        word: The word.
        clusters: The words of each cluster, or fixed centres `(k, d)`; see `cluster_margin`.
        cluster: The position of the cluster.
        index: Word to row of the table.
        length_one: Scale the vectors to length one first.
        table: `model -> (V, d)`, where the model keeps its vectors elsewhere.

    Returns:
        An objective; positive scores pulled the word into the cluster. Unit: nats.

    Raises:
        WordError: If a word has no vector.
        ObjectiveError: If there is no such cluster, or one has no other word.

    Example:
        >>> model = nn.Module()
        >>> model.word_vectors = torch.tensor([[1.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
        >>> index = {"anakin": 0, "sith": 1, "jedi": 2}
        >>> round(log_cluster("anakin", [["sith"], ["jedi"]], 0, index)(model).exp().item(), 3)
        0.5
    """
    _refuse_positions(clusters, cluster)
    kernels = _log_kernels(word, clusters, index, length_one, table)
    return lambda model: kernels(model).log_softmax(0)[cluster]


def moved(word: str, initial_table: Tensor, index: Mapping[str, int], *, table: Table = word_vectors) -> Objective:
    """Squared distance of a word's vector from where training started.

    Args:
        word: The word.
        initial_table: The table before training, `(V, d)`; one row is copied.
        index: Word to row of both tables.
        table: `model -> (V, d)`, where the model keeps its vectors elsewhere.

    Returns:
        An objective; positive scores moved the word away. Unit: that of the vectors, squared.

    Raises:
        WordError: If the word has no vector.
        ObjectiveError: If the tables have different shapes.

    Example:
        >>> model = nn.Module()
        >>> model.word_vectors = torch.tensor([[3.0, 4.0]])
        >>> moved("ring", torch.zeros(1, 2), {"ring": 0})(model)
        tensor(25.)

    References:
        Silva, Chopra and Gombolay, "Cross-loss influence functions to explain deep network representations",
        AISTATS 2022.
    """
    own, shape = list(rows_of([word], index).values()), tuple(initial_table.shape)
    start = read(initial_table.detach(), own).clone()

    def question(model: nn.Module) -> Tensor:
        now = table(model)
        if tuple(now.shape) != shape:
            raise ObjectiveError(
                f"moved got an initial table of shape {shape} and a model with {tuple(now.shape)}; needed the table "
                f"that this model started from. Copy it before training: table(model).detach().clone()."
            )
        return (read(now, own) - start.to(now.device, now.dtype)).square().sum()

    return question


def _log_kernels(
    word: str, clusters: Clusters, index: Mapping[str, int], length_one: bool, table: Table
) -> Callable[[nn.Module], Tensor]:
    """`model -> (k,)`: the log of the unnormalised membership of a word in each cluster."""
    own = rows_of([word], index)
    fixed = _fixed_centres(clusters, length_one) if isinstance(clusters, Tensor) else None
    members = [] if isinstance(clusters, Tensor) else [_members(part, own, index) for part in clusters]

    def placed(every: Tensor, rows: Mapping[str, int]) -> Tensor:
        vectors = read(every, list(rows.values()))
        return unit(vectors, list(rows)) if length_one else vectors

    def kernels(model: nn.Module) -> Tensor:
        every = table(model)
        z = placed(every, own)[0]
        if fixed is None:
            centres = torch.stack([placed(every, rows).mean(0) for rows in members])  # (k, d)
        elif fixed.shape[1] != len(z):
            raise ObjectiveError(f"The centres have shape {tuple(fixed.shape)}; needed (k, {len(z)}) as the vectors.")
        else:
            centres = fixed.to(z.device, z.dtype)
        return -(z - centres).square().sum(1).log1p()

    return kernels


def _members(part: Sequence[str], own: Mapping[str, int], index: Mapping[str, int]) -> dict[str, int]:
    """The rows of a cluster's words without the one that is asked about."""
    if isinstance(part, str):
        raise ObjectiveError(f"A cluster is the string {part!r}; needed a list of words, such as {part.split()}.")
    rows = {word: row for word, row in rows_of(part, index).items() if row not in own.values()}
    if not rows:
        raise ObjectiveError(
            f"The cluster {list(part)} has no word besides {next(iter(own))!r}, so it has no centre to compare with. "
            f"Give at least one other word."
        )
    return rows


def _fixed_centres(centres: Tensor, length_one: bool) -> Tensor:
    if centres.ndim != 2 or not centres.isfinite().all():
        raise ObjectiveError(f"The centres have shape {tuple(centres.shape)}; needed (k, d), all of them finite.")
    longest = torch.linalg.vector_norm(centres, dim=1).max().item()
    if length_one and longest > 1 + 1e-3:
        raise ObjectiveError(
            f"The centres are up to {longest:.3g} long, and no mean of vectors of length one is longer than 1: they "
            f"were found among vectors as they are. Type length_one=False."
        )
    return centres.detach().clone()


def _refuse_positions(clusters: Clusters, *positions: int) -> None:
    if len(clusters) < 2 or len(set(positions)) < len(positions):
        raise ObjectiveError(f"Cluster {list(positions)} of {len(clusters)}; needed two clusters that differ.")
    if wrong := [position for position in positions if not 0 <= position < len(clusters)]:
        raise ObjectiveError(f"No cluster {wrong[0]}; needed a position from 0 to {len(clusters) - 1}.")
