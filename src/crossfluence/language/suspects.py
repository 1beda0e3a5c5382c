"""Training texts suspected of a planted trigger: their influence on odd answers stays when the queries are turned."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Literal, cast

import torch
from torch import Tensor, nn

from crossfluence import (
    CG,
    Adam,
    GaussNewton,
    OnOutputs,
    Recipe,
    Risk,
    Scores,
    batches,
    influence,
    invariant,
    linear,
    suspected,
)
from crossfluence.errors import DataError

from .bag_of_words import BagOfWords, Vocabulary, cross_entropy, gradient_lengths, log_odds, words_of
from .rewrites import rewritten

AS_IS = "as is"
ACCURACY, STEPS = 1e-2, 60  # of the solve: directions matter here, not sizes
OFTEN_EACH = 5  # texts of each label, in the mean
WORDS_NAMED, OFTEN = 5, 3  # words named of the suspects, and texts of theirs that must hold one


@dataclass(frozen=True)
class SuspectSettings:
    """Settings of the classifier, of suspicion and of the check.

    Attributes:
        rewrites: Names of rules that turn the queries around; see `rewrites.REWRITES`.
        strong: Share of the texts that counts as strong in a version of the queries: at most so many are suspected.
        agree: "all" versions must agree, or "most".
        doubt: Share of the suspects, by the tail of all other texts, that may belong to it.
        remove: Whether the classifier is trained again without the suspects.
        draws: Random sets of as many texts that are left out, too.
        epochs: Passes over the texts.
        lr: Learning rate of Adam, falling along a line to zero.
        batch_size: Texts in a step.
        width: Of word vectors and hidden layer.
        damping: Of the Gauss-Newton curvature, in texts: as much as so many texts add along one direction.
        shown: Share of the queries that must get their answer, so that there is something to suspect.
        seed: Of weights, order and random sets.
    """

    rewrites: tuple[str, ...] = ("negate", "question")
    strong: float = 0.1
    agree: str = "all"
    doubt: float = 0.05
    remove: bool = False
    draws: int = 3
    epochs: int = 10
    lr: float = 5e-3
    batch_size: int = 64
    width: int = 32
    damping: float = 1.0
    shown: float = 2 / 3
    seed: int = 0


@dataclass(frozen=True)
class State:
    """A classifier's answers.

    Attributes:
        answer: Mean log-odds of the queries' answers, in nats.
        share: Of the queries that get their answer.
        accuracy: On held-out texts; NaN without any.
    """

    answer: float
    share: float
    accuracy: float


@dataclass(frozen=True, eq=False)
class SuspectAnswer:
    """All that was found about a set of training texts.

    Attributes:
        texts: The training texts.
        labels: Their labels, as written.
        answers: Of the queries, as written.
        versions: Influence of each text on the answers, as if all pulled alike, for each version of the queries.
        found: `invariant` of these.
        flagged: Rows of the suspects, the strongest first.
        words: Words that the suspects hold more often than other texts, with the counts in both.
        before: The classifier as trained.
        after: Trained again without the suspects, if that was asked for and there are any.
        random: Trained again without as many random texts.
        settings: How it was made.
    """

    texts: tuple[str, ...]
    labels: tuple[str, ...]
    answers: tuple[str, ...]
    versions: dict[str, Scores]
    found: Scores
    flagged: tuple[int, ...]
    words: tuple[tuple[str, int, int], ...]
    before: State
    after: State | None
    random: tuple[State, ...]
    settings: SuspectSettings


@dataclass(frozen=True, eq=False)
class Classifier:
    """Texts and labels in numbers, and how to train on them.

    Attributes:
        vocabulary: Words.
        names: Labels in order.
        recipe: The training.
    """

    vocabulary: Vocabulary
    names: tuple[str, ...]
    recipe: Recipe

    @classmethod
    def of(cls, texts: Sequence[str], labels: Sequence[str], settings: SuspectSettings) -> Classifier:
        """A recipe for some texts.

        Args:
            texts: To train on.
            labels: One each.
            settings: How.

        Returns:
            The untrained classifier.

        Raises:
            DataError: If there are fewer than two labels, or nearly as many as texts.
        """
        names = tuple(sorted(set(labels)))
        if len(names) < 2:
            raise DataError(f"All {len(labels)} texts have the label {labels[0]!r}; needed at least two labels.")
        if len(names) * OFTEN_EACH > len(labels):
            raise DataError(
                f"The {len(labels)} texts have {len(names)} different labels, such as {names[0]!r} and {names[1]!r}; "
                f"needed labels that come again, {OFTEN_EACH} times in the mean. Is the label in another field?"
            )
        vocabulary = Vocabulary.of(texts)
        places = {name: place for place, name in enumerate(names)}
        data = vocabulary.encoded(texts), torch.tensor([places[label] for label in labels])
        net = BagOfWords(
            len(vocabulary), len(names), settings.width, settings.seed
        ).double()  # texts fitted well have tiny gradients
        recipe = Recipe(
            net, cross_entropy, data, optimizer=Adam(settings.lr), epochs=settings.epochs, schedule=linear,
            batch_size=settings.batch_size, seed=settings.seed,
        )  # fmt: skip
        return cls(vocabulary, names, recipe)

    def numbers(self, labels: Sequence[str], what: str) -> Tensor:
        """Labels as numbers.

        Args:
            labels: As written.
            what: What has them, for an error.

        Returns:
            Shape `(n,)`.

        Raises:
            DataError: If a label does not occur in training.
        """
        if unknown := sorted(set(labels) - set(self.names)):
            raise DataError(f"The label {unknown[0]!r} of {what} does not occur in training; there are {self.names}.")
        return torch.tensor([self.names.index(label) for label in labels])

    def log_odds(self, texts: Sequence[str], answers: Tensor) -> Callable[[nn.Module], Tensor]:
        """The mean log-odds of answers to texts, as a question."""
        words = self.vocabulary.encoded(texts)

        def question(model: nn.Module) -> Tensor:
            return log_odds(model(words), answers).mean()

        return question

    def lengths(self, model: nn.Module) -> Tensor:
        """The norm of the gradient of each text trained on, `(n,)`."""
        assert isinstance(model, BagOfWords)
        return gradient_lengths(model, *cast("tuple[Tensor, Tensor]", self.recipe.data))

    def alike(self, model: nn.Module) -> Risk:
        r"""The risk in which every text has a gradient of length 1, however well it is fitted.

        A planted text is fitted well. Its loss is all but flat, so its gradient is tiny, and so is the curvature that
        it adds: both hide what it taught. Here text $i$ has the loss $(z_i - t_i)^2 / 2$ of its log-odds over the
        length of their gradient, $z_i = m_i / \lVert\nabla m_i\rVert$, with a goal $t_i$ that lies 1 above what it
        has. Its gradient is the direction of its own, and the Gauss-Newton curvature says where texts agree.

        Args:
            model: The trained classifier.

        Returns:
            A risk at that model. Its scores are in units of the question for one unit of gradient.

        References:
            Barshan, Brunet and Dziugaite, "RelatIF: identifying explanatory training samples via relative influence",
            AISTATS 2020, who divide by the length afterwards, and leave the curvature as it is.
        """
        words, labels = cast("tuple[Tensor, Tensor]", self.recipe.data)
        with torch.no_grad():
            margins = log_odds(model(words), labels)
        least = torch.finfo(margins.dtype).tiny
        own = (self.lengths(model).clamp(min=least) / torch.sigmoid(-margins).clamp(min=least)).clamp(min=least)
        loss = OnOutputs(
            lambda model, batch: log_odds(model(batch[0]), batch[1]) / batch[2],
            lambda z, batch: (z - batch[3]).square() / 2,
        )
        return Risk(model, loss, batches(words, labels, own, margins / own + 1))

    def predicted(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Numbers of the labels that a model gives."""
        with torch.no_grad():
            return model(self.vocabulary.encoded(texts)).argmax(1)


