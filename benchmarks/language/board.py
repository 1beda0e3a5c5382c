"""A board of estimators on a small causal transformer, after the one of the library bergson, in small.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=FOLDER python -m benchmarks.language.board KEPT --sequences 200
    [--peer-python PYTHON]   with kronfluence and dattri, see benchmarks/peers/libraries.py
    [--tail-patch]           one more step of training on the strongest 2 % in place of training again without them

A transformer of two layers on Shakespeare's characters (sequences of 32; AdamW 2e-3 falling along a line, clipping 1,
steps of 20 sequences, three epochs), asked for the losses of six sequences of the last tenth of the text. LDS: rank
correlation over subsets without 5 % of the sequences, in the training that the scores belong to, and in trainings
with other orders. QLD: the rise of each question's loss without the 2 % that lower it most, over as many random ones,
in nats of a sequence; the same with 2 % of the tokens. Gradient norm, BM25 and random scores are the controls.

Other libraries get the trained model, in a process of their own; bergson is not among them: it reads models of
`transformers` alone, and its package installs PyTorch for CUDA. `source` has three segments and Gauss-Newton products.
Retrainings are kept in the folder KEPT. Writes benchmarks/results/language-board.csv, and the fall of each question's
loss by a step of the training's own AdamW on the strongest 2 %, beyond that of random ones, to language-tail.csv.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.models import Transformer
from benchmarks.common.options import options
from benchmarks.common.results import kept, line, save
from benchmarks.common.timing import epoch, seconds, timed
from benchmarks.data.shakespeare import shakespeare, text_of
from benchmarks.language.controls import bm25
from benchmarks.peers.libraries import Problem, ask

LENGTH, QUESTIONS, SUBSETS, SEEDS, DROP, TOP, BATCH, RATE = 32, 6, 40, 3, 0.05, 0.02, 20, 2e-3
Columns = tuple[Tensor, ...]


def token_losses(z: Tensor, batch: Columns) -> Tensor:
    """Cross-entropy of each character; times its weight, if the batch has weights."""
    found = nn.functional.cross_entropy(z.transpose(1, 2), batch[1], reduction="none")
    return found * batch[2] if len(batch) > 2 else found


def logits(model: nn.Module, batch: Columns) -> Tensor:
    return model(batch[0])


def positions(batch: Columns) -> Tensor:
    return torch.arange(batch[0].shape[1]).expand(batch[0].shape)


LOSS = cf.OnOutputs.by_token(logits, token_losses, positions)


@dataclass(frozen=True, eq=False)
class Board:
    """The training and its questions.

    Attributes:
        recipe: The training.
        train: Sequences and the characters that follow.
        test: The same of the questions.
    """

    recipe: cf.Recipe
    train: Columns
    test: Columns

    @classmethod
    def make(cls, n: int, eps_root: float) -> Board:
        """Reads the data."""
        train, test = shakespeare(n, QUESTIONS, LENGTH)
        with torch.random.fork_rng():
            torch.manual_seed(0)
            start = Transformer(LENGTH, 32, 2, 2)
        recipe = cf.Recipe(
            start,
            LOSS,
            train,
            optimizer=cf.AdamW(RATE, eps_root=eps_root),
            epochs=3,
            batch_size=BATCH,
            schedule=cf.linear,
            clipping=1.0,
        )
        return cls(recipe, train, test)

    def ask(self, model: nn.Module) -> Tensor:
        """The loss of each question."""
        return token_losses(model(self.test[0]), self.test).sum(1)

    def risk(self) -> cf.Risk:
        """Where the training ended, with its record."""
        return self.recipe.risk(self.recipe.train(), record=self.recipe.record())

    def train_tokens(self, weights: Tensor) -> nn.Module:
        """Trained with a weight for each token."""
        x, y = self.train
        return replace(self.recipe, data=(x, y, weights.reshape(x.shape).to(torch.float32))).train()


def refined(steps: int = 20) -> cf.CG:
    return cf.CG(cf.Relative(0.1), rtol=1e-2, max_steps=steps, curvature=cf.GaussNewton(), preconditioner=cf.EKFAC())


def by_hand(values: Tensor, name: str) -> cf.Scores:
    return cf.Scores(values, tuple(range(len(values))), tuple(map(str, range(values.shape[1]))), name)


def cosine(board: Board) -> cf.Scores:
    risk = board.risk()
    scores, own = cf.influence(risk, board.ask, cf.Identity()), cf.self_influence(risk, cf.Identity())
    return replace(scores, values=scores.values / own.values.abs().sqrt())


def norm(board: Board) -> cf.Scores:
    own = cf.self_influence(board.risk(), cf.Identity()).values.abs()
    return by_hand(-own.sqrt().expand(-1, QUESTIONS), "gradient norm")


def words(board: Board) -> cf.Scores:
    texts, queries = (list(map(text_of, part[0])) for part in (board.train, board.test))
    return by_hand(-torch.tensor([bm25(query, texts) for query in queries]).T, "BM25")


def noise(board: Board) -> cf.Scores:
    return by_hand(torch.randn(board.recipe.n, QUESTIONS, generator=torch.Generator().manual_seed(1)), "random")


def solved(solver: Callable[[], object], board: Board, unit: str = "sample") -> cf.Scores:
    return cf.influence(board.risk(), board.ask, solver(), unit=unit)  # pyright: ignore


ROWS: dict[str, Callable[[Board], cf.Scores]] = {
    "replay": lambda board: cf.replay(board.recipe, board.ask, groups=0),
    "Horizon": partial(solved, cf.Horizon), "EKFAC": partial(solved, cf.EKFAC),
    "CG from EKFAC": partial(solved, refined),
    **{f"CG from EKFAC, {steps} steps": partial(solved, partial(refined, steps)) for steps in (1, 2, 5, 10)},
    "tracin": lambda board: cf.tracin(board.recipe, board.ask, groups=0),
    "tracin, preconditioned": lambda board: cf.tracin(board.recipe, board.ask, preconditioned=True, groups=0),
    "source": lambda board: cf.source(
        board.recipe, board.ask, segments=3, curvature=cf.GaussNewton(), rtol=0.1, groups=0
    ),
    "gradient cosine": cosine, "gradient norm": norm, "BM25": words, "random": noise,
}  # fmt: skip
PEERS = ("kronfluence", "dattri", "dattri TRAK, 512 directions")
TOKENS = {
    "Horizon, tokens": partial(solved, cf.Horizon, unit="token"),
    "EKFAC, tokens": partial(solved, cf.EKFAC, unit="token"),
}  # fmt: skip


def row(board: Board, name: str, one: float, folder: Path, python: str) -> dict[str, object]:
    """An estimator's figures; seconds in epochs of the training."""
    ranks = {"LDS same seed": "", "LDS other seeds": "", "ceiling": ""}
    if name in PEERS:
        spent, scores = of_peer(board, name, python)
    else:
        spent, scores = timed(lambda: (ROWS | TOKENS)[name](board))
    if scores is None:
        return {"estimator": name, **ranks, "QLD": "failed", "epochs": ""}
    train = board.train_tokens if name in TOKENS else board.recipe
    if name not in TOKENS:
        found = cf.lds(scores, board.recipe, board.ask, drop=DROP, subsets=SUBSETS, seeds=SEEDS, store=folder)
        ranks = dict(zip(ranks, map(str, (found.score, found.across, found.ceiling)), strict=True))
    rise = cf.qld(scores, train, board.ask, drop=TOP, draws=8, store=folder)
    return {"estimator": name, **ranks, "QLD": str(rise.value), "epochs": f"{spent / one:.0f}"}


