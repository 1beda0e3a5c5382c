"""Slow, obvious and dense: the field, its derivatives and the scores, from one flat vector of parameters in float64."""

from __future__ import annotations

import copy
from fnmatch import fnmatchcase
from functools import cached_property

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev
from torch.nn.attention import SDPBackend, sdpa_kernel

import crossfluence as cf


class Pair(nn.Module):
    """A model and a copy of it, so that both branches of a stop-gradient loss are arguments."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.live, self.still = model, copy.deepcopy(model)

    def forward(self, function, *args):
        return function(self.live, self.still, *args)


def weighted_sum(loss, live, still, batch, weights):
    if isinstance(loss, cf.FieldLoss):
        return loss.fn(live, still, batch, weights)
    if isinstance(loss, cf.WeightedLoss):
        return loss.fn(live, batch, weights)
    if isinstance(loss, cf.OnOutputs):
        return (weights * loss.criterion(loss.outputs(live, batch), batch)).sum()
    return (weights * loss(live, batch)).sum()


class Dense:
    """All of the mathematics of one problem at one model, written out."""

    def __init__(self, model, loss, tensors, l2=0.0, params="*"):
        self.loss, self.l2 = loss, l2
        self.batch = tensors[0] if len(tensors) == 1 else tuple(tensors)
        self.pair = Pair(copy.deepcopy(model))
        named = {name: t.detach() for name, t in model.named_parameters() if fnmatchcase(name, params)}
        self.shapes = {name: tensor.shape for name, tensor in named.items()}
        self.theta = torch.cat([tensor.reshape(-1) for tensor in named.values()])
        self.ones = torch.ones(len(tensors[0]), dtype=self.theta.dtype)

    def call(self, live: Tensor, still: Tensor, function, *args):
        swapped = {}
        for prefix, flat in (("live", live), ("still", still)):
            parts = flat.split([shape.numel() for shape in self.shapes.values()])
            for (name, shape), part in zip(self.shapes.items(), parts, strict=True):
                swapped[f"{prefix}.{name}"] = part.reshape(shape)
        return functional_call(self.pair, swapped, (function, *args))

    def field(self, theta: Tensor, weights: Tensor) -> Tensor:
        """g(theta, w): the stopped branch moves with theta, but is not differentiated through."""

        def total(live: Tensor) -> Tensor:
            return self.call(live, theta, lambda m, s: weighted_sum(self.loss, m, s, self.batch, weights))

        with sdpa_kernel(SDPBackend.MATH):
            return grad(total)(theta) / len(weights) + self.l2 * theta

    def jacobian(self, theta: Tensor, weights: Tensor) -> Tensor:
        """Reverse over reverse: the library goes forward over reverse, and reverse over forward."""
        return jacrev(self.field)(theta, weights)

    @cached_property
    def J(self) -> Tensor:  # noqa: N802  # the mathematics' own name
        return self.jacobian(self.theta, self.ones)

    @cached_property
    def K(self) -> Tensor:  # noqa: N802
        return jacrev(self.field, argnums=1)(self.theta, self.ones)

    def slope(self, objective) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return grad(lambda theta: self.call(theta, theta, lambda live, _: objective(live)))(self.theta)

    def scores(self, objective, damping: float = 0.0) -> Tensor:
        damped = self.J + damping * torch.eye(len(self.J), dtype=self.J.dtype)
        return -self.slope(objective) @ torch.linalg.solve(damped, self.K)


def newton_train(problem, weights: Tensor, start: nn.Module, tolerance: float = 1e-10, steps: int = 300) -> nn.Module:
    """Follows the training field to where it vanishes: implicit steps that grow as the field shrinks."""
    dense = Dense(start, problem.loss, problem.tensors, problem.l2)
    theta, pace = dense.theta, problem.pace
    field = dense.field(theta, weights)
    for _ in range(steps):
        if field.norm() < tolerance:
            break
        jacobian = dense.jacobian(theta, weights)
        lowest = float(torch.linalg.eigvals(jacobian).real.min())
        shift = max(1 / pace, -2 * lowest if lowest < -1e-9 else 0.0)
        step = torch.linalg.solve(jacobian + shift * torch.eye(len(theta), dtype=theta.dtype), field)
        moved = dense.field(theta - step, weights)
        if moved.norm() > 2 * field.norm():
            pace /= 4
            continue
        pace = min(pace * max(2.0, float(field.norm() / moved.norm())), 1e12)
        theta, field = theta - step, moved
    assert field.norm() < tolerance, f"{problem.name}: the reference training stopped at a field of {field.norm():.2g}"
    trained = copy.deepcopy(start)
    nn.utils.vector_to_parameters(theta, trained.parameters())
    return trained


def sample_gradients(model: nn.Module, losses, tensors) -> dict[str, Tensor]:
    """Every sample's gradient by every parameter, `(n, *shape)`: each sample alone, as a batch of one."""
    theta = {name: tensor.detach() for name, tensor in model.named_parameters()}

    def one(params, *sample):
        batch = tuple(part.unsqueeze(0) for part in sample)
        pair = Called(model, losses)
        return functional_call(
            pair, {f"model.{k}": v for k, v in params.items()}, (batch if len(batch) > 1 else batch[0],)
        )[0]

    with sdpa_kernel(SDPBackend.MATH):
        found = [grad(one)(theta, *(tensor[i] for tensor in tensors)) for i in range(len(tensors[0]))]
    return {name: torch.stack([each[name] for each in found]) for name in theta}


class Called(nn.Module):
    def __init__(self, model: nn.Module, function):
        super().__init__()
        self.model, self.functions = model, (function,)

    def forward(self, batch):
        return self.functions[0](self.model, batch)