def _versions(
    classifier: Classifier, model: nn.Module, asked: dict[str, Callable[[nn.Module], Tensor]], damping: float
) -> dict[str, Scores]:
    """Influence on each of several questions, found together, as if every text pulled alike."""

    def together(model: nn.Module) -> dict[str, Tensor]:
        return {name: question(model) for name, question in asked.items()}

    n = classifier.recipe.n
    solver = CG(damping=damping / n, curvature=GaussNewton(), rtol=ACCURACY, max_steps=STEPS)
    found = influence(classifier.alike(model), together, solver)
    return {
        name: replace(found, values=found.values[:, place : place + 1], objectives=(name,))
        for place, name in enumerate(found.objectives)
    }


def explain_suspects(
    texts: Sequence[str],
    labels: Sequence[str],
    queries: Sequence[str],
    settings: SuspectSettings = SuspectSettings(),
    *,
    answers: Sequence[str] | None = None,
    held_out: tuple[Sequence[str], Sequence[str]] | None = None,
) -> SuspectAnswer:
    """Trains a small classifier, and finds the texts behind its answers to some queries, however they are turned.

    Args:
        texts: The training texts.
        labels: Their labels.
        queries: Texts that get an odd answer.
        settings: How.
        answers: The odd answer to each query; default: what the classifier gives.
        held_out: Other texts and their labels, for the accuracy.

    Returns:
        Suspects, and what leaving them out does.

    Raises:
        DataError: If there are too few texts, labels or queries, a query is empty, or a rewriting changes nothing.
    """
    if len(texts) < 20 or not queries:
        raise DataError(f"Got {len(texts)} training texts and {len(queries)} queries; needed at least 20, and one.")
    if blank := sum(not words_of(query) for query in queries):
        raise DataError(f"{blank} of the {len(queries)} queries hold no word; needed words in each.")
    rewritings = {name: rewritten(queries, name) for name in settings.rewrites}
    classifier = Classifier.of(texts, labels, settings)
    given = None if answers is None else classifier.numbers(answers, "the queries")
    tested = None if held_out is None else (held_out[0], classifier.numbers(held_out[1], "the held-out texts"))
    model = classifier.recipe.train()
    wanted = classifier.predicted(model, queries) if given is None else given
    asked = {name: classifier.log_odds(turned, wanted) for name, turned in {AS_IS: list(queries), **rewritings}.items()}
    versions = _versions(classifier, model, asked, settings.damping)
    agree = cast('Literal["all", "most"]', settings.agree)
    found = invariant(versions, settings.strong, agree)

    def state(trained: nn.Module) -> State:
        share = (classifier.predicted(trained, queries) == wanted).double().mean().item()
        right = float("nan")
        if tested is not None:
            right = (classifier.predicted(trained, tested[0]) == tested[1]).double().mean().item()
        with torch.no_grad():
            return State(float(asked[AS_IS](trained)), share, right)

    before = state(model)
    named = suspected(found, settings.doubt) if before.share >= settings.shown else []
    flagged = tuple(cast(int, label) for label in named)
    after = [state(each) for each in _without(classifier.recipe, flagged, settings)] if settings.remove else []
    return SuspectAnswer(
        tuple(texts), tuple(labels), tuple(classifier.names[place] for place in wanted.tolist()), versions, found,
        flagged, _words(texts, flagged), before, after[0] if after else None, tuple(after[1:]), settings,
    )  # fmt: skip


