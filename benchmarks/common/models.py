"""Networks that several benchmarks train. Needs PyTorch alone: other libraries' environments import it, too."""

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional

CHARACTERS = 65  # in the works of Shakespeare
WORDS = 5_000  # the most frequent ones there


def perceptron(*sizes: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Linear layers with activations between them, with PyTorch's own initial weights."""
    layers = [part for pair in itertools.pairwise(sizes) for part in (nn.Linear(*pair), activation())]
    return nn.Sequential(*layers[:-1])


def zeroed(model: nn.Module) -> nn.Module:
    """The model with all parameters set to zero."""
    for parameter in model.parameters():
        nn.init.zeros_(parameter)
    return model


def convolutions() -> nn.Sequential:
    """Two convolutions and two linear layers, for 784 pixels."""
    return nn.Sequential(
        nn.Unflatten(1, (1, 28, 28)),
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.AvgPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip


class Block(nn.Module):
    """Attention, then two linear layers, each beside a direct path."""

    def __init__(self, width: int, heads: int, causal: bool = True) -> None:
        super().__init__()
        self.heads, self.causal = heads, causal
        self.first, self.second = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mixed, self.out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """From `(b, t, d)` to the same shape."""
        mixed = self.mixed(self.first(x)).chunk(3, dim=2)
        q, k, v = (part.unflatten(2, (self.heads, -1)).transpose(1, 2) for part in mixed)
        seen = functional.scaled_dot_product_attention(q, k, v, is_causal=self.causal)
        x = x + self.out(seen.transpose(1, 2).flatten(2))
        return x + self.down(functional.gelu(self.up(self.second(x))))


class Transformer(nn.Module):
    """Next-character logits `(b, t, 65)` for characters `(b, t)`."""

    def __init__(self, length: int = 64, width: int = 64, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.characters, self.places = nn.Embedding(CHARACTERS, width), nn.Embedding(length, width)
        self.blocks = nn.Sequential(*(Block(width, heads) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, CHARACTERS)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, t, 65)`."""
        places = self.places(torch.arange(x.shape[1], device=x.device))
        return self.head(self.norm(self.blocks(self.characters(x) + places)))


class VisionTransformer(nn.Module):
    """Class logits `(b, 10)` for 784 pixels, in patches of 4 x 4, with a class token."""

    def __init__(self, width: int = 64, heads: int = 4, layers: int = 4) -> None:
        super().__init__()
        self.patches = nn.Conv2d(1, width, 4, 4)
        self.token, self.places = nn.Parameter(torch.zeros(1, 1, width)), nn.Parameter(torch.zeros(1, 50, width))
        self.blocks = nn.Sequential(*(Block(width, heads, causal=False) for _ in range(layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, 10)`."""
        seen = self.patches(x.view(-1, 1, 28, 28)).flatten(2).mT
        seen = torch.cat([self.token.expand(len(seen), -1, -1), seen], 1) + self.places
        return self.head(self.norm(self.blocks(seen)[:, 0]))


class GPT2(nn.Module):
    """Next-word logits `(b, t, 5,000)` of the GPT-2 in `transformers`, with six layers of 256."""

    def __init__(self, length: int = 128, width: int = 256, heads: int = 4, layers: int = 6) -> None:
        super().__init__()
        from transformers import GPT2Config, GPT2LMHeadModel

        self.model = GPT2LMHeadModel(
            GPT2Config(
                vocab_size=WORDS, n_positions=length, n_embd=width, n_layer=layers, n_head=heads,
                resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False,
            )
        )  # fmt: skip

    def forward(self, x: Tensor) -> Tensor:
        """Logits `(b, t, 5,000)`."""
        return self.model(input_ids=x).logits
