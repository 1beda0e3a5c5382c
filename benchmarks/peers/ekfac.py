"""EK-FAC for all pairs of training and test samples, beside kronfluence and dattri: CPU time and agreement.

Usage: CROSSFLUENCE_DATA=<folder> python -m benchmarks.peers.ekfac --peer-python <python with kronfluence and dattri>
    python -m venv peers && peers/bin/pip install -c constraints.txt torch
    peers/bin/pip install kronfluence==1.0.1 dattri==0.3.0

Five problems, each trained once: a perceptron 784-512-256-10, a small convolutional network and a vision transformer of
four layers on MNIST, a character transformer of four layers on Shakespeare (sequences of 64), and there, too, the GPT-2
of `transformers` with six layers of 256 (sequences of 128 words, vocabulary of 5,000; its head is left out, whose
factor would be of the vocabulary's size; kronfluence gets its Conv1D layers as linear ones). Then each library runs in
its own process, on one thread, in turns: factors of the empirical Fisher matrix for every linear layer and convolution,
corrected eigenvalues, damping of 0.1 mean eigenvalues, all scores; ours also with a pilot, and kronfluence fitted to as
many samples as a pilot of 100 takes (140, 40 of them for eigenvalues). An epoch is forwards and backwards over all
samples. The time is the process's CPU time after the imports, the memory its peak over that before the work. Ours
multiplies gradients in bfloat16 where the processor has instructions for it and the tolerance allows it (one row does
not); kronfluence has a setting for that, which is a row, too. dattri knows linear layers only, and has one damping for
all layers, 0.1 of the mean of them all: its scores are compared with ours damped alike.

With `--halves 24 --kept FOLDER`, each row has the LDS over models trained on random halves, one training each, and 95 %
of its difference from that of exact EK-FAC over questions. The folder keeps the trained model, every library's answer
and those of the halves: a run that was stopped goes on. `--libraries` shows those that are kept, too.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

import torch
from torch import Tensor, nn

from benchmarks.common.losses import Pair, classification
from benchmarks.common.models import GPT2, Transformer, VisionTransformer, convolutions, perceptron
from benchmarks.common.options import options
from benchmarks.common.process import ROOT
from benchmarks.common.results import save
from benchmarks.common.timing import epoch, seconds
from benchmarks.data.mnist import mnist
from benchmarks.data.shakespeare import shakespeare, shakespeare_words

from .halves import difference, lds, retrained
from .libraries import Answer, Problem, ask

Made = TypeVar("Made")
LIBRARIES = (
    "kronfluence", "kronfluence, 140 samples", "kronfluence, 140 samples, bfloat16", "crossfluence",
    "crossfluence, pilot of 100", "crossfluence, pilot of 100, tolerance of 0", "crossfluence, pilot of 200",
    "crossfluence, pilot auto", "dattri",
)  # fmt: skip


def images(n: int, questions: int) -> tuple[Pair, Pair]:
    return mnist("train", n), mnist("test", questions)


@dataclass(frozen=True)
class Training:
    """A model, its data, and how it is trained.

    Attributes:
        model: Untrained.
        data: Training samples and questions, from how many there are of each.
        n: Training samples, unless said otherwise.
        questions: How many.
        batch: Samples in a step, and in a pass.
        epochs: Of training.
        lr: Of SGD with momentum 0.9.
        exact: What has the scores of EK-FAC without a tolerance: layers that see many positions never have one.
    """

    model: Callable[[], nn.Module]
    data: Callable[[int, int], tuple[Pair, Pair]]
    n: int
    questions: int
    batch: int
    epochs: int
    lr: float
    exact: str = "crossfluence, tolerance of 0"


TRAININGS = {
    "perceptron": Training(lambda: perceptron(784, 512, 256, 10, activation=nn.ReLU), images, 10_000, 200, 256, 3, 0.1),
    "convolutions": Training(convolutions, images, 2_000, 200, 256, 10, 0.1),
    "vision": Training(VisionTransformer, images, 2_000, 100, 100, 5, 0.02),
    "transformer": Training(Transformer, shakespeare, 2_000, 100, 50, 3, 1e-3, "crossfluence"),
    "gpt2": Training(GPT2, shakespeare_words, 300, 100, 50, 1, 3e-4, "crossfluence"),
}


def trained(training: Training, x: Tensor, y: Tensor) -> nn.Module:
    torch.manual_seed(0)
    model = training.model()
    optimizer = torch.optim.SGD(model.parameters(), lr=training.lr, momentum=0.9)
    for _ in range(training.epochs):
        for rows in torch.randperm(len(x)).split(training.batch):
            optimizer.zero_grad()
            classification(model, (x[rows], y[rows])).mean().backward()
            optimizer.step()
    model.zero_grad()
    return model.eval()


def paced(training: Training, train: Pair) -> tuple[nn.Module, float]:
    """The trained model, and the CPU seconds of an epoch."""
    torch.set_num_threads(1)
    model = trained(training, *train)
    batches = list(zip(*(part.split(training.batch) for part in train), strict=True))
    epoch(model, batches)
    return model, seconds(lambda: epoch(model, batches))


def once(folder: Path | None, name: str, made: Callable[[], Made]) -> Made:
    """A value out of the folder, or made and put there."""
    if folder is None:
        return made()
    file = folder / f"{name}.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        found = made()
        if found:
            torch.save(found, file)
        return found
    return torch.load(file, weights_only=False)


def commit() -> str:
    """The code's, and whether it was changed since; results may have been."""

    def git(*words: str) -> str:
        return subprocess.run(["git", *words], capture_output=True, text=True, cwd=ROOT).stdout.strip()

    changed = git("status", "--porcelain", "--", "benchmarks", "src", ":!benchmarks/results")
    return git("describe", "--always") + ("-dirty" if changed else "")