def patched(board: Board, names: list[str], training: Mapping[str, str]) -> None:
    """One more step on the strongest samples of each estimator that is not there yet."""
    table = [dict[str, object](each) for each in kept("language-tail")]
    done = {each["estimator"] for each in table if training.items() <= each.items()}
    risk = board.risk()
    for name in [name for name in names if name in ROWS and name not in done]:
        scores = ROWS[name](board)
        moved = cf.tail_patch(scores, risk, board.ask, optimizer=cf.AdamW(RATE), share=TOP, draws=8)
        table.append({**training, "estimator": name, "tail patch": str(moved.value)})
        print(line(table[-1]), flush=True)
        save("language-tail", table)


def of_peer(board: Board, name: str, python: str) -> tuple[float, cf.Scores | None]:
    """CPU seconds and scores of another library; none where it fails, and the reason is printed."""
    train, test = ((part[0], part[1]) for part in (board.train, board.test))
    problem = Problem(board.recipe.train(), "cross entropy", train, test, batch=BATCH, queries=QUESTIONS)
    answer = ask(python, name, problem)
    return (0.0, None) if answer is None else (answer.seconds, by_hand(answer.scores.double(), name))


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--sequences", type=int, default=200)
    parser.add_argument("--eps-root", type=float, default=0.0, help="under AdamW's root, so that training is smooth")
    parser.add_argument("--peer-python", help="has kronfluence and dattri")
    parser.add_argument("--tail-patch", action="store_true", help="one more step, in place of training again")
    parser.add_argument(
        "--only", nargs="+", choices=[*ROWS, *PEERS, *TOKENS], help="of the rows that are not there yet"
    )
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    board = Board.make(asked.sequences, asked.eps_root)
    training = {"sequences": str(asked.sequences), "eps_root": f"{asked.eps_root:g}"}
    if asked.tail_patch:
        patched(board, asked.only or list(ROWS), training)
        return
    parts = list(zip(*(column.split(BATCH) for column in board.train), strict=True))
    epoch(board.recipe.init, parts)
    one = seconds(lambda: epoch(board.recipe.init, parts))
    table = [dict[str, object](each) for each in kept("language-board")]
    done = {each["estimator"] for each in table if training.items() <= each.items()}
    names = [*ROWS, *(PEERS if asked.peer_python else ()), *TOKENS]
    for name in [name for name in names if name not in done and name in (asked.only or names)]:
        table.append(training | row(board, name, one, asked.kept, asked.peer_python))
        print(line(table[-1]), flush=True)
        save("language-board", table)


if __name__ == "__main__":
    main()
