"""A training by the Trainer of transformers, as a recipe that can be repeated with other sample weights."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Shaped
from torch import Tensor, nn

from crossfluence import SGD, Adam, AdamW, OnOutputs, Recipe, Risk, TrainingRecord, WeightedLoss, batches
from crossfluence.errors import DataError, UnsupportedError, import_optional
from crossfluence.extend import Batch, isolated

from .batches import class_of
from .losses import causal_loss, classification_loss, masked_loss
from .scoring import kind_of
from .token_means import TokenMean

AGREE = 1e-3  # share of the first step's gradient by which it may differ from the Trainer's own
SETTINGS = {  # of TrainingArguments, with the values that a recipe knows
    "label_smoothing_factor": (0, 0.0), "fp16": (False,), "bf16": (False,), "neftune_noise_alpha": (None, 0),
    "auto_find_batch_size": (False,), "load_best_model_at_end": (False,), "deepspeed": (None,), "world_size": (1,),
    "torch_compile": (False,), "dataloader_num_workers": (0,), "train_sampling_strategy": ("random", "sequential"),
}  # fmt: skip


def recipe(trainer: Any, *, start: nn.Module | None = None, redraw: bool = False) -> Recipe:
    """The training that a `transformers.Trainer` will do, or did, as a recipe.

    It takes over the order of the data, the optimiser with its groups of parameters, the schedule with its warm-up,
    accumulated and clipped gradients, and how the loss weighs tokens: its weights are the Trainer's to rounding. (Where
    a gradient is zero but for rounding, as that of the biases of attention's keys is, Adam goes where rounding sends.)
    The gradient of the first step is compared with the Trainer's own; a setting that is not known is refused by name.

    Args:
        trainer: Before `train()`; or afterwards, with `start`.
        start: The model as it was before training.
        redraw: Whether dropout may be drawn otherwise than the Trainer drew it: the weights are then those of another
            training of the same kind.

    Returns:
        A recipe, for `replay`, `leave_out`, `source`, `lds`, and `recipe.record()` for `Horizon`.

    Raises:
        UnsupportedError: If a setting is not known, or the trainer has trained and there is no `start`.
        DataError: If the collator is random.
    """
    kind = import_optional("transformers", "language.recipe", "language").Trainer
    if not isinstance(trainer, kind):
        raise UnsupportedError(f"Got {type(trainer).__name__}; language.recipe needs a transformers.Trainer.")
    _refuse_settings(trainer)
    if start is None and trainer.state.global_step:
        raise UnsupportedError(
            "The Trainer has trained already. Type language.recipe(trainer) before trainer.train(), or "
            "language.recipe(trainer, start=model), with the model as it was before."
        )
    init = copy.deepcopy(trainer.model if start is None else start).train(redraw)
    with isolated(), torch.enable_grad():
        plan = _Plan.of(trainer)
        _refuse_random_batches(plan)
        if not redraw:
            _refuse_dropout(trainer, init, plan)
        source = batches(plan.loader.dataset, collate=plan.loader.collate_fn, size=trainer.args.train_batch_size)
        loss = _loss(trainer, init)
        optimizer, rates = _optimizer(trainer, len(plan.steps))
        _refuse_other_gradient(trainer, init, loss, plan)
    norm = trainer.args.max_grad_norm
    order = [plan.samples(step) for step in range(len(plan.steps))]
    return Recipe(
        init, loss, source, optimizer=optimizer, epochs=1, order=order,
        batch_size=trainer.args.train_batch_size * trainer.args.gradient_accumulation_steps, schedule=rates,
        clipping=norm if norm and norm > 0 else None, random=redraw, seed=trainer.args.seed,
    )  # fmt: skip


def risk_of(trainer: Any, *, record: TrainingRecord | None = None) -> Risk:
    """The risk that a finished `transformers.Trainer` minimised: its model, its data, and its loss.

    The Trainer takes the mean over all tokens of a step, so that the loss of a sample is the sum over its tokens, over
    the mean number of tokens of a sample: only with this scale do a record's sizes fit. It counts those parameters as
    trained that need a gradient, such as those of adapters.

    Args:
        trainer: After `train()`.
        record: What the training did, of a `language.Recorder` among its callbacks.

    Returns:
        A risk, for `influence` and every other verb, with tokens for `unit="token"`.

    Raises:
        UnsupportedError: If a setting is not known.
        DataError: If the collator is random.
    """
    kind = import_optional("transformers", "language.risk_of", "language").Trainer
    if not isinstance(trainer, kind):
        raise UnsupportedError(f"Got {type(trainer).__name__}; language.risk_of needs a transformers.Trainer.")
    _refuse_settings(trainer)
    model = trainer.model.eval()
    with isolated():
        plan = _Plan.of(trainer)
        _refuse_random_batches(plan)
        source = batches(plan.loader.dataset, collate=plan.loader.collate_fn, size=trainer.args.train_batch_size)
        loss = _loss(trainer, model)
        if isinstance(loss, WeightedLoss):
            loss = loss.fn.by_sample(source)  # pyright: ignore[reportFunctionMemberAccess]
    return Risk(model, loss, source, record=record)


def _refuse_random_batches(plan: _Plan) -> None:
    """Refuses a collator that draws."""
    one, other = (next(plan.inputs(0)) for _ in range(2))
    if any(isinstance(part, Tensor) and not torch.equal(part, other[name]) for name, part in one.items()):
        raise DataError(
            "The Trainer's collator gives other batches every time: masks are drawn anew in each epoch, which a recipe "
            "cannot repeat. Mask the data once before training, dataset.map(...), and train with a collator that only "
            "pads."
        )


@dataclass(frozen=True, eq=False)
class Rates:
    """The multiplier of the learning rate in each step.

    Attributes:
        values: One for each step.
    """

    values: tuple[float, ...]

    def __call__(self, progress: float) -> float:
        """That of the step at a share of the training."""
        return self.values[min(round(progress * len(self.values)), len(self.values) - 1)]


@dataclass(frozen=True, eq=False)
class _Plan:
    """Samples of each step, in micro-batches.

    Attributes:
        loader: The Trainer's own.
        steps: Lists of micro-batches.
    """

    loader: Any
    steps: list[list[list[int]]]

    @classmethod
    def of(cls, trainer: Any) -> _Plan:
        """Reads the order of the data as `train()` does: it begins by seeding PyTorch's generators."""
        args = trainer.args
        with isolated(), torch.enable_grad():
            torch.manual_seed(args.seed)
            loader = trainer.get_train_dataloader()
        if getattr(loader, "batch_sampler", None) is None or not hasattr(loader.dataset, "__len__"):
            raise UnsupportedError("The Trainer reads a data set without a length; needed one with __len__.")
        steps, together = list[list[list[int]]](), args.gradient_accumulation_steps
        each = math.ceil(len(loader) / together)
        most = args.max_steps if args.max_steps > 0 else math.ceil(args.num_train_epochs * each)
        for epoch in range(math.ceil(most / each)):
            if hasattr(loader, "set_epoch"):
                loader.set_epoch(epoch)
            parts = [list(rows) for rows in loader.batch_sampler]
            steps += [parts[first : first + together] for first in range(0, len(parts), together)]
        return cls(loader, steps[:most])

    def samples(self, step: int) -> list[int]:
        """The samples of a step."""
        return [row for part in self.steps[step] for row in part]

    def inputs(self, step: int) -> Iterator[Batch]:
        """The micro-batches of a step."""
        for rows in self.steps[step]:
            yield self.loader.collate_fn([self.loader.dataset[row] for row in rows])


