"""The paper's second experiment: what moved a word, what holds it in its cluster, and does it leave when that is gone?

Long: one experiment, its two questions, four ways to act on the answer, and how well determined each question is.
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from tqdm.auto import tqdm

from crossfluence._actions.steps import amplify, undo
from crossfluence._attribution.influence import influence
from crossfluence._evaluation.leave_out import leave_out
from crossfluence._results.scores import Scores
from crossfluence._storage.atomic import kept_json, write_atomically
from crossfluence._storage.hashing import content_hash
from crossfluence._types import Id, Objective
from crossfluence.errors import CorpusError, ResultFileError, import_optional
from crossfluence.words.corpus.corpus import Corpus
from crossfluence.words.corpus.pairs import Pairs, Sampling
from crossfluence.words.corpus.readers import Sentence, read_sentences
from crossfluence.words.corpus.vocabulary import build_corpus
from crossfluence.words.explain_bias import newton_step, together, unit_vectors
from crossfluence.words.explain_word import clustered, own_and_next
from crossfluence.words.objectives import cluster_margin, moved
from crossfluence.words.skipgram import ExpectedTraining, SkipGram

if TYPE_CHECKING:
    from plotly.graph_objects import Figure

FILES = {
    "wookieepedia_characters.jsonl.xz": "description",
    "starwars_tv_episodes.jsonl.gz": "description",
    "enwiki2015_scifi_articles.jsonl.xz": "text",
}
"""Files of the folder, and the column that holds the text."""
QUESTIONS = ("moved", "margin")  # the paper's, and ours


@dataclass(frozen=True)
class SciFi:
    """What is asked, and how the embedding is made.

    Attributes:
        words: Asked about, if they are frequent enough.
        sentences: How many are undone, amplified or left out together.
        steps: Of Adam, to undo and to amplify.
        lr: Adam's learning rate.
        clusters: Of k-means.
        vocabulary: The most words, most frequent first.
        least: How often a word asked about must occur, and any other too.
        dimensions: Length of the vectors.
        window: Words on each side, the paper's.
        negatives: Noise words for each pair, the paper's.
        prior: Strength of the l2 term in pairs, see `ExpectedTraining`.
        seed: Of the initial vectors, k-means and random sentences.
    """

    words: tuple[str, ...] = ("dooku", "doctor", "hero", "sith", "kirk", "spock", "ring", "zulu")
    _: KW_ONLY
    sentences: tuple[int, ...] = (10,)
    steps: tuple[int, ...] = (5, 10, 100)
    lr: float = 1e-3
    clusters: int = 8
    vocabulary: int = 1_500
    least: int = 50
    dimensions: int = 32
    window: int = 3
    negatives: int = 5
    prior: float = 5.0
    seed: int = 0


@dataclass(frozen=True, eq=False)
class SciFiResult:
    """What came out.

    Attributes:
        rows: One for each word, question, action, and number of sentences and steps.
        clusters: Number of words, and the words nearest to each centre.
        silhouette: Of the clusters, by distances of vectors of length one.
        determined: Both questions of each word, by how the model was trained.
    """

    rows: list[dict[str, Any]] = field(repr=False)
    clusters: list[dict[str, Any]] = field(repr=False)
    silhouette: float
    determined: list[dict[str, Any]] = field(repr=False)


def scifi_corpus(folder: Path, settings: SciFi) -> Corpus:
    """The sentences of characters, episodes and articles as one corpus; ids begin with the name of the file.

    Args:
        folder: That holds `FILES`.
        settings: Which words to keep.

    Returns:
        The corpus; it does not know its files.

    Raises:
        CorpusError: If a file is missing.
    """
    if missing := [name for name in FILES if not (folder / name).is_file()]:
        raise CorpusError(f"There is no {folder / missing[0]}; needed {', '.join(FILES)} in one folder.")

    def sentences() -> Iterator[Sentence]:
        for name, column in FILES.items():
            for sentence in read_sentences(folder / name, column=column, split="sentences"):
                yield replace(sentence, file=name.partition(".")[0], document=f"{name}:{sentence.line}", fields={})

    return build_corpus(
        sentences(), min_count=settings.least, max_words=settings.vocabulary,
        keep=settings.words, keep_count=settings.least,
    )  # fmt: skip


def scifi_study(data: Path, out: Path, settings: SciFi | None = None, *, force: bool = False) -> SciFiResult:
    """Clusters the words, asks both questions of each, acts on the answers, clusters again, and writes all of it.

    Args:
        data: The folder that holds `FILES`.
        out: A folder; made if it is not there. A run that was stopped goes on from what is in it.
        settings: What is asked.
        force: Overwrite results that exist.

    Returns:
        The tables that were written, as `results.csv`, `clusters.csv` and `determined.csv`, beside `figure.html`.

    Raises:
        ResultFileError: If there are results already and `force` is not set.
        CorpusError: If a file is missing, or no word is frequent enough.
    """
    import pandas as pd

    settings = settings or SciFi()
    files = [out / name for name in ("results.csv", "clusters.csv", "determined.csv", "figure.html")]
    if any(file.exists() for file in files) and not force:
        raise ResultFileError(f"{out} holds results already. Choose another --out, or add --force to overwrite them.")
    corpus = scifi_corpus(data, settings)
    words = [word for word in settings.words if word in corpus.index]
    if not words:
        raise CorpusError(f"None of {', '.join(settings.words)} occurs {settings.least} times in the corpus.")
    unfinished = out / "unfinished"
    unfinished.mkdir(parents=True, exist_ok=True)
    found = _Experiment(corpus, words, settings, unfinished).result()
    for file, rows in zip(files, (found.rows, found.clusters, found.determined), strict=False):
        write_atomically(file, pd.DataFrame(rows).to_csv(index=False, lineterminator="\n").encode())
    write_atomically(files[-1], _figure(found.rows).to_html(include_plotlyjs=True).encode())
    shutil.rmtree(unfinished)
    return found


class _Experiment:
    """A trained and clustered embedding, and what is done to it."""

    def __init__(self, corpus: Corpus, words: Sequence[str], settings: SciFi, store: Path) -> None:
        self.words, self.settings, self.store = words, settings, store
        pairs = Pairs(corpus, Sampling(settings.window, settings.negatives))
        self.training = ExpectedTraining(pairs, settings.dimensions, prior=settings.prior, seed=settings.seed)
        self.model, _ = self.training.fit(checkpoint=store / "training.safetensors")
        self.risk = self.training.risk(self.model)
        self.members = clustered(self.model, settings.clusters, seed=settings.seed)
        self.own = {word: own_and_next(self.model, word, self.members) for word in words}
        start = SkipGram.initial(corpus.words, settings.dimensions, seed=settings.seed).word_vectors
        self.questions: dict[str, Objective] = {}
        for word, pair in self.own.items():
            self.questions[f"moved {word}"] = moved(word, start, corpus.index)
            self.questions[f"margin {word}"] = cluster_margin(word, self.members, *pair, corpus.index)
        self.asked = _figures(self.questions, self.members, words)
        self.corpus, self.whole = corpus, self._measured(self.model)

    def result(self) -> SciFiResult:
        """All tables."""
        scores = self._scores()
        groups = {key: ids for word in self.words for key, ids in self._groups(word, scores).items()}
        rows = [self._row(word, name, "whole corpus", self.whole) for word in self.words for name in QUESTIONS]
        rows += self._left_out(scores, groups)
        rows += self._stepped(groups)
        rows.sort(key=lambda row: (self.words.index(row["word"]), QUESTIONS.index(row["question"])))
        return SciFiResult(rows, self._clusters(), self._silhouette(), self._determined())

    def _scores(self) -> Scores:
        file = self.store / f"{content_hash(self.risk.signature, self.words, self.members)}.scores"
        if not file.exists():
            influence(self.risk, together(self.questions)).save(file)
        return Scores.load(file)

    def _groups(self, word: str, scores: Scores) -> dict[tuple[str, str, int], list[Id]]:
        """The top sentences of both questions, and as many random ones that hold the word, by word, question, size."""
        held = np.random.default_rng(self.settings.seed).permutation(self.corpus.sentences_with(word))
        sizes = [count for count in self.settings.sentences if count <= len(held) // 2]
        top = {
            (word, name, count): [label for label, _ in scores.top(count, f"{name} {word}")]
            for name in QUESTIONS for count in sizes
        }  # fmt: skip
        top |= {(word, "random", count): [self.corpus.ids[row] for row in held[:count]] for count in sizes[-1:]}
        return {key: ids for key, ids in top.items() if ids}

    def _left_out(self, scores: Scores, groups: Mapping[tuple[str, str, int], list[Id]]) -> list[dict[str, Any]]:
        """Trained again without each group, beside what scores and Newton steps say."""
        drop: dict[Id, list[Id]] = {" ".join(map(str, key)): ids for key, ids in groups.items()}
        again = self.training.starting_from(self.model)
        changes = leave_out(again, self.asked, drop, n=self.corpus.n, ids=self.corpus.ids, store=self.store)
        values = torch.tensor([self.whole[name] for name in changes.objectives]) - changes.values
        rows = []
        for (word, kind, count), label in tqdm(zip(groups, drop, strict=True), "Newton steps", len(drop), disable=None):
            after = dict(zip(changes.objectives, values[changes.ids.index(label)].tolist(), strict=True))
            for name in QUESTIONS if kind == "random" else [kind]:
                key, ids = f"{name} {word}", drop[label]
                summed = self.whole[key] - float(scores.select(ids).values[:, scores.objectives.index(key)].sum())
                step = self._kept(("newton", key, ids), lambda key=key, ids=ids: self._newton(key, ids))["newton"]
                action = "without random ones" if kind == "random" else "without the top"
                rows.append(self._row(word, name, action, after, count, summed=summed, newton=step))
        return rows

    def _newton(self, key: str, ids: Sequence[Id]) -> dict[str, float]:
        return {"newton": newton_step(self.risk, ids, self.questions[key])}

    def _stepped(self, groups: Mapping[tuple[str, str, int], list[Id]]) -> list[dict[str, Any]]:
        """The paper's two actions, for each group and number of steps."""
        rows, lr = [], self.settings.lr
        for (word, name, count), ids in tqdm(groups.items(), "undo and amplify", disable=None):
            for act in (undo, amplify) if name != "random" else ():
                for steps in self.settings.steps:
                    after = self._kept(
                        (act.__name__, ids, steps, lr),
                        lambda act=act, ids=ids, steps=steps: self._measured(
                            act(self.risk, ids, steps=steps, lr=lr, tolerance=math.inf).model  # as in the paper
                        ),
                    )
                    rows.append(self._row(word, name, act.__name__, after, count, steps))
        return rows

    def _measured(self, model: nn.Module) -> dict[str, float]:
        theta = {name: tensor.detach() for name, tensor in model.named_parameters()}
        return _numbers(self.asked(model)) | {"loss": self.risk.value(theta)}

    def _row(
        self, word: str, name: str, action: str, after: Mapping[str, float], count: int = 0, steps: int = 0,
        *, summed: float = float("nan"), newton: float = float("nan"),
    ) -> dict[str, Any]:  # fmt: skip
        cluster = round(after[f"cluster {word}"])
        return {
            "word": word, "question": name, "action": action, "sentences": count, "steps": steps,
            "before": self.whole[f"{name} {word}"], "summed": summed, "newton": newton,
            "after": after[f"{name} {word}"],
            "margin": after[f"margin {word}"], "cluster": cluster, "left": cluster != self.own[word][0],
            "loss": after.get("loss", float("nan")),
        }  # fmt: skip

    def _clusters(self) -> list[dict[str, Any]]:
        return [
            {"cluster": number, "words": len(words), "nearest": " ".join(words[:15]),
             "asked": " ".join(word for word in self.words if word in words)}
            for number, words in enumerate(self.members)
        ]  # fmt: skip

    def _silhouette(self) -> float:
        metrics = import_optional("sklearn.metrics", "The silhouette", "clusters")
        number = {word: place for place, words in enumerate(self.members) for word in words}
        return float(
            metrics.silhouette_score(unit_vectors(self.model).numpy(), [number[word] for word in self.model.words])
        )

    def _determined(self) -> list[dict[str, Any]]:
        """Both questions at models that differ only in how they were trained, from the start each time."""
        few = torch.ones(self.corpus.n)
        few[torch.from_numpy(np.random.default_rng(self.settings.seed).choice(self.corpus.n, 10, replace=False))] = 0
        other = replace(self.training, seed=self.settings.seed + 1)
        ways: dict[str, Callable[[], SkipGram]] = {
            "as above": lambda: self.model,
            "stopped earlier": lambda: replace(self.training, tolerance=1e-4).train(),
            "another seed": other.train,
            "without 10 random sentences": lambda: self.training.train(few),
            "the same, from the trained model": lambda: self.training.starting_from(self.model).train(few),
        }
        rows = []
        for way, train in ways.items():
            values = self._kept((way, self.training.pairs.corpus.digest), lambda train=train: self._placed(train()))
            rows += [
                {"word": word, "trained": way, **{name: values[f"{name} {word}"] for name in (*QUESTIONS, "length")}}
                for word in self.words
            ]
        return rows

    def _placed(self, model: SkipGram) -> dict[str, float]:
        lengths = model.word_vectors.detach().square().sum(1)
        return _numbers(together(self.questions)(model)) | {
            f"length {word}": float(lengths[model.index[word]]) for word in self.words
        }

    def _kept(self, what: tuple[Any, ...], make: Callable[[], dict[str, float]]) -> dict[str, float]:
        """Figures from the store, or made and put there."""
        file = self.store / f"{content_hash(what, self.members, self.settings.seed, self.risk.signature)}.json"
        return kept_json(file, make)