def side_by_side(
    libraries: Sequence[str], peer_python: str, name: str, n: int, halves: int = 0, kept: Path | None = None
) -> Iterator[dict[str, str]]:
    training = TRAININGS[name]
    train, test = training.data(n, training.questions)
    folder = kept and kept / f"{name}-{n}"
    model, pace = once(folder, "model", lambda: paced(training, train))
    problem = Problem(model, "cross entropy", train, test, batch=training.batch, queries=training.questions)

    def answer(python: str, library: str) -> Answer | None:
        found = once(folder, library, lambda: tuple(ask(python, library, problem) or ()))
        return Answer(*found) if found else None

    exact = answer(sys.executable, training.exact)
    if exact is None:
        raise SystemExit(1)
    answers = retrained(partial(trained, training), train, test, halves, folder) if folder and halves else None
    kronfluence_took: float | None = None
    for library in libraries:
        python = sys.executable if library.startswith("crossfluence") else peer_python
        found = exact if library == training.exact else answer(python, library)
        alike = answer(sys.executable, "crossfluence, one damping") if found and library == "dattri" else exact
        if found is None or alike is None:
            continue
        kronfluence_took = found.seconds if library == "kronfluence" else kronfluence_took
        agreement = torch.corrcoef(torch.stack([alike.scores.flatten(), found.scores.flatten()]).double())[0, 1]
        yield {
            "problem": name, "library": library, "version": found.version, "n": str(n),
            "questions": str(training.questions), "cpu seconds": f"{found.seconds:.2f}",
            "epochs": f"{found.seconds / pace:.2f}",
            "times kronfluence": f"{kronfluence_took / found.seconds:.2f}" if kronfluence_took else "",
            "megabytes": f"{found.megabytes:.0f}", "correlation with exact": f"{agreement:.5f}",
            **accuracy(found.scores, alike.scores, answers), "torch": found.torch,
        }  # fmt: skip


def accuracy(scores: Tensor, exact: Tensor, answers: Tensor | None) -> dict[str, str]:
    """LDS, and 95 % of its difference from that of the exact scores; empty without models of halves."""
    if answers is None:
        return {"lds": "", "lds over exact": ""}
    own, others = lds(scores, answers), lds(exact, answers)
    low, high = difference(own, others)
    return {"lds": f"{float(own.mean()):.3f}", "lds over exact": f"{low:+.4f} to {high:+.4f}"}


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--peer-python", help="has kronfluence and dattri")
    parser.add_argument("--problem", default="perceptron", choices=TRAININGS)
    parser.add_argument("--n", type=int)
    parser.add_argument("--halves", type=int, default=24, help="models that are trained for the LDS, with --kept")
    parser.add_argument("--kept", type=Path, help="a folder for their answers")
    parser.add_argument("--libraries", nargs="+", default=list(LIBRARIES), choices=LIBRARIES)
    asked = parser.parse_args()
    if not asked.peer_python and any(not name.startswith("crossfluence") for name in asked.libraries):
        parser.error("--peer-python names the Python that has kronfluence and dattri; or add --libraries crossfluence")
    rows, made, n = [], {"commit": commit()}, asked.n or TRAININGS[asked.problem].n
    for row in side_by_side(asked.libraries, asked.peer_python, asked.problem, n, asked.halves, asked.kept):
        rows.append(row)
        print(row, flush=True)
        save(f"peers-{asked.problem}-{n}", rows, made)


if __name__ == "__main__":
    main()