def _loss(trainer: Any, model: nn.Module) -> OnOutputs | WeightedLoss:
    name, kind = class_of(model), kind_of(model)
    if "Classification" in name and "Token" not in name:
        return classification_loss()
    if "TokenClassification" in name:
        return WeightedLoss(TokenMean(classification_loss()))
    if kind == "masked":
        return WeightedLoss(TokenMean(masked_loss()))
    shifts = kind == "seq2seq" or getattr(trainer, "_loss_shifts_labels", False)
    return WeightedLoss(TokenMean(causal_loss(seq2seq=kind == "seq2seq"), every=not shifts))


def _optimizer(trainer: Any, steps: int) -> tuple[SGD | Adam | AdamW, Rates]:
    """The optimiser that the Trainer makes, and its schedule; made on a copy of the Trainer."""
    own = copy.copy(trainer)
    if trainer.state.global_step:
        own.optimizer = own.lr_scheduler = None  # those that are there have been stepped
    own.create_optimizer_and_scheduler(steps)
    made: Any = getattr(own.optimizer, "optimizer", own.optimizer)
    groups = made.param_groups
    names = {id(part): name for name, part in trainer.model.named_parameters()}
    first = groups[0]
    for key in ("lr", "initial_lr", "betas", "eps", "momentum", "amsgrad", "nesterov", "dampening", "maximize"):
        if any(group.get(key) != first.get(key) for group in groups if group["params"]):
            raise UnsupportedError(f"The optimiser has another {key} in each group of parameters; a recipe has one.")
    if any(first.get(key) for key in ("amsgrad", "nesterov", "dampening", "maximize")):
        raise UnsupportedError(f"The optimiser {type(made).__name__} has amsgrad, nesterov, dampening or maximize set.")
    decay = {names[id(part)]: group["weight_decay"] for group in groups for part in group["params"]}
    rates = _rates(own.lr_scheduler, steps)
    lr = first.get("initial_lr", first["lr"])
    if type(made) is torch.optim.AdamW:
        kept = {name: value for name, value in decay.items() if value}
        return AdamW(lr, first["betas"], first["eps"], weight_decay=kept or 0.0), rates
    if any(decay.values()) or type(made) not in (torch.optim.Adam, torch.optim.SGD):
        raise UnsupportedError(
            f"The optimiser is {type(made).__name__}{' with weight decay' if any(decay.values()) else ''} "
            f"(optim={trainer.args.optim}); a recipe knows AdamW, and Adam and SGD without decay. Type "
            f"TrainingArguments(optim='adamw_torch')."
        )
    if type(made) is torch.optim.Adam:
        return Adam(lr, first["betas"], first["eps"]), rates
    return SGD(lr, first["momentum"]), rates