def _figures(
    questions: Mapping[str, Objective], members: Sequence[Sequence[str]], words: Sequence[str]
) -> Callable[[nn.Module], dict[str, Tensor]]:
    """All questions, and the number of each word's cluster when it is clustered again."""
    ask = together(questions)

    def figures(model: nn.Module) -> dict[str, Tensor]:
        assert isinstance(model, SkipGram)
        labels = clustered_again(model, members)
        clusters = {f"cluster {word}": torch.tensor(float(labels[word])) for word in words}
        return {name: value.detach().double() for name, value in (ask(model) | clusters).items()}

    return figures


def clustered_again(model: SkipGram, members: Sequence[Sequence[str]]) -> dict[str, int]:
    """The clusters of k-means that starts at the means of clusters found before, so that they keep their numbers.

    Args:
        model: Another embedding of the same words.
        members: The words of each cluster, as they were.

    Returns:
        The cluster of every word.
    """
    table = unit_vectors(model)
    start = torch.stack([table[[model.index[word] for word in words]].mean(0) for words in members])
    kmeans = import_optional("sklearn.cluster", "Clusters of words", "clusters").KMeans(
        len(members), init=start, n_init=1
    )
    return dict(zip(model.words, kmeans.fit(table.numpy()).labels_.tolist(), strict=True))


