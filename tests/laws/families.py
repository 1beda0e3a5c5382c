"""Ordinary PyTorch models, one of each family: a table, hence the length."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from grid import integers, normal, seeded
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, prune, rnn
from torch.utils.checkpoint import checkpoint

import crossfluence as cf


@dataclass(frozen=True, eq=False)
class Family:
    """A model, its loss for each sample, and a question, all in float64.

    `held` are entries of the flat parameters that training never moves; `exact` is the same function written in a way
    that plain autograd differentiates twice, where the model's own way cannot be trusted.
    """

    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    loss: Any = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    ask: Callable[[nn.Module], Tensor] = field(repr=False)
    held: tuple[int, ...] = ()
    coupled: bool = False
    refused: str = ""

    @functools.cached_property
    def model(self) -> nn.Module:
        """Trained a little, so that nothing is at a special place."""
        model = seeded(self.build(), 3, 0.4)
        batch = self.tensors[0] if len(self.tensors) == 1 else self.tensors
        optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.02)
        for _ in range(40):
            optimizer.zero_grad()
            self.mean(model, batch).backward()
            optimizer.step()
        optimizer.zero_grad()
        return model

    def mean(self, model: nn.Module, batch: Any) -> Tensor:
        if self.coupled:
            ones = torch.ones(len(self.tensors[0]), dtype=torch.float64)
            return self.loss(model, batch, ones) / len(ones)
        return self.loss(model, batch).mean()

    def risk(self, l2: float = 0.1, **options: Any) -> cf.Risk:
        return cf.Risk(self.model, self.loss, cf.batches(*self.tensors, size=64), l2=l2, **options)

    def recipe(self, **options: Any) -> cf.Recipe:
        settings: dict[str, Any] = {"optimizer": cf.SGD(0.05, 0.5), "epochs": 3, **options}
        data = self.tensors[0] if len(self.tensors) == 1 else self.tensors
        return cf.Recipe(self.model, self.loss, data, **settings)


def squared(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    return (model(*batch[:-1])[:, 0] - batch[-1]).square()


def family(name: str, build: Callable[[], nn.Module], *inputs: Tensor, **options: Any) -> Family:
    """A regression on noise; the question is the output for the first sample."""
    y = normal(len(inputs[0]), seed=90)
    return Family(name, build, squared, (*inputs, y), lambda m: m(*(part[:1] for part in inputs))[0, 0], **options)


class Net(nn.Module):
    def __init__(self, activation: Callable[[Tensor], Tensor], inputs: int = 4, width: int = 5):
        super().__init__()
        self.a, self.b, self.activation = nn.Linear(inputs, width), nn.Linear(width, 1), activation

    def forward(self, x: Tensor) -> Tensor:
        return self.b(self.activation(self.a(x)))


class Once(torch.autograd.Function):
    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return x.sin()

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.save_for_backward(inputs[0])

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * ctx.saved_tensors[0].cos()


class KeepsDerivative(torch.autograd.Function):
    @staticmethod
    def forward(x):
        return x.sigmoid(), x.sigmoid() * (1 - x.sigmoid())

    @staticmethod
    def setup_context(ctx, inputs, output):
        ctx.mark_non_differentiable(output[1])
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx, gradient, _):
        return gradient * ctx.saved_tensors[0]


class OldSignature(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x.sigmoid()

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        s = x.sigmoid()
        return gradient * (s + x * s * (1 - s))


class Recurrent(nn.Module):
    def __init__(self, kind: type[nn.RNNBase], packed: bool):
        super().__init__()
        self.layer, self.head, self.packed = kind(3, 3, batch_first=True), nn.Linear(3, 1), packed

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        if not self.packed:
            return self.head(self.layer(x)[0][torch.arange(len(x)), lengths - 1])
        state = self.layer(rnn.pack_padded_sequence(x, lengths.cpu(), batch_first=True, enforce_sorted=False))[1]
        return self.head((state[0] if isinstance(state, tuple) else state)[-1])


class Texts(nn.Module):
    def __init__(self, layer: nn.Module, mean: bool):
        super().__init__()
        self.words, self.head, self.mean = layer, nn.Linear(3, 1), mean

    def forward(self, words: Tensor) -> Tensor:
        found = self.words(words)
        return self.head((found.mean(1) if self.mean else found).tanh())


class Checkpointed(Net):
    def __init__(self, reentrant: bool):
        super().__init__(torch.tanh)
        self.middle, self.reentrant = nn.Linear(5, 5), reentrant

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.a(x).tanh()
        return self.b(checkpoint(lambda h: self.middle(h).tanh(), hidden, use_reentrant=self.reentrant))


class Prototypes(nn.Module):
    def __init__(self):
        super().__init__()
        self.centres, self.head = nn.Parameter(torch.empty(3, 4)), nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head((-torch.cdist(x, self.centres)).exp())


class Graph(nn.Module):
    """A graph convolution with a sparse adjacency; samples are the labelled nodes."""

    def __init__(self):
        super().__init__()
        dense = (normal(12, 12, seed=91) > 0.5).double() + torch.eye(12, dtype=torch.float64)
        self.adjacency, self.features = (dense / dense.sum(1, keepdim=True)).to_sparse(), normal(12, 4, seed=92)
        self.a, self.b = nn.Linear(4, 5), nn.Linear(5, 1)

    def forward(self, nodes: Tensor) -> Tensor:
        hidden = torch.sparse.mm(self.adjacency, self.a(self.features)).tanh()
        return torch.sparse.mm(self.adjacency, self.b(hidden))[nodes]


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.BatchNorm2d(3),
            nn.Conv2d(3, 3, 3, padding=1),
        )
        self.head = nn.Linear(3, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm(self.first(x)).tanh()
        return self.head((hidden + self.second(hidden)).mean((2, 3)))


class Hidden(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.layer(x).mean(1))


class Variational(nn.Module):
    """A variational autoencoder whose noise is data."""

    def __init__(self):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(4, 4), nn.Linear(2, 4)

    def forward(self, x: Tensor, noise: Tensor) -> Tensor:
        mean, spread = self.encoder(x).chunk(2, 1)
        error = (self.decoder(mean + noise * spread.exp()) - x).square().sum(1)
        return (error + 0.5 * (mean.square() + (2 * spread).exp() - 1 - 2 * spread).sum(1))[:, None]


def hooked() -> nn.Module:
    net = Net(torch.tanh)
    net.a.register_full_backward_hook(lambda module, inputs, outputs: None)  # as profilers leave behind
    return net


def pruned() -> nn.Module:
    net = Net(torch.tanh)
    prune.l1_unstructured(net.a, "weight", 0.4)
    return net


def tied() -> nn.Module:
    net = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 1))
    net[2].weight = net[0].weight
    return net


def parametrised(wrap: Callable[[nn.Module], nn.Module]) -> nn.Module:
    return nn.Sequential(wrap(nn.Linear(4, 4)), nn.Tanh(), nn.Linear(4, 1))


def single_inside(x: Tensor) -> Tensor:
    return x.float().tanh().double()


def physics(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    t = batch[0].detach().clone().requires_grad_(True)
    u = model(t)
    return (torch.autograd.grad(u.sum(), t, create_graph=True)[0] + u - batch[1])[:, 0].square()


def force(model: nn.Module) -> Tensor:
    t = torch.full((1, 1), 0.3, dtype=torch.float64, requires_grad=True)
    return torch.autograd.grad(model(t).sum(), t, create_graph=True)[0][0, 0]


class Speech(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).log_softmax(2)


def reconstruction(model: nn.Module) -> Tensor:
    return model.decoder(model.encoder(X[:1])[:, :2])[0, 0]


def transcription(model: nn.Module, batch: tuple[Tensor, Tensor]) -> Tensor:
    steps, letters = (torch.full((len(batch[0]),), size) for size in (6, 2))
    return F.ctc_loss(model(batch[0]).transpose(0, 1), batch[1], steps, letters, reduction="none")


X, IMAGES, SEQUENCES = normal(20, 4, seed=80), normal(12, 1, 5, 5, seed=81), normal(16, 5, 3, seed=82)
LENGTHS, WORDS = integers(5, 16, seed=83) + 1, integers(5, 20, 4, seed=84)
LETTERS = integers(3, 10, 2, seed=88) + 1
SOUNDS = normal(10, 6, 3, seed=87)
TIMES = torch.linspace(0, 2, 16, dtype=torch.float64)[:, None]

FAMILIES = [
    family("perceptron", lambda: Net(torch.tanh), X),
    family("GELU", lambda: Net(F.gelu), X),
    family("convolutions with BatchNorm", Residual, IMAGES),
    family("transformer layer", Hidden, SEQUENCES[:, :, [0, 1, 2, 0]]),
    family("once differentiable", lambda: Net(Once.apply), X),
    family("keeps its derivative", lambda: Net(lambda x: KeepsDerivative.apply(x)[0]), X),
    family("old signature", lambda: Net(OldSignature.apply), X),
    family("backward hook", hooked, X),
    family("LSTM", lambda: Recurrent(nn.LSTM, False), SEQUENCES, LENGTHS),
    family("packed LSTM", lambda: Recurrent(nn.LSTM, True), SEQUENCES, LENGTHS),
    family("packed GRU", lambda: Recurrent(nn.GRU, True), SEQUENCES, LENGTHS),
    family("embedding with padding", lambda: Texts(nn.Embedding(5, 3, padding_idx=0), True), WORDS, held=(0, 1, 2)),
    family("embedding bag", lambda: Texts(nn.EmbeddingBag(5, 3), False), WORDS),
    family("sparse embedding", lambda: Texts(nn.Embedding(5, 3, sparse=False), True), WORDS),
    family("checkpoint", lambda: Checkpointed(False), X),
    family("reentrant checkpoint", lambda: Checkpointed(True), X),
    family("prototypes", Prototypes, X),
    family("sparse graph", Graph, torch.arange(8)),
    family("weight norm", lambda: parametrised(parametrizations.weight_norm), X),
    family("orthogonal", lambda: parametrised(parametrizations.orthogonal), X),
    family("pruned", pruned, X),
    family("float32 inside", lambda: Net(single_inside), X),
    family("scripted", lambda: torch.jit.trace(Net(torch.tanh).double(), X), X),
    family("compiled", lambda: torch.compile(Net(torch.tanh), backend="eager"), X),
    family("data parallel", lambda: nn.DataParallel(Net(torch.tanh)), X),
    family("tied", tied, X),
    family("bilinear", lambda: nn.Bilinear(4, 3, 1), X, normal(20, 3, seed=85)),
    Family("variational", Variational, lambda m, b: m(*b)[:, 0], (X, normal(20, 2, seed=86)), reconstruction),
    Family("physics", lambda: Net(torch.tanh, 1, 6), physics, (TIMES, torch.sin(3 * TIMES)), force),
    Family("transcription", Speech, transcription, (SOUNDS, LETTERS), lambda m: m(SOUNDS)[0, 0, 0]),
]  # fmt: skip


def trained(model: nn.Module) -> list[nn.Parameter]:
    return [part for part in model.parameters() if part.requires_grad]


def plain_gradient(model: nn.Module, function: Callable[[nn.Module], Tensor], step: Tensor | None = None) -> Tensor:
    """What `backward` gives, as one vector; the parameters moved by a step, and put back."""
    parts = trained(model)
    change = [torch.zeros_like(part) for part in parts]
    if step is not None:
        change = [c.view_as(p) for p, c in zip(parts, step.split([p.numel() for p in parts]), strict=True)]
    before = [part.detach().clone() for part in parts]
    with torch.no_grad():
        for part, by in zip(parts, change, strict=True):
            part += by
            part.grad = None
    function(model).backward()
    found = torch.cat([(torch.zeros_like(p) if p.grad is None else p.grad).reshape(-1) for p in parts])
    with torch.no_grad():
        for part, content in zip(parts, before, strict=True):
            part.copy_(content)
            part.grad = None
    return found


def right_scores(case: Family, l2: float, damping: float = 0.0, eps: float = 1e-5) -> Tensor:
    """Scores from a Hessian by central differences of what `backward` gives."""
    model, batch = case.model, case.tensors[0] if len(case.tensors) == 1 else case.tensors

    def risk(other: nn.Module) -> Tensor:
        squares = sum(part.square().sum() for part in other.parameters() if part.requires_grad)
        return case.mean(other, batch) + l2 / 2 * squares

    p = len(plain_gradient(model, case.ask))
    keep = torch.tensor([place for place in range(p) if place not in case.held])
    units = eps * torch.eye(p, dtype=torch.float64)[keep]
    rows = [(plain_gradient(model, risk, u) - plain_gradient(model, risk, -u)) / (2 * eps) for u in units]
    hessian = torch.stack(rows)[:, keep]
    hessian = (hessian + hessian.T) / 2 + damping * torch.eye(len(keep), dtype=torch.float64)
    n = len(case.tensors[0])
    slopes = torch.stack([plain_gradient(model, lambda m, i=i: case.loss(m, batch)[i]) for i in range(n)])[:, keep]
    return -slopes @ torch.linalg.solve(hessian, plain_gradient(model, case.ask)[keep]) / n
