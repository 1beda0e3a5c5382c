"""Settings of the command that explains a language model, known without PyTorch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

from crossfluence.errors import DataError

HELD_OUT, MOST_HELD_OUT = 0.05, 100  # of the texts, where no others are given
ADAPTERS = "adapter_config.json"
OPTIMIZER, STATE = "optimizer.pt", "trainer_state.json"  # that the Trainer leaves in a checkpoint
TOKENIZERS = ("tokenizer*", "vocab*", "spiece*", "*.model", "merges.txt")  # a file of any is enough to try
RANDOM, CHOSEN = 3, 4  # groups that are removed: by chance, and for each question by scores and by words, of both signs
AFTER_PADDING = ("roberta", "camembert", "longformer", "mpnet", "esm")  # models whose positions begin behind it


def context_of(config: dict[str, Any]) -> int | None:
    """Tokens that a model reads.

    Args:
        config: Of the model.

    Returns:
        None if its configuration does not say.

    Example:
        >>> context_of({"model_type": "roberta", "max_position_embeddings": 514, "pad_token_id": 1})
        512
    """
    inside = config.get("text_config") or config
    found = inside.get("max_position_embeddings", inside.get("n_positions"))
    if not isinstance(found, int) or isinstance(found, bool) or found < 1:
        return None
    padding = inside.get("pad_token_id")
    if isinstance(padding, int) and any(name in str(inside.get("model_type")) for name in AFTER_PADDING):
        return found - padding - 1
    return found


@dataclass(frozen=True)
class LanguageSettings:
    """Settings of fine-tuning and of removals.

    Attributes:
        train: Whether the model is fine-tuned first, so that it can be trained again.
        epochs: Of fine-tuning.
        lr: Learning rate of AdamW, falling along a line to zero.
        batch_size: Texts in a step.
        remove: Share of the texts that is removed together (below 1), or their number.
        unit: "sentence" or "token".
        longest: Tokens to which texts are cut; by default none is.
        seed: Of the order of texts, and of random groups.
        told: Without `train`, whether epochs, lr and batch_size say how the model was fine-tuned.
    """

    train: bool = False
    epochs: int = 3
    lr: float = 1e-4
    batch_size: int = 8
    remove: float = 0.01
    unit: str = "sentence"
    longest: int | None = None
    seed: int = 0
    told: bool = False

    def __post_init__(self) -> None:
        if not 0 < self.lr < math.inf:
            raise DataError(f"Got the learning rate {self.lr:g}; needed a positive number: --lr 1e-4.")

    def group(self, n: int) -> int:
        """Number of texts, out of n, that are removed together.

        Args:
            n: Of all texts.

        Returns:
            At least one.

        Raises:
            DataError: If it is none or all of them.
        """
        if n < 2:
            raise DataError(f"Got {n} texts to train on; needed at least two. Texts of their own: --held-out FILE.")
        size = round(self.remove * n) if self.remove < 1 else int(self.remove)
        size = max(size, 1) if self.remove > 0 else 0
        if not 0 < size < n:
            raise DataError(f"Removing {self.remove:g} means {size} of {n} texts; needed at least one, and not all.")
        return size

    def held_out_count(self, n: int) -> int:
        """Number of texts, out of n, that no training sees, where no others are given.

        Args:
            n: Of all texts.

        Returns:
            A twentieth of them, at least one and at most a hundred.
        """
        return min(MOST_HELD_OUT, max(1, round(HELD_OUT * n)))

    def held_out(self, n: int) -> list[int]:
        """Texts, out of n, that no training sees, where no others are given.

        Args:
            n: Of all texts.

        Returns:
            Their places, by chance.
        """
        import torch

        generator = torch.Generator().manual_seed(self.seed)
        return sorted(torch.randperm(n, generator=generator)[: self.held_out_count(n)].tolist())