def _without(recipe: Recipe, flagged: Sequence[int], settings: SuspectSettings) -> list[nn.Module]:
    """Models trained without the suspects, then without as many random texts."""
    if not flagged:
        return []
    generator = torch.Generator().manual_seed(settings.seed)
    drawn = [torch.randperm(recipe.n, generator=generator)[: len(flagged)].tolist() for _ in range(settings.draws)]
    weights = torch.ones(1 + settings.draws, recipe.n)
    for row, rows in enumerate([list(flagged), *drawn]):
        weights[row, rows] = 0
    return list(recipe.retrain(weights))


def _words(texts: Sequence[str], flagged: Sequence[int]) -> tuple[tuple[str, int, int], ...]:
    """Words that the suspects hold more often than others do: the largest differences of shares."""
    chosen = set(flagged)
    inside, outside = Counter[str](), Counter[str]()
    for row, text in enumerate(texts):
        (inside if row in chosen else outside).update(set(words_of(text)))
    rest = max(1, len(texts) - len(chosen))
    above = {word: count / len(chosen) - outside[word] / rest for word, count in inside.items() if count >= OFTEN}
    first = sorted((word for word in above if above[word] > 0), key=lambda word: -above[word])[:WORDS_NAMED]
    return tuple((word, inside[word], outside[word]) for word in first)
