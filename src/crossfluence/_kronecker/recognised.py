"""Modules told by what they compute, whatever their class, and modules that a user registered."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import singledispatch
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from torch.nn import functional
from torch.utils._pytree import tree_flatten, tree_unflatten

from .._autodiff.functional import recorded_twice, strided
from .._autodiff.params import wide
from .._types import Params
from ..errors import UnsupportedError
from .gradients import AbstractGradients, DenseGradients, EmbeddingGradients, OuterProducts
from .layer_calls import AbstractKind, LayerBlock, ModuleCall, by_sample, repeated, summed

ByPosition: TypeAlias = Mapping[str, Tensor | tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Products(AbstractKind[ModuleCall]):
    """A product with a matrix and a shift, in a class of its own.

    Attributes:
        transposed: Whether the matrix has inputs in its rows, as the `Conv1D` of transformers.
    """

    transposed: bool

    def record(self, call: ModuleCall) -> list[ModuleCall]:
        """The call."""
        return [call]

    def gradients(self, layer_block: LayerBlock, seen: ModuleCall, b: int) -> AbstractGradients:
        """Outer products of output gradients and inputs."""
        left, right = wide(seen.gradient).unsqueeze(-2), wide(seen.first).unsqueeze(-2)
        if layer_block.bias_alone:
            return summed(by_sample(left, layer_block, b))
        if len(layer_block.slot.names) == 2:
            right = functional.pad(right, (0, 1), value=1.0)
        return OuterProducts(by_sample(left, layer_block, b), by_sample(right, layer_block, b))


@dataclass(frozen=True)
class Rows:
    """Rows of a table that a call read, shape `(..., )`, and the gradient of each, `(..., d)`."""

    read: Tensor
    gradient: Tensor


@dataclass(frozen=True)
class Table(AbstractKind[Rows]):
    """A table that is read in a way of its own: scaled, shifted, by positions counted inside.

    The module is called with row numbers for its weight, and with ones: the quotient says which rows it reads, and the
    second by how much it multiplies them.
    """

    def record(self, call: ModuleCall) -> list[Rows]:
        """Rows that were read, and the gradients by them."""
        module = call.module
        assert isinstance(module, nn.Embedding)
        numbers = torch.arange(1, module.num_embeddings + 1, dtype=torch.float64, device=module.weight.device)
        numbered, scale = (
            _first_output(functional_call(module, {"weight": table.expand_as(module.weight)}, call.args, call.kwargs))
            for table in (numbers.unsqueeze(1), torch.ones_like(numbers).unsqueeze(1))
        )
        rows = (numbered / scale).nan_to_num(1.0)[..., 0]
        if not bool(((rows - rows.round()).abs() < 1e-3).all()):
            raise UnsupportedError(f"A {type(module).__name__} does not read single rows of its table.")
        read = rows.round().long() - 1
        if module.padding_idx is not None:
            scale = scale * (read != module.padding_idx).unsqueeze(-1)
        if call.spread:
            read, scale = repeated(read, call.spread, 1), repeated(scale, call.spread, 2)
        gradient = wide(call.gradient)
        return [Rows(read, gradient * scale.to(gradient))]

    def gradients(self, layer_block: LayerBlock, seen: Rows, b: int) -> AbstractGradients:
        """Rows of a table."""
        read = by_sample(seen.read[..., None, None], layer_block, b)[0, :, :, 0]
        return EmbeddingGradients(
            read, by_sample(seen.gradient.unsqueeze(-2), layer_block, b), layer_block.slot.form[1]
        )


@singledispatch
def layer_gradients(layer: nn.Module, inputs: Tensor, gradient: Tensor) -> ByPosition:
    """Gradients of the parameters of a layer of one's own, at each position; register a function of a class.

    A layer of any class is recognised if it multiplies by a matrix or reads a table, and is otherwise differentiated
    by itself, sample by sample. A registered function is faster, and gives a matrix the Kronecker factors of its own
    inputs. Its gradients are compared with plain ones before they are used. It returns, by the name of each parameter,
    two tensors whose outer product at each position is the parameter's gradient there, or that gradient itself.

    Args:
        layer: The module.
        inputs: Its first argument, shape `(b, ..., c)`.
        gradient: Of the sum of losses by its (first) output.

    Raises:
        UnsupportedError: If nothing is registered for its class.

    Example:
        >>> class Scaled(nn.Linear):
        ...     def forward(self, x):
        ...         return 3 * super().forward(x)
        >>> @layer_gradients.register
        ... def _(layer: Scaled, inputs, gradient):
        ...     return {"weight": (3 * gradient, inputs), "bias": 3 * gradient}
    """  # the registered ones return
    raise UnsupportedError(f"No gradients are registered for a {type(layer).__name__}.")


@dataclass(frozen=True)
class Registered(AbstractKind[ByPosition]):
    """A class with gradients from `layer_gradients`."""

    @staticmethod
    def has(module: nn.Module) -> bool:
        """True if there is one for a module."""
        return layer_gradients.dispatch(type(module)) is not layer_gradients.dispatch(object)

    def record(self, call: ModuleCall) -> list[ByPosition]:
        """The result of the registered function."""
        return [layer_gradients(call.module, wide(call.first), wide(call.gradient))]

    def gradients(self, layer_block: LayerBlock, seen: ByPosition, b: int) -> AbstractGradients:
        """Of one parameter."""
        (name,), (groups, rows, _) = layer_block.own, layer_block.slot.form
        found = seen[name]
        if isinstance(found, tuple):
            left, right = (part if groups > 1 else part.unsqueeze(-2) for part in found)
            return OuterProducts(by_sample(left, layer_block, b), by_sample(right, layer_block, b))
        flat = found.flatten(-len(layer_block.slot.shapes[0])) if layer_block.slot.shapes[0] else found.unsqueeze(-1)
        each = by_sample(flat.unsqueeze(-2), layer_block, b).sum(2)  # (1, b, size)
        return DenseGradients(each.reshape(b, groups, rows, -1).movedim(1, 0))


@dataclass(frozen=True, eq=False)
class OwnCall:
    """A call, and what was found of it so far, by number of samples."""

    call: ModuleCall
    found: dict[int, Params] = field(default_factory=dict)


@dataclass(frozen=True)
class Alone(AbstractKind[OwnCall]):
    """Any module whose call divides into samples: it is called and differentiated by itself, sample by sample.

    Attributes:
        names: Of the parameters, within the module.
    """

    names: tuple[str, ...] = ()

    def record(self, call: ModuleCall) -> list[OwnCall]:
        """The call."""
        return [OwnCall(call)]

    def gradients(self, layer_block: LayerBlock, seen: OwnCall, b: int) -> AbstractGradients:
        """In full."""
        if b not in seen.found:
            module = seen.call.module
            seen.found[b] = _differentiated(
                seen.call, {name: module.get_parameter(name).detach() for name in self.names}, b
            )
        named = dict(zip(layer_block.slot.names, layer_block.own, strict=True))
        each = {name: seen.found[b][own] for name, own in named.items()}
        return DenseGradients(wide(layer_block.slot.gather(each)).movedim(0, 1))


def _own_parameters(module: nn.Module) -> Params:
    """Parameters of a module without those of its parts; what a parametrization makes a weight of is its own."""
    return {
        name: part
        for name, part in module.named_parameters(remove_duplicate=False)
        if "." not in name or name.startswith("parametrizations.")
    }


def _differentiated(call: ModuleCall, own: Params, b: int) -> Params:
    """Each sample's gradients of a module's own parameters, `(b, ...)`."""
    # which arguments hold samples is guessed by their lengths, and judged by whether the module, called sample by
    # sample, gives what it gave
    back = [(place, out, part) for place, out, part in zip(call.places, call.outputs, call.gradients, strict=True)
            if part is not None]  # fmt: skip
    if not back or any(not part.ndim or len(part) % b or not len(part) for _, _, part in back):
        raise UnsupportedError(f"What a {type(call.module).__name__} returns does not divide into samples.")
    lengths = {b, *(len(part) for *_, part in back)}
    leaves, spec = tree_flatten((call.args, call.kwargs))
    leaves = [leaf.detach() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
    cotangents = [part.unflatten(0, (b, -1)) for *_, part in back]
    wanted = [out.detach().unflatten(0, (b, -1)) for _, out, _ in back]

    def of_sample(filled: list[Any], along: Sequence[Tensor]) -> tuple[Params, list[Tensor]]:
        args, kwargs = tree_unflatten(filled, spec)

        def outputs(params: Params) -> list[Tensor]:
            out = tree_flatten(functional_call(call.module, params, args, kwargs))[0]
            return [out[place] for place, *_ in back]

        values, pull = vjp(outputs, own)[:2]
        return pull(list(along))[0], values

    for given, places in _hypotheses(leaves, lengths):

        def one(
            *parts: Tensor, given: list[Any] = given, places: tuple[int, ...] = places
        ) -> tuple[Params, list[Tensor]]:
            filled = dict(enumerate(given)) | dict(zip(places, parts, strict=False))
            return of_sample(list(filled.values()), parts[len(places) :])

        with contextlib.suppress(Exception), recorded_twice():  # whatever the module says to other arguments
            found, values = _each(one, [given[place].unflatten(0, (b, -1)) for place in places], cotangents)
            if all(_alike(value, want) for value, want in zip(values, wanted, strict=True)):
                return {name: strided(part.detach()) for name, part in found.items()}
    raise UnsupportedError(f"A {type(call.module).__name__} does not give the same, called with one sample at a time.")


def _each(function: Callable[..., Any], *parts: Sequence[Tensor]) -> tuple[Params, list[Tensor]]:
    """A function of each sample: of all at once, or one by one where the module cannot."""
    flat = [part for some in parts for part in some]
    try:
        return vmap(function)(*flat)
    except Exception:  # data-dependent branches, operations in place
        found = [function(*(part[number] for part in flat)) for number in range(len(flat[0]))]
        rows = {name: torch.stack([strided(one[0][name]) for one in found]) for name in found[0][0]}
        return rows, [torch.stack(some) for some in zip(*(one[1] for one in found), strict=True)]


def _hypotheses(leaves: Sequence[Any], lengths: set[int]) -> list[tuple[list[Any], tuple[int, ...]]]:
    """Arguments, and places of those that may hold samples; last without objects that may hold the state of a call."""
    fitting = [isinstance(leaf, Tensor) and leaf.ndim > 0 and len(leaf) in lengths for leaf in leaves]
    held = [place for place, fits in enumerate(fitting) if fits]
    tables = [place for place in held if leaves[place].ndim > 1]
    real = [place for place in tables if leaves[place].is_floating_point()]
    bare = [leaf if leaf is None or isinstance(leaf, (Tensor, bool, int, float, str)) else None for leaf in leaves]
    ways = [found for found in dict.fromkeys(map(tuple, (held, tables, real))) if found]
    return [(list(given), places) for given in (leaves, bare) for places in ways]


def _alike(found: Tensor, wanted: Tensor) -> bool:
    share = torch.finfo(wanted.dtype).eps ** 0.5 if wanted.is_floating_point() else 0.0
    return found.shape == wanted.shape and bool((found - wanted).norm() <= share * wanted.norm() + 1e-30)


@dataclass(frozen=True, eq=False)
class Factors:
    """By name of a parameter, what it is multiplied with at each position, times the gradient there."""

    products: Params


@dataclass(frozen=True)
class Scales(AbstractKind[Factors]):
    """A module whose own parameters multiply, or shift, the features of its output: any normalisation, a layer scale.

    It is called with ones for each parameter in turn and zeros for the others; the difference to all zeros is what the
    parameter is multiplied with.

    Attributes:
        dim: Of the features.
    """

    dim: int = -1

    def record(self, call: ModuleCall) -> list[Factors]:
        """Factors times output gradients."""
        gradient = wide(call.gradient)
        factors = _factors(call.module, call.args, call.kwargs)[1]
        return [Factors({name: (wide(part) * gradient).movedim(self.dim, -1) for name, part in factors.items()})]

    def gradients(self, layer_block: LayerBlock, seen: Factors, b: int) -> AbstractGradients:
        """Their sums over positions."""
        parts = torch.cat([seen.products[name] for name in layer_block.own], dim=-1)
        return summed(by_sample(parts.unsqueeze(-2), layer_block, b))


def _factors(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Tensor, Params]:
    """The output with all own parameters zero, and the factor of each of them."""
    own = _own_parameters(module)
    zeros, found = {name: torch.zeros_like(part) for name, part in own.items()}, {}
    with torch.no_grad():
        still = _first_output(functional_call(module, zeros, args, kwargs))
        for name, part in own.items():
            one = functional_call(module, zeros | {name: torch.ones_like(part)}, args, kwargs)
            found[name] = _first_output(one) - still
    return still, found


def recognised_in(model: nn.Module, modules: Sequence[nn.Module], run: Callable[[], Any]) -> dict[nn.Module, Any]:
    """Kinds of modules of classes of their own, as one run of the model shows.

    Args:
        model: Whose modules.
        modules: Those that are looked at.
        run: Runs the model.

    Returns:
        By module: `Products` or `Scales`; nothing of others.
    """
    found: dict[nn.Module, Any] = {}
    looked: set[nn.Module] = set()
    if not modules:
        return found

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> None:
        if module in looked:  # also where it is called with other parameters
            return
        looked.add(module)
        with contextlib.suppress(Exception):  # whatever a module says to other parameters
            if (kind := _recognised(module, args, kwargs, _first_output(returned))) is not None:
                found[module] = kind

    hooks = [module.register_forward_hook(look, with_kwargs=True) for module in modules]
    try:
        run()
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _recognised(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], returned: Any) -> AbstractKind | None:
    own = _own_parameters(module)
    if not isinstance(returned, Tensor):
        return None
    if set(own) <= {"weight", "bias"} and "weight" in own and own["weight"].ndim == 2 and len(args) == 1:
        return _product(own["weight"], own.get("bias"), args[0], returned)
    fitting = [dim for dim in (-1, 1) if all(part.shape == returned.shape[dim:][:1] for part in own.values())]
    if not fitting:
        return None
    still, factors = _factors(module, args, kwargs)
    return next((Scales(dim) for dim in fitting if _alike(_scaled(still, factors, own, dim), returned.detach())), None)


def _scaled(still: Tensor, factors: Params, own: Params, dim: int) -> Tensor:
    parts = (factors[name].movedim(dim, -1) * part for name, part in own.items())
    return still + sum(parts, torch.zeros_like(still.movedim(dim, -1))).movedim(-1, dim)


def _product(weight: Tensor, bias: Tensor | None, given: Tensor, returned: Tensor) -> Products | None:
    for transposed in (False, True):
        matrix = weight.mT if transposed else weight
        fitting = given.is_floating_point() and given.shape[-1:] == matrix.shape[1:]
        if fitting and _alike(functional.linear(given, matrix, bias), returned.detach()):
            return Products(transposed)
    return None


def _first_output(returned: Any) -> Tensor:
    return returned[0] if isinstance(returned, tuple) else returned
