"""Questions about language models: log-probabilities, contrasts, class logits, similarities; with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from crossfluence import Estimate
from crossfluence.errors import ObjectiveError

from .batches import Columns, call, logits_of
from .contrastive import Pooling, embeddings
from .scoring import completed, log_probabilities

RESAMPLES, LEVEL = 2_000, 0.95


@dataclass(frozen=True, eq=False)
class Question:
    """The mean over items, as an objective: `influence(risk, question, solver)`.

    Attributes:
        name: The question in words.
        items: `model -> (k,)`, whose mean is asked about.
        count: k.
        pairs: Of each item the two texts that it compares, where it compares two; keyword controls come from them.

    Example:
        >>> question = Question("weight", lambda model: model.weight.flatten(), 2)
        >>> net = nn.Linear(2, 1)
        >>> bool(question(net) == net.weight.mean())
        True
    """

    name: str
    items: Callable[[nn.Module], Tensor]
    count: int
    pairs: tuple[tuple[str, str], ...] = ()

    def __call__(self, model: nn.Module) -> Tensor:
        """The mean over items, a scalar."""
        return self.items(model).mean()

    @torch.no_grad()
    def each(self, model: nn.Module) -> Shaped[Tensor, " k"]:
        """The items' values, in double precision.

        Args:
            model: In evaluation mode.

        Returns:
            Shape `(k,)`.
        """
        return self.items(model).double().cpu()

    def interval(self, model: nn.Module, seed: int = 0) -> Estimate:
        """The mean with its 95 % bootstrap interval over items.

        Args:
            model: In evaluation mode.
            seed: Of the resampling.

        Returns:
            A number with `.low` and `.high`; NaN for both, where there is one item.
        """
        return bootstrapped(self.each(model), seed)

    def hard_share(self, model: nn.Module, seed: int = 0) -> Estimate:
        """The share of items above zero, which published measures report, ties counted half.

        Args:
            model: In evaluation mode.
            seed: Of the resampling.

        Returns:
            Between 0 and 1, with its interval.
        """
        values = self.each(model)
        return bootstrapped((values.sign() + 1) / 2, seed)

    def soft_share(self, model: nn.Module, seed: int = 0) -> Estimate:
        """The mean of each item's sigmoid: the probability of the first of two texts, where one of both is said.

        Args:
            model: In evaluation mode.
            seed: Of the resampling.

        Returns:
            Between 0 and 1, with its interval.
        """
        return bootstrapped(self.each(model).sigmoid(), seed)


def bootstrapped(values: Shaped[Tensor, " k"], seed: int = 0) -> Estimate:
    """A mean with its 95 % bootstrap interval.

    Args:
        values: Of independent items.
        seed: Of the resampling.

    Returns:
        A number with `.low` and `.high`.

    Example:
        >>> bootstrapped(torch.tensor([1.0, 1.0, 1.0]))
        1.000 [1.000, 1.000]
    """
    if len(values) < 2:
        return Estimate(float(values.mean()), float("nan"), float("nan"))
    generator = torch.Generator().manual_seed(seed)
    rows = torch.randint(len(values), (RESAMPLES, len(values)), generator=generator)
    ends = torch.tensor([(1 - LEVEL) / 2, (1 + LEVEL) / 2], dtype=values.dtype)
    low, high = values[rows].mean(1).quantile(ends).tolist()
    return Estimate(float(values.mean()), low, high)


def log_probability(prompt: Any, completion: Any, *, tokenizer: Any = None) -> Question:
    """The log-probability of a completion after a prompt, in nats.

    Args:
        prompt: A string, or token ids; may be empty.
        completion: A string, with the space that stands before it, or token ids.
        tokenizer: Of the model; not needed for ids.

    Returns:
        A question; masked models answer with the pseudo-log-likelihood of the completion.

    Raises:
        ObjectiveError: If the completion has no tokens.

    Example:
        >>> log_probability([1, 2], [3]).name
        '[1, 2] -> [3]'
    """
    text = completed(prompt, completion, tokenizer)
    words = isinstance(prompt, str) and isinstance(completion, str)
    pairs = ((prompt + completion, prompt),) if words else ()
    return Question(f"{prompt} -> {completion}", lambda model: log_probabilities(model, [text]), 1, pairs)


def contrast(a: Question, b: Question) -> Question:
    """The difference of two questions, item by item.

    Args:
        a: Such as `log_probability("The nurse said that", " he")`.
        b: Such as `log_probability("The nurse said that", " she")`.

    Returns:
        A question: positive where the model prefers the first.

    Raises:
        ObjectiveError: If they are the same, or have another number of items.

    Example:
        >>> contrast(log_probability([1], [2]), log_probability([1], [3])).name
        '[1] -> [2] - [1] -> [3]'
    """
    if a.count != b.count:
        raise ObjectiveError(f"Got questions of {a.count} and {b.count} items; needed as many in both.")
    if a is b or a.name == b.name:
        raise ObjectiveError(f"Got the question {a.name!r} twice: their difference is zero whatever the model is.")
    pairs = tuple((one, other) for (one, _), (other, _) in zip(a.pairs, b.pairs, strict=False))
    return Question(f"{a.name} - {b.name}", lambda model: a.items(model) - b.items(model), a.count, pairs)


def class_logit(text: Any, label: int, *, tokenizer: Any = None) -> Question:
    """The log-odds of one class against all others, of a classifier.

    Args:
        text: A string, several, or the columns that the model takes.
        label: The number of the class.
        tokenizer: Of the model; not needed for columns.

    Returns:
        A question over the texts, in nats.

    Example:
        >>> class_logit({"input_ids": torch.tensor([[1, 2]])}, 0).count
        1
    """
    columns = _columns(text, tokenizer)

    def items(model: nn.Module) -> Tensor:
        logits = logits_of(call(model, columns))
        others = torch.cat([logits[:, :label], logits[:, label + 1 :]], 1)
        return logits[:, label] - others.logsumexp(1)

    return Question(f"class {label}", items, len(next(iter(columns.values()))))


def similarity(a: Any, b: Any, *, tokenizer: Any = None, pooling: Pooling = "mean") -> Question:
    """The cosine of two texts' embeddings.

    Args:
        a: A string, several, or the columns that the model takes.
        b: As many.
        tokenizer: Of the model; not needed for columns.
        pooling: Of a model of transformers; see `embeddings`.

    Returns:
        A question over the pairs.

    Raises:
        ObjectiveError: If they are equal.

    Example:
        >>> similarity({"input_ids": torch.tensor([[1, 2]])}, {"input_ids": torch.tensor([[3]])}).name
        'similarity'
    """
    if isinstance(a, str) and a == b:
        raise ObjectiveError(f"The two texts are equal, {a!r}: their cosine is 1 whatever the model is.")
    sides = [_columns(part, tokenizer) for part in (a, b)]

    def items(model: nn.Module) -> Tensor:
        one, other = (nn.functional.normalize(embeddings(model, side, pooling), dim=1) for side in sides)
        return (one * other).sum(1)

    return Question("similarity", items, len(sides[0]["input_ids"]))


def _columns(text: Any, tokenizer: Any) -> Columns:
    if not isinstance(text, (str, list, tuple)):
        return dict(text)
    texts: Sequence[str] = [text] if isinstance(text, str) else list(text)
    return encoded(texts, tokenizer)


def encoded(texts: Sequence[str], tokenizer: Any) -> Columns:
    """Texts as one padded batch.

    Args:
        texts: At least one.
        tokenizer: Of the model.

    Returns:
        Token ids and their mask.

    Raises:
        ObjectiveError: If there is no tokenizer.
    """
    if tokenizer is None:
        raise ObjectiveError(
            "Got a question in words and no tokenizer. Type tokenizer=AutoTokenizer.from_pretrained(...)."
        )
    rows = [tokenizer(text)["input_ids"] for text in texts]
    width = max(map(len, rows))
    pad = getattr(tokenizer, "pad_token_id", None) or 0
    return {
        "input_ids": torch.tensor([row + [pad] * (width - len(row)) for row in rows]),
        "attention_mask": torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows]),
    }