def _numbers(found: Mapping[str, Tensor]) -> dict[str, float]:
    return {name: float(value.detach()) for name, value in found.items()}


def _figure(rows: list[dict[str, Any]]) -> Figure:
    """Predicted against retrained change, one panel for each question."""
    import plotly.graph_objects as go
    from plotly.subplots import make_subplots

    titles = ("squared distance from the start", "margin to the next cluster, in nats")
    figure = make_subplots(1, 2, subplot_titles=titles)
    for column, name in enumerate(QUESTIONS, start=1):
        chosen = [row for row in rows if row["question"] == name and row["action"].startswith("without")]
        truth = [row["after"] - row["before"] for row in chosen]
        ends = [min(truth, default=0.0), max(truth, default=0.0)]
        figure.add_scatter(x=ends, y=ends, mode="lines", line={"dash": "dot", "color": "#888888"}, row=1, col=column,
                           name="equal", showlegend=column == 1)  # fmt: skip
        for estimate, symbol, label in (
            ("summed", "circle-open", "summed scores"), ("newton", "circle", "one Newton step"),
        ):  # fmt: skip
            figure.add_scatter(
                x=[row[estimate] - row["before"] for row in chosen], y=truth, mode="markers", row=1, col=column,
                text=[f"{row['word']}, {row['action']} {row['sentences']}" for row in chosen], name=label,
                marker={"symbol": symbol, "size": 9, "color": "#4c78a8"}, showlegend=column == 1,
            )  # fmt: skip
    figure.update_xaxes(title="predicted change").update_yaxes(title="change found by training again")
    return figure.update_layout(go.Layout(template="plotly_white", height=560, legend={"orientation": "h", "y": 1.12}))
