"""One table, hence the length: small problems of every kind of loss, in float64, trained until the field vanishes."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any

import torch
from reference import newton_train
from torch import Tensor, nn
from torch.nn import functional as F

import crossfluence as cf


@dataclass(frozen=True, eq=False)
class Problem:
    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    loss: Any = field(repr=False)
    tensors: tuple[Tensor, ...] = field(repr=False)
    objectives: dict[str, Callable[[nn.Module], Tensor]] = field(repr=False)
    l2: float = 0.01
    damping: float = 0.0  # enough for the curvature to be positive
    pace: float = 1.0  # first step of the reference training
    converges: bool = True

    @property
    def n(self) -> int:
        return len(self.tensors[0])

    @property
    def model(self) -> nn.Module:
        return trained(self)

    @property
    def objective(self) -> Callable[[nn.Module], Tensor]:
        return next(iter(self.objectives.values()))

    @property
    def per_sample(self) -> bool:
        return not isinstance(self.loss, (cf.WeightedLoss, cf.FieldLoss))

    @property
    def symmetric(self) -> bool:
        return not isinstance(self.loss, cf.FieldLoss)

    def ask(self, model: nn.Module) -> dict[str, Tensor]:
        return {name: objective(model) for name, objective in self.objectives.items()}

    def risk(self, size: int = 10_000, **changes: Any) -> cf.Risk:
        options = {"l2": self.l2, **changes}
        return cf.Risk(self.model, self.loss, cf.batches(*self.tensors, size=size), **options)

    def permuted(self, order: Tensor) -> cf.Risk:
        rows = cf.batches(*(tensor[order] for tensor in self.tensors), size=10_000)
        return cf.Risk(self.model, self.loss, rows, l2=self.l2, ids=order.tolist())


@functools.cache
def trained(problem: Problem) -> nn.Module:
    model = problem.build()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.02)
    ones = torch.ones(problem.n, dtype=torch.float64)
    batch = problem.tensors[0] if len(problem.tensors) == 1 else problem.tensors
    for _ in range(200):
        optimizer.zero_grad()
        if problem.per_sample:
            whole = problem.loss.losses(model, batch) if hasattr(problem.loss, "losses") else problem.loss(model, batch)
            mean = whole.mean()
        else:
            mean = problem.loss(model, batch, ones) / problem.n
        (mean + problem.l2 / 2 * sum(p.square().sum() for p in model.parameters())).backward()
        optimizer.step()
    optimizer.zero_grad()
    return newton_train(problem, ones, model) if problem.converges else model


def seeded(model: nn.Module, seed: int = 0, size: float = 0.5) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def integers(high: int, *shape: int, seed: int) -> Tensor:
    return torch.randint(high, shape, generator=torch.Generator().manual_seed(seed))


# Logistic regression, plain and split at the outputs.


def logistic(n: int) -> Problem:
    x = normal(n, 3, seed=1)
    y = (x.sum(1) + normal(n, seed=2) > 0).double()
    return Problem(
        "logistic",
        lambda: seeded(nn.Linear(3, 1)),
        lambda model, batch: F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1], reduction="none"),
        (x, y),
        {"logit": lambda m: m(normal(3, seed=3))[0], "norm": lambda m: m.weight.square().sum()},
        l2=0.05,
    )


LOGISTIC = logistic(40)
ON_OUTPUTS = replace(
    LOGISTIC,
    name="logistic on outputs",
    loss=cf.OnOutputs(
        lambda model, batch: model(batch[0])[:, 0],
        lambda z, batch: F.binary_cross_entropy_with_logits(z, batch[1], reduction="none"),
    ),
)
SOFTMAX_ON_OUTPUTS = Problem(
    "network on outputs",
    lambda: seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 3))),
    cf.OnOutputs(lambda model, batch: model(batch[0]), lambda z, batch: F.cross_entropy(z, batch[1], reduction="none")),
    (normal(40, 3, seed=4), integers(3, 40, seed=5)),
    {"margin": lambda m: m(normal(3, seed=6))[0]},
    l2=0.05,
)


# Reconstruction, alone and beside a few labels.


class Coder(nn.Module):
    def __init__(self, inputs: int, codes: int, classes: int):
        super().__init__()
        self.encoder, self.decoder = nn.Linear(inputs, codes), nn.Linear(codes, inputs)
        self.head = nn.Linear(codes, classes) if classes else None

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x).tanh()

    def error(self, x: Tensor) -> Tensor:
        return (self.decoder(self.encode(x)) - x).square().sum(1)


MANIFOLD = normal(40, 2, seed=7) @ normal(2, 4, seed=8) + 0.2 * normal(40, 4, seed=9)
AUTOENCODER = Problem(
    "autoencoder",
    lambda: seeded(Coder(4, 2, 0)),
    lambda model, x: model.error(x),
    (MANIFOLD,),
    {
        "distance": lambda m: (m.encode(MANIFOLD[0]) - m.encode(MANIFOLD[1])).norm(),
        "error": lambda m: m.error(MANIFOLD[:3]).mean(),
    },
    l2=0.05,
)


def mixed_loss(model: Coder, batch: tuple[Tensor, ...]) -> Tensor:
    x, label, labelled = batch
    return model.error(x) + labelled * F.cross_entropy(model.head(model.encode(x)), label, reduction="none")


SEMI_SUPERVISED = Problem(
    "semi-supervised",
    lambda: seeded(Coder(4, 2, 2)),
    mixed_loss,
    (MANIFOLD, (MANIFOLD[:, 0] > 0).long(), (torch.arange(40) % 10 == 0).double()),
    {"logit": lambda m: m.head(m.encode(MANIFOLD[5])).diff()[0]},
    l2=0.05,
)


# Deep embedded clustering, its target fixed and moving.


class Clusters(nn.Module):
    def __init__(self):
        super().__init__()
        self.encoder = nn.Sequential(nn.Linear(2, 4), nn.Tanh(), nn.Linear(4, 2))
        self.centres = nn.Parameter(torch.empty(3, 2))

    def assign(self, x: Tensor) -> Tensor:
        q = 1 / (1 + (self.encoder(x)[:, None] - self.centres).square().sum(2))  # (b, 3), Student's t
        return q / q.sum(1, keepdim=True)


def sharpened(q: Tensor, weights: Tensor) -> Tensor:
    p = q.square() / (weights @ q)
    return p / p.sum(1, keepdim=True)


def divergence(p: Tensor, q: Tensor) -> Tensor:
    return (p * (p.log() - q.log())).sum(1)


MIXTURE = torch.cat([0.4 * normal(15, 2, seed=10 + k) + 2 * normal(2, seed=20 + k) for k in range(3)])
TARGET = sharpened(seeded(Clusters(), 1, 1.0).assign(MIXTURE).detach(), torch.ones(45, dtype=torch.float64))
DEC_FIXED = Problem(
    "DEC, fixed target",
    lambda: seeded(Clusters(), 1, 1.0),
    lambda model, batch: divergence(batch[1], model.assign(batch[0])),
    (MIXTURE, TARGET),
    {"assignment": lambda m: m.assign(MIXTURE[:1])[0, 0]},
    damping=1e-6,  # turning codes and centres together changes nothing
)
DEC_MOVING = Problem(
    "DEC, moving target",
    lambda: seeded(Clusters(), 1, 1.0),
    cf.FieldLoss(lambda m, still, x, w: w @ divergence(sharpened(still.assign(x), w), m.assign(x))),
    (MIXTURE,),
    {"assignment": lambda m: m.assign(MIXTURE[:1])[0, 0], "second": lambda m: m.assign(MIXTURE[20:21])[0, 1]},
    damping=1e-6,
)


# Losses that couple samples.


def info_nce(model: nn.Module, batch: tuple[Tensor, Tensor], weights: Tensor) -> Tensor:
    similar = model(batch[0]) @ model(batch[1]).T  # (b, b)
    return weights @ ((similar.exp() @ weights).log() - similar.diagonal())


VIEW = normal(50, 3, seed=30)
CONTRASTIVE = Problem(
    "contrastive",
    lambda: seeded(nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))),
    cf.WeightedLoss(info_nce),
    (VIEW, VIEW + 0.3 * normal(50, 3, seed=31)),
    {"similarity": lambda m: (m(VIEW[0]) * m(VIEW[1])).sum()},
    l2=0.1,
    damping=1e-6,
)


def cox(model: nn.Module, batch: tuple[Tensor, ...], weights: Tensor) -> Tensor:
    x, time, event = batch
    hazard = model(x)[:, 0]
    at_risk = (time >= time[:, None]).double() @ (weights * hazard.exp())
    return (weights * event) @ (at_risk.log() - hazard)


PATIENTS = normal(40, 4, seed=32)
COX = Problem(
    "Cox",
    lambda: seeded(nn.Linear(4, 1, bias=False)),
    cf.WeightedLoss(cox),
    (PATIENTS, torch.arange(40.0), (integers(3, 40, seed=33) > 0).double()),
    {"hazard": lambda m: m(PATIENTS[0])[0]},
    l2=0.1,
)


# Language.


class SkipGram(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.contexts = nn.Embedding(10, 3), nn.Embedding(10, 3)


def skip_gram(model: SkipGram, batch: tuple[Tensor, ...]) -> Tensor:
    centre, context, noise, real = batch  # (b, pairs), (b, pairs), (b, pairs, negatives), (b, pairs)
    word = model.words(centre)
    near = F.logsigmoid((word * model.contexts(context)).sum(2))
    far = F.logsigmoid(-(word[:, :, None] * model.contexts(noise)).sum(3)).sum(2)
    return -(real * (near + far)).sum(1)


def weat(model: SkipGram) -> Tensor:
    unit = F.normalize(model.words.weight, dim=1)
    gap = unit[:4] @ (unit[4:6].mean(0) - unit[6:8].mean(0))
    return (gap[:2].mean() - gap[2:].mean()) / gap.std()


SKIP_GRAM = Problem(
    "skip-gram",
    lambda: seeded(SkipGram()),
    skip_gram,
    (integers(10, 30, 4, seed=40), integers(10, 30, 4, seed=41), integers(10, 30, 4, 2, seed=42),
     (torch.arange(4) < 2 + integers(3, 30, 1, seed=43)).double()),
    {"WEAT": weat},
    l2=0.1,
    damping=1e-6,
)  # fmt: skip


class Language(nn.Module):
    def __init__(self):
        super().__init__()
        self.tokens, self.places = nn.Embedding(6, 4), nn.Embedding(5, 4)
        self.layer = nn.TransformerEncoderLayer(4, 2, dim_feedforward=6, dropout=0.1, batch_first=True)
        self.head = nn.Linear(4, 6)

    def forward(self, text: Tensor, padding: Tensor) -> Tensor:
        causal = torch.ones(text.shape[1], text.shape[1], dtype=torch.bool, device=text.device).triu(1)
        hidden = self.tokens(text) + self.places.weight[: text.shape[1]]
        return self.head(self.layer(hidden, src_mask=causal, src_key_padding_mask=padding))


def next_token(model: Language, batch: tuple[Tensor, Tensor]) -> Tensor:
    text, padding = batch
    logits = model(text[:, :-1], padding[:, :-1])
    return (F.cross_entropy(logits.transpose(1, 2), text[:, 1:], reduction="none") * ~padding[:, 1:]).sum(1)


LANGUAGE = Problem(
    "transformer",
    lambda: seeded(Language(), 0, 1.0),
    next_token,
    (integers(6, 20, 6, seed=50), torch.arange(6) >= 3 + integers(4, 20, 1, seed=51)),
    {"logit": lambda m: m(torch.tensor([[1, 2, 3]]), torch.zeros(1, 3, dtype=torch.bool))[0, -1, 4]},
    l2=0.1,
    damping=3.0,
    converges=False,
)

PROBLEMS = [
    LOGISTIC, ON_OUTPUTS, SOFTMAX_ON_OUTPUTS, AUTOENCODER, SEMI_SUPERVISED, DEC_FIXED, DEC_MOVING, CONTRASTIVE, COX,
    SKIP_GRAM, LANGUAGE,
]  # fmt: skip


def badly_scaled(features=40, spread=2.0, turned=False):
    """Least squares whose features differ in scale by powers of ten; turned, no single parameter shows it."""
    x = normal(100, features, seed=0) * torch.logspace(0, -spread, features, dtype=torch.float64)
    if turned:
        x = x @ torch.linalg.qr(normal(features, features, seed=2)).Q
    y = x.sum(1, keepdim=True) + normal(100, 1, seed=1)
    model = nn.Linear(features, 1, bias=False).double()
    loss = lambda m, b: (m(b[0]) - b[1]).square().sum(1)  # noqa: E731
    return cf.Risk(model, loss, cf.batches(x, y), l2=1e-6)


def leaves(value):
    """What stands in a value and in the values inside it, in order."""
    if is_dataclass(value):
        value = tuple(getattr(value, item.name) for item in fields(value))
    return [leaf for part in value for leaf in leaves(part)] if isinstance(value, tuple) else [value]