def _rates(scheduler: Any, steps: int) -> Rates:
    scheduler = getattr(scheduler, "scheduler", scheduler)
    functions = getattr(scheduler, "lr_lambdas", None)
    if not functions or functions[0] is None:
        raise UnsupportedError(
            f"The schedule is a {type(scheduler).__name__}, whose steps depend on more than their number. Type "
            f"TrainingArguments(lr_scheduler_type='linear')."
        )
    return Rates(tuple(float(functions[0](step)) for step in range(steps)))


def _refuse_settings(trainer: Any) -> None:
    for name, known in SETTINGS.items():
        if (value := getattr(trainer.args, name, known[0])) not in known:
            raise UnsupportedError(
                f"The Trainer has {name}={value!r}, which a recipe does not know. Type TrainingArguments({name}="
                f"{known[0]!r}), or repeat the training yourself: a function from sample weights (n,) to a model."
            )
    for name in ("compute_loss_func",):
        if getattr(trainer, name, None) is not None:
            raise UnsupportedError(f"The Trainer has a {name}, which a recipe does not know.")
    names = [type(each).__name__ for each in trainer.callback_handler.callbacks]
    stopping = [name for name in names if "EarlyStopping" in name]
    if stopping:
        raise UnsupportedError(f"The Trainer has a {stopping[0]}, so that its number of steps is not known beforehand.")


def _refuse_dropout(trainer: Any, init: nn.Module, plan: _Plan) -> None:
    """Refuses a model whose loss is random in training mode."""
    model = copy.deepcopy(init).train()
    inputs = trainer._prepare_inputs(dict(next(plan.inputs(0))))
    with torch.no_grad():
        one, other = (float(trainer.compute_loss(model, dict(inputs))) for _ in range(2))
    if abs(one - other) > 1e-6 * abs(one):
        raise UnsupportedError(
            f"The model's loss is random in training ({one:.6g}, then {other:.6g}): it draws dropout, and a recipe "
            f"cannot draw what the Trainer draws. Set its dropout to 0 in the configuration before training; or type "
            f"language.recipe(trainer, redraw=True), for another training of the same kind."
        )


def _refuse_other_gradient(trainer: Any, init: nn.Module, loss: OnOutputs | WeightedLoss, plan: _Plan) -> None:
    """Compares the gradient of the first step with the one that the Trainer's own loss has there."""
    theirs, ours = (copy.deepcopy(init).eval() for _ in range(2))
    parts = [trainer._prepare_inputs(dict(inputs)) for inputs in plan.inputs(0)]
    count = trainer._get_num_items_in_batch(parts, trainer.args.device) if len(parts) else None
    scaled = trainer.model_accepts_loss_kwargs and count is not None
    for inputs in parts:
        value = trainer.compute_loss(theirs, inputs, num_items_in_batch=count)
        (value if scaled else value / len(parts)).backward()
    rows = plan.samples(0)
    batch = plan.loader.collate_fn([plan.loader.dataset[row] for row in rows])
    ones = torch.ones(len(rows), dtype=next(ours.parameters()).dtype)
    (loss.total(ours, ours, dict(batch), ones) / len(rows)).backward()
    one, other = _gradient(theirs), _gradient(ours)
    if not float((one - other).norm()) <= AGREE * float(one.norm()):
        raise UnsupportedError(
            f"The gradient of the first step is not the Trainer's own (norm {float(other.norm()):.4g}, the Trainer's "
            f"{float(one.norm()):.4g}): its compute_loss, or its gradient_accumulation_steps="
            f"{trainer.args.gradient_accumulation_steps} with batches of unequal size, weighs samples in a way that a "
            f"recipe does not know. Train again yourself: a function from sample weights (n,) to a model."
        )


def _gradient(model: nn.Module) -> Shaped[Tensor, " p"]:
    found = [torch.zeros_like(p) if p.grad is None else p.grad for p in model.parameters() if p.requires_grad]
    return torch.cat([part.reshape(-1) for part in found]).double()
