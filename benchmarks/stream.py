"""Which stretch of training did it: pronouns swapped in windows of a stream, predicted and trained again.

Run: python -m benchmarks.stream FOLDER [--kept KEPT] [--steps 168]
FOLDER holds `enwiki/enwiki2018plus_sample.txt.xz` and `winobias/`. A causal transformer (two layers of width 192,
words of a vocabulary of 3,000; about 1.5 M parameters) reads sequences of 64 words once, in order, 8 in each step:
Adam 2e-3 after a warm-up, clipping 1. Sequences are those of Wikipedia that hold a pronoun. In a window, masculine
pronouns are made feminine. Question: the mean log-odds, in nats, of feminine against masculine pronouns where
WinoBias's sentences (type 2, development set) have one, and in held-out templates. Windows: fourteen of 7 % each that
make up the training, and the last 7 % and 21 %. Predicted by `cf.what_if` to first order in one sweep through all
steps; achieved by going on from the state at the window's first step. Beside them the spread of the question over five
other orders of the same sequences, a paired interval over sentences, and the sequences whose last 32 words the trained
model says by itself after the first 32, counted by window. Everything is kept in the folder KEPT, so that a stopped
run goes on. About 8 CPU minutes: 4 for the windows, 4 for the other orders.
"""

from __future__ import annotations

import argparse
import lzma
import math
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from time import process_time

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.results import save

LENGTH, BATCH, WORDS, WIDTH, HEADS, LAYERS, WINDOWS, SEEDS = 64, 8, 3000, 192, 4, 2, 14, 5
RATE, UNKNOWN = 2e-3, 0
FEMININE = {"he": "she", "him": "her", "his": "her", "himself": "herself"}
MASCULINE = {"she": "he", "her": "his", "herself": "himself"}
WORD = re.compile(r"[a-z]+(?:'[a-z]+)?|\d+|[^\w\s]")
JOBS = ("nurse", "teacher", "doctor", "lawyer", "engineer", "writer", "singer", "farmer")
TEMPLATES = ("the {} said that", "the {} was born in", "in the same year the {} finished", "as a {} ,")


def sequences(folder: Path, count: int) -> tuple[list[list[str]], dict[str, int]]:
    """Sequences of words that hold a pronoun, in the order of the articles, and numbers of words."""
    found, seen = list[list[str]](), Counter[str]()
    pronouns = FEMININE.keys() | MASCULINE.keys()
    with lzma.open(folder / "enwiki" / "enwiki2018plus_sample.txt.xz", "rt", encoding="utf-8") as file:
        for line in file:
            if line.startswith("<"):
                continue
            words = WORD.findall(line.lower())
            seen.update(words)
            pieces = (words[start : start + LENGTH + 1] for start in range(0, len(words) - LENGTH, LENGTH))
            found.extend(piece for piece in pieces if pronouns & set(piece))
            if len(found) >= count:
                break
    kept = [word for word, _ in seen.most_common(WORDS - 1)]
    return found[:count], {word: number for number, word in enumerate(kept, 1)}


def encoded(rows: Sequence[Sequence[str]], numbers: dict[str, int]) -> Tensor:
    """Word numbers of sequences of one length."""
    return torch.tensor([[numbers.get(word, UNKNOWN) for word in row] for row in rows])