def ekfac_matrix(
    model: nn.Sequential, losses, x: Tensor, *rest: Tensor, damping, l2: float = 0.0, corrected: bool = True
) -> Tensor:
    """The damped EK-FAC matrix of a chain with linear layers, or the K-FAC matrix, in the order of the parameters.

    `losses(z, *rest)` gives one loss for each sample; output gradients are derivatives by a shift of a layer's output.
    `damping` is a number, or a function of a block's mean eigenvalue.
    """
    linear = [layer for layer in model if isinstance(layer, nn.Linear)]

    def forward(shifts, sample):
        inputs = []
        for layer in model:
            if isinstance(layer, nn.Linear):
                inputs.append(torch.cat([sample, sample.new_ones(1)]))
                sample = layer(sample) + shifts[len(inputs) - 1]
            else:
                sample = layer(sample)
        return sample, inputs

    zero = [x.new_zeros(layer.out_features) for layer in linear]
    seen = []
    for i in range(len(x)):
        _, inputs = forward(zero, x[i])
        back = grad(lambda s, i=i: losses(forward(s, x[i])[0].unsqueeze(0), *(t[i : i + 1] for t in rest))[0])(zero)
        seen.append([(g.detach(), a.detach()) for g, a in zip(back, inputs, strict=True)])
    blocks = []
    for position in range(len(linear)):
        pairs = [sample[position] for sample in seen]
        left = torch.linalg.eigh(sum(torch.outer(g, g) for g, _ in pairs))[1]
        right = torch.linalg.eigh(sum(torch.outer(a, a) for _, a in pairs))[1]
        squares = sum((left.T @ torch.outer(g, a) @ right).square() for g, a in pairs) / len(pairs) + l2
        basis = torch.kron(left, right)
        block = basis @ torch.diag(squares.flatten()) @ basis.T
        if not corrected:
            block = torch.kron(
                *(sum(torch.outer(v, v) for v in side) / len(pairs) for side in zip(*pairs, strict=True))
            )
            block = block + l2 * torch.eye(len(block), dtype=block.dtype)
        added = damping(block.diagonal().mean()) if callable(damping) else damping
        block = block + added * torch.eye(len(block), dtype=block.dtype)
        rows, columns = squares.shape
        order = torch.arange(rows * columns).reshape(rows, columns)  # weight and bias side by side, then one by one
        order = torch.cat([order[:, :-1].flatten(), order[:, -1]])
        blocks.append(block[order][:, order])
    return torch.block_diag(*blocks)


def segmented(points, end, objective, curvatures=None) -> Tensor:
    """A training in segments, each with the curvature, gradients and summed learning rates of one point.

    `points` are pairs of a `Dense` and what multiplies a gradient there, `end` is the `Dense` of the trained model.
    """
    carried, total = end.slope(objective), 0
    curvatures = curvatures or [dense.J for dense, _ in points]
    for (dense, scaling), J in reversed(list(zip(points, curvatures, strict=True))):
        p, scaling = len(J), scaling * torch.ones(len(J), dtype=J.dtype)
        wide = torch.zeros(2 * p, 2 * p, dtype=J.dtype)
        wide[:p, :p], wide[:p, p:] = -scaling.unsqueeze(1) * J, torch.eye(p)
        exponential = torch.linalg.matrix_exp(wide)  # its corner is the integral of exp(-Mt) from 0 to 1
        total = total - carried @ exponential[:p, p:] @ (scaling.unsqueeze(1) * dense.K)
        carried = carried @ exponential[:p, :p]
    return total


def _of_batch(loss, batch, weights):
    return lambda live, still: weighted_sum(loss, live, still, batch, weights)


def unrolled(problem, recipe, objective, part=None) -> Tensor:
    """d m / d w, or by one part of the data, through the whole training, written as one long graph.

    `recipe` only names its settings.
    """
    dense = Dense(recipe.init, problem.loss, problem.tensors, problem.l2)
    weights, data = dense.ones.clone(), [tensor.clone() for tensor in problem.tensors]
    variable = (weights if part is None else data[part]).requires_grad_(True)
    theta = dense.theta.clone().requires_grad_(True)
    velocity = mean = square = torch.zeros_like(theta)
    generator, size = torch.Generator().manual_seed(recipe.seed), recipe.batch_size or problem.n
    whole = torch.arange(problem.n)
    rows = [
        part
        for _ in range(recipe.epochs)
        for part in (whole if size >= problem.n else torch.randperm(problem.n, generator=generator)).split(size)
    ]
    rule, decay = recipe.optimizer, getattr(recipe.optimizer, "weight_decay", 0.0)
    with sdpa_kernel(SDPBackend.MATH):
        for count, chosen in enumerate(rows):
            if count % recipe.hold == 0:
                still = theta
            live = theta.clone()
            tensors = [tensor[chosen] for tensor in data]
            batch = tensors[0] if len(tensors) == 1 else tuple(tensors)
            total = dense.call(live, still, _of_batch(problem.loss, batch, weights[chosen]))
            gradient = torch.autograd.grad(total, live, create_graph=True)[0] / len(chosen) + problem.l2 * theta
            lr = rule.lr * recipe.schedule(count / len(rows))
            if isinstance(rule, cf.SGD):
                velocity = rule.momentum * velocity + gradient
                theta = theta - lr * velocity
            else:
                (first, second), k = rule.betas, count + 1
                mean, square = first * mean + (1 - first) * gradient, second * square + (1 - second) * gradient**2
                root = torch.sqrt(square / (1 - second**k) + rule.eps_root)
                theta = theta * (1 - lr * decay) - lr * mean / (1 - first**k) / (root + rule.eps)
        asked = dense.call(theta, theta, lambda live, _: objective(live))
        return torch.autograd.grad(asked, variable)[0]
