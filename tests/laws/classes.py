"""Modules of classes of their own, as people have them."""

import torch
from grid import integers, normal, seeded
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

N = 6
TEXT, SEQUENCES = integers(7, N, 5, seed=1), normal(N, 5, 4, seed=3)


class Calls(nn.Module):
    """A model from parts and a function that calls them."""

    def __init__(self, function, **parts):
        super().__init__()
        self.parts, self.function = nn.ModuleDict(parts), function

    def forward(self, x):
        return self.function(self.parts, x)


class Conv1D(nn.Module):
    """As in transformers: inputs count the rows."""

    def __init__(self, outputs, inputs, bias=True):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(inputs, outputs))
        self.bias = nn.Parameter(torch.empty(outputs)) if bias else None

    def forward(self, x):
        z = x @ self.weight
        return z if self.bias is None else z + self.bias


class Rows(nn.Module):
    """A linear layer of a class of its own."""

    def __init__(self, outputs, inputs):
        super().__init__()
        self.weight = nn.Parameter(torch.empty(outputs, inputs))

    def forward(self, x):
        return F.linear(x, self.weight)


class Root(nn.Module):
    """Root mean square normalisation; `ahead` as in Gemma: one is added to the weight."""

    def __init__(self, d, ahead=0.0):
        super().__init__()
        self.weight, self.ahead = nn.Parameter(torch.zeros(d)), ahead

    def forward(self, x):
        return x * (x.square().mean(-1, keepdim=True) + 1e-6).rsqrt() * (self.weight + self.ahead)


class Gated(nn.Module):
    """A normalisation with a gate, a shift, and another name."""

    def __init__(self, d):
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.ones(d)), nn.Parameter(torch.zeros(()))

    def forward(self, x, *, gate):
        return {"out": F.silu(gate) * (F.layer_norm(x, x.shape[-1:]) * self.scale + self.shift)}


class Scaled(nn.Embedding):
    def forward(self, x):
        return super().forward(x) * 3.0


class Places(nn.Embedding):
    """Positions that are counted inside, and begin at 2."""

    def forward(self, mask):
        return super().forward(mask.cumsum(-1) + 1)


class Shared(nn.Embedding):
    """Positions that are the same for all samples."""

    def forward(self, x):
        return super().forward(torch.arange(x.shape[1]) + 2) * 0.5


class Experts(nn.Module):
    """Matrices in one tensor, of which each position reads one; positions of all samples in one dimension."""

    def __init__(self, count, inputs, outputs):
        super().__init__()
        self.up, self.down = (nn.Parameter(torch.empty(count, a, b)) for a, b in ((outputs, inputs), (inputs, outputs)))

    def forward(self, x, chosen):
        out = torch.zeros_like(x)
        for number in chosen.unique():
            at = (chosen == number).nonzero()[:, 0]
            out = out.index_add(0, at, F.linear(F.linear(x[at], self.up[number]).tanh(), self.down[number]))
        return out


class Classes(nn.Module):
    """A token in front, and its places: parameters beside layers, as in a vision transformer."""

    def __init__(self, d, t):
        super().__init__()
        self.first, self.places = nn.Parameter(torch.empty(1, 1, d)), nn.Parameter(torch.empty(1, t + 1, d))
        self.layer = nn.Linear(d, d)

    def forward(self, x):
        return torch.cat([self.first.expand(len(x), -1, -1), self.layer(x)], 1) + self.places


def experts(m, x):
    flat = m["l"](x).flatten(0, 1)
    return (x + m["e"](flat, (flat[:, 0] > 0).long() + (flat[:, 1] > 0)).view_as(x)).tanh().sum(1)


INSIDE = {
    "matrix with inputs in rows": (nn.Sequential(Conv1D(4, 4), nn.Tanh(), Conv1D(3, 4, bias=False)), SEQUENCES[:, 0]),
    "matrices of positions": (
        Calls(lambda m, x: m["b"](m["a"](x).tanh()).sum(1), a=Conv1D(6, 4), b=Rows(3, 6)),
        SEQUENCES,
    ),
    "any norm": (Calls(lambda m, x: m["b"](m["a"](x)).tanh().sum(1), a=Root(4, 1.0), b=Root(4)), SEQUENCES),
    "norm inside attention": (
        Calls(
            lambda m, x: F.scaled_dot_product_attention(
                *(m["n"](m[name](x).unflatten(-1, (2, 2)).transpose(1, 2)) for name in "qk"),
                x.unflatten(-1, (2, 2)).transpose(1, 2),
            ).flatten(1)[:, :9],
            q=nn.Linear(4, 4),
            k=nn.Linear(4, 4),
            n=Root(2, 1.0),
        ),
        SEQUENCES,
    ),
    "gate by name": (
        Calls(lambda m, x: m["g"](x, gate=m["l"](x))["out"].sum(1), g=Gated(4), l=nn.Linear(4, 4)),
        SEQUENCES,
    ),
    "scaled table": (Calls(lambda m, x: m["t"](x).tanh().sum(1), t=Scaled(7, 3, padding_idx=2)), TEXT),
    "counted places": (
        Calls(lambda m, x: (m["t"](x) + m["p"]((x > 0).long())).tanh().sum(1), t=nn.Embedding(7, 3), p=Places(9, 3)),
        TEXT,
    ),
    "shared places": (
        Calls(lambda m, x: (m["t"](x) + m["p"](x)).tanh().sum(1), t=nn.Embedding(7, 3), p=Shared(9, 3)),
        TEXT,
    ),
    "experts": (Calls(experts, l=nn.Linear(4, 4), e=Experts(3, 4, 5)), SEQUENCES),
    "token in front": (
        Calls(lambda m, x: m["h"](m["c"](x).tanh()).sum(1), c=Classes(4, 5), h=nn.Linear(4, 3)),
        SEQUENCES,
    ),
    "weight norm": (Calls(lambda m, x: m["l"](x).tanh().sum(1), l=weight_norm(nn.Linear(4, 3))), SEQUENCES),
}
INSIDE = {name: (seeded(model), x) for name, (model, x) in INSIDE.items()}