class Transformer(nn.Module):
    """A causal transformer with tied word vectors."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.words = nn.Embedding(WORDS, WIDTH)
            self.places = nn.Parameter(0.02 * torch.randn(LENGTH, WIDTH))
            nn.init.normal_(self.words.weight, std=0.05)
            self.layers = nn.ModuleList(Layer() for _ in range(LAYERS))
            self.norm = nn.LayerNorm(WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        """Logits of the next word, `(b, t, words)`."""
        h = self.words(x) + self.places[: x.shape[1]]
        for layer in self.layers:
            h = layer(h)
        return self.norm(h) @ self.words.weight.T


class Layer(nn.Module):
    """Attention and one hidden layer, each added to what it reads."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.between = nn.LayerNorm(WIDTH), nn.LayerNorm(WIDTH)
        self.attention, self.out = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH)
        self.up, self.down = nn.Linear(WIDTH, 4 * WIDTH), nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, h: Tensor) -> Tensor:
        """From states `(b, t, width)` to the next ones."""
        b, t, _ = h.shape
        q, k, v = self.attention(self.before(h)).view(b, t, 3, HEADS, WIDTH // HEADS).permute(2, 0, 3, 1, 4)
        mask = torch.full((t, t), float("-inf"), device=h.device).triu(1)
        shares = (q @ k.mT / (WIDTH // HEADS) ** 0.5 + mask).softmax(-1)
        h = h + self.out((shares @ v).transpose(1, 2).reshape(b, t, WIDTH))
        return h + self.down(nn.functional.gelu(self.up(self.between(h))))


def loss(model: nn.Module, batch: Tensor) -> Tensor:
    """Of each sequence, the mean over its words, in nats."""
    logits = model(batch[:, :-1])
    return nn.functional.cross_entropy(logits.mT, batch[:, 1:], reduction="none").mean(1)


def prefixes(folder: Path, numbers: dict[str, int]) -> list[tuple[Tensor, int, int]]:
    """What stands before a pronoun, and the numbers of the feminine and the masculine one that may follow."""
    asked = list[tuple[list[str], str]]()
    for line in (folder / "winobias" / "pro_stereotyped_type2.txt.dev").read_text().splitlines():
        words = WORD.findall(re.sub(r"^\d+ ", "", line).replace("[", "").replace("]", "").lower())
        place = next((at for at, word in enumerate(words) if word in FEMININE or word in MASCULINE), 0)
        if 0 < place <= LENGTH:
            asked.append((words[:place], words[place]))
    asked += [(WORD.findall(text.format(job)), "he") for text in TEMPLATES for job in JOBS]
    return [
        (
            encoded([words], numbers)[0],
            numbers[FEMININE.get(pronoun, pronoun)],
            numbers[MASCULINE.get(pronoun, pronoun)],
        )
        for words, pronoun in asked
    ]


class LogOdds:
    """Log-odds of feminine against masculine pronouns after some prefixes."""

    def __init__(self, asked: list[tuple[Tensor, int, int]]) -> None:
        self.x = torch.zeros(len(asked), LENGTH, dtype=torch.long)
        for row, (words, _, _) in enumerate(asked):
            self.x[row, : len(words)] = words
        self.last = torch.tensor([len(words) - 1 for words, _, _ in asked])
        self.pair = torch.tensor([[feminine, masculine] for _, feminine, masculine in asked])

    def each(self, model: nn.Module) -> Tensor:
        """Of each prefix, in nats."""
        logits = model(self.x)[torch.arange(len(self.x)), self.last]
        chosen = logits.gather(1, self.pair)
        return chosen[:, 0] - chosen[:, 1]

    def __call__(self, model: nn.Module) -> Tensor:
        """Their mean."""
        return self.each(model).mean()


@torch.no_grad()
def memorised(model: nn.Module, data: Tensor) -> Tensor:
    """True for sequences whose second half the model says, word by word, from the first half."""
    half = LENGTH // 2
    said = data[:, :half].clone()
    for _ in range(half):
        said = torch.cat([said, model(said)[:, -1].argmax(1, keepdim=True)], 1)
    return (said == data[:, :LENGTH]).all(1)


def poisson_p(counts: Sequence[int]) -> float:
    """The probability that counts of one Poisson rate spread as much: chi squared of their dispersion."""
    mean = statistics.mean(counts)
    if not mean:
        return float("nan")
    spread = sum((count - mean) ** 2 for count in counts) / mean
    return float(torch.special.gammaincc(torch.tensor((len(counts) - 1) / 2), torch.tensor(spread / 2)))


def windows_of(steps: int) -> list[tuple[int, int]]:
    """Those that make up the training, and its last 7 % and 21 %."""
    edges = [round(steps * place / WINDOWS) for place in range(WINDOWS + 1)]
    last = [(round(steps * (1 - share)), steps) for share in (0.07, 0.21)]
    return [*pairwise(edges), *last]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--kept", type=Path, default=Path("stream.kept"))
    parser.add_argument("--steps", type=int, default=168)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    asked.kept.mkdir(exist_ok=True)
    rows, numbers = sequences(asked.folder, asked.steps * BATCH)
    data = encoded(rows, numbers)
    fresh = [[FEMININE.get(word, word) for word in row] for row in rows]
    swapped = encoded(fresh, numbers)
    question = LogOdds(prefixes(asked.folder, numbers))
    recipe = cf.Recipe(
        Transformer(), loss, data, optimizer=cf.Adam(RATE, eps_root=1e-8), epochs=1, batch_size=BATCH, shuffle=False,
        schedule=cf.WarmUp(0.1, cf.linear), clipping=1.0,
    )  # fmt: skip
    count = sum(part.numel() for part in recipe.init.parameters())
    print(f"{count:,} parameters, {len(data):,} sequences, {len(question.x)} prefixes", flush=True)
    found = answered(recipe, question, data, swapped, asked.kept)
    report(found, recipe, question, data, asked.kept)


def answered(
    recipe: cf.Recipe, question: LogOdds, data: Tensor, swapped: Tensor, folder: Path
) -> list[tuple[tuple[int, int], float, float, Tensor]]:
    """For each window what was predicted, what was achieved, and the change for each prefix."""
    file, windows = folder / f"windows-{recipe.content[:12]}.pt", windows_of(recipe.steps)
    if not file.exists():
        started = process_time()
        changed = (data != swapped).any(1).nonzero()[:, 0].tolist()
        other = {row: swapped[row] for row in changed}
        outcomes = cf.what_if(recipe, question, replace=other, steps=windows)
        print(f"all windows: {process_time() - started:.0f} CPU seconds", flush=True)
        with torch.no_grad():
            models = [question.each(outcome.model) for outcome in outcomes]
        figures = [(float(one.predicted), float(one.achieved)) for one in outcomes if one.predicted is not None]
        torch.save({"figures": figures, "each": models}, file)
    held = torch.load(file)
    pairs = zip(windows, held["figures"], held["each"], strict=True)
    return [(window, *figures, each) for window, figures, each in pairs]


def kept_model(recipe: cf.Recipe, folder: Path) -> nn.Module:
    """The trained model, of a file if it was trained before."""
    file, model = folder / f"model-{recipe.content[:12]}.pt", Transformer()
    if not file.exists():
        torch.save(recipe.train().state_dict(), file)
    model.load_state_dict(torch.load(file))
    return model


def report(
    found: list[tuple[tuple[int, int], float, float, Tensor]],
    recipe: cf.Recipe, question: LogOdds, data: Tensor, folder: Path,
) -> None:  # fmt: skip
    """Agreement, the floor of seeds, paired intervals, memorised sequences; prints and keeps them."""
    model = kept_model(recipe, folder)
    with torch.no_grad():
        before, spread = question.each(model), list[float]()
        for seed in range(1, SEEDS + 1):
            spread.append(float(question(kept_model(reordered(recipe, data, seed), folder))))
        lost = float(loss(model, data[-500:]).mean())
    said = memorised(model, data)
    rows = list[dict]()
    for (start, stop), predicted, achieved, each in found:
        away = each - before
        half = 1.96 * float(away.std()) / len(away) ** 0.5
        inside = int(said[start * BATCH : stop * BATCH].sum())
        rows.append({
            "start": start, "stop": stop, "predicted": predicted, "achieved": achieved, "half interval": half,
            "memorised": inside,
        })  # fmt: skip
        print(f"steps {start} to {stop}: predicted {predicted:+.4f}, achieved {achieved:+.4f} ± {half:.4f}")
    save("stream", rows)
    parts = rows[:WINDOWS]
    table = [[row[name] for row in parts] for name in ("predicted", "achieved")]
    x, y = (torch.tensor(column, dtype=torch.float64) for column in table)
    r, slope = float(torch.corrcoef(torch.stack([x, y]))[0, 1]), float((x @ y) / (x @ x))
    print(f"{WINDOWS} windows: r {r:.3f}, slope through zero {slope:.2f}")
    print(f"question {float(before.mean()):+.3f}; over {SEEDS} other orders {statistics.mean(spread):+.3f}, "
          f"standard deviation {statistics.stdev(spread):.3f}; loss of the last sequences {lost:.2f}, "
          f"of the uniform answer {math.log(WORDS):.2f}")  # fmt: skip
    counts = [row["memorised"] for row in parts]
    print(f"memorised by window: {counts}, {sum(counts)} in all; Poisson p {poisson_p(counts):.2f}")


def reordered(recipe: cf.Recipe, data: Tensor, seed: int) -> cf.Recipe:
    """The same training on the sequences in another order."""
    turned = torch.randperm(len(data), generator=torch.Generator().manual_seed(seed))
    return replace(recipe, data=data[turned])


if __name__ == "__main__":
    main()
