"""Models of transformers: Exact, CG and EKFAC beside the same written out from plain gradients, in float64."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import pytest
import torch
from language_models import bert, bert_classifier, bert_encoder, gpt2, llama, lora, t5, texts, tokenizer, vit
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import crossfluence as cf
from crossfluence import language

DAMPING, L2 = 2.0, 0.1
TEXTS = texts(8, 5)
LABELS = torch.arange(8) % 3
IMAGES = {"pixel_values": torch.randn(8, 1, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64),
          "labels": LABELS}  # fmt: skip
ANSWERS = TEXTS | {
    "labels": texts(8, 4, seed=3)["input_ids"].masked_fill(texts(8, 4, seed=3)["attention_mask"] == 0, -100)
}
CAUSAL = language.causal_loss()


@dataclass(frozen=True)
class Case:
    name: str
    build: Callable[[], nn.Module] = field(repr=False)
    loss: Any = field(repr=False)
    batch: dict[str, Tensor] = field(repr=False)
    ask: Callable[[nn.Module], Tensor] = field(repr=False)
    params: str = "*"
    plain: Callable[[], nn.Module] | None = field(default=None, repr=False)

    def risk(self, size: int = 3) -> cf.Risk:
        data = cf.batches(self.batch, size=size)
        return cf.Risk(self.build(), self.loss, data, l2=L2, params=self.params)


def checkpointed() -> nn.Module:
    model = llama().train()  # transformers checkpoints in training mode alone; a Llama has no dropout
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)  # of its name
        model.gradient_checkpointing_enable()
    return model


COMPLETION = language.log_probability([6, 7, 8], [9, 10])
CASES = [
    Case("gpt2", gpt2, CAUSAL, TEXTS, COMPLETION),
    Case("gpt2, eager", lambda: gpt2(attn_implementation="eager"), CAUSAL, TEXTS, COMPLETION, plain=gpt2),
    Case("gpt2, untied", lambda: gpt2(tie_word_embeddings=False), CAUSAL, TEXTS, COMPLETION),
    Case("llama", llama, CAUSAL, TEXTS, COMPLETION),
    Case("llama, tied", lambda: llama(tie_word_embeddings=True), CAUSAL, TEXTS, COMPLETION),
    Case("llama, checkpointing", checkpointed, CAUSAL, TEXTS, COMPLETION, plain=llama),
    Case("lora", lora, CAUSAL, TEXTS, COMPLETION, "*lora*"),
    Case("bert", bert, language.masked_loss(tokenizer(masked=True), 0.4), TEXTS,
         language.log_probability([2, 6], [7, 3], tokenizer=tokenizer(masked=True))),
    Case("bert, classifier", bert_classifier, language.classification_loss(), TEXTS | {"labels": LABELS},
         language.class_logit({name: column[:2] for name, column in TEXTS.items()}, 1)),
    Case("t5", t5, language.causal_loss(seq2seq=True), ANSWERS, COMPLETION),
    Case("vit", vit, language.classification_loss(), IMAGES,
         language.class_logit({"pixel_values": IMAGES["pixel_values"][:2]}, 1)),
]  # fmt: skip
cases = pytest.mark.parametrize("case", [pytest.param(case, id=case.name) for case in CASES])
pytestmark = [
    pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # within peft
]


class Written:
    """A case written out: gradients by plain autograd, one after the other."""

    def __init__(self, case: Case):
        self.case, self.model = case, (case.plain or case.build)()
        self.named = {n: p for n, p in self.model.named_parameters() if fnmatchcase(n, case.params)}

    def gradient(self, value: Tensor, keep: bool = False) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            found = torch.autograd.grad(
                value, list(self.named.values()), create_graph=keep, retain_graph=True, allow_unused=True
            )
        parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, self.named.values(), strict=True)]
        return torch.cat([part.reshape(-1) for part in parts])

    def losses(self) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return self.case.loss.losses(self.model, self.case.batch)

    def slopes(self) -> Tensor:
        losses = self.losses()
        return torch.stack([self.gradient(loss) for loss in losses])

    def question(self) -> Tensor:
        with sdpa_kernel(SDPBackend.MATH):
            return self.gradient(self.case.ask(self.model))

    def hessian(self) -> Tensor:
        field = self.gradient(self.losses().mean(), keep=True)
        return torch.stack([self.gradient(part) for part in field])

    def scores(self, curvature: Tensor, damping: float) -> Tensor:
        shifted = curvature + (L2 + damping) * torch.eye(len(curvature), dtype=curvature.dtype)
        return -self.slopes() @ torch.linalg.solve(shifted, self.question()) / len(self.slopes())


SINGLE = ("llama", "lora", "t5")  # their norms compute in single precision, whatever the model's


def assert_close(found: Tensor, wanted: Tensor, case: Case, double: float) -> None:
    rounding = 2e-4 if case.name.startswith(SINGLE) else double
    assert float((found - wanted).abs().max()) <= rounding * float(wanted.abs().max())


@cases
def test_exact_scores_are_those_of_the_dense_hessian(case):
    written = Written(case)
    wanted = written.scores(written.hessian(), DAMPING)
    found = cf.influence(case.risk(), case.ask, cf.Exact(DAMPING)).values[:, 0]
    assert_close(found, wanted, case, 1e-6)


@cases
def test_cg_agrees_with_the_dense_hessian(case):
    written = Written(case)
    hessian = written.hessian()
    damping = max(DAMPING, 0.1 - float(torch.linalg.eigvalsh(hessian).min()))
    wanted = written.scores(hessian, damping)
    rtol = 1e-4 if case.name.startswith(SINGLE) else 1e-10
    found = cf.influence(case.risk(), case.ask, cf.CG(damping, rtol=rtol)).values[:, 0]
    assert_close(found, wanted, case, 1e-6)


@cases
def test_ekfac_s_exact_blocks_are_second_moments_of_the_samples_gradients(case):
    written, risk = Written(case), case.risk()
    inverse = cf.BlockDiagonal(damping=0.5, curvature=cf.EmpiricalFisher()).invert(risk)
    slopes, places = written.slopes(), {}
    start = 0
    for name, part in written.named.items():
        places[name] = range(start, start := start + part.numel())
    matrix = torch.zeros(start, start, dtype=torch.float64)
    for block in inverse.blocks:
        rows = torch.tensor([place for name in block.slot.names for place in places[name]])
        matrix[rows[:, None], rows] = slopes[:, rows].T @ slopes[:, rows] / len(slopes)
    assert sum(block.slot.size for block in inverse.blocks) == start
    wanted = written.scores(matrix, 0.5)
    found = cf.influence(risk, case.ask, inverse).values[:, 0]
    assert_close(found, wanted, case, 1e-6)


@cases
def test_ekfac_s_eigenvalues_are_mean_squares_along_its_bases(case):
    written, risk = Written(case), case.risk()
    inverse = cf.EKFAC(damping=0.5, curvature=cf.EmpiricalFisher()).invert(risk)
    names, sizes = list(written.named), [part.numel() for part in written.named.values()]
    parts = dict(zip(names, written.slopes().split(sizes, dim=1), strict=True))
    shaped = {name: part.reshape(-1, *written.named[name].shape) for name, part in parts.items()}
    for block in inverse.blocks:
        squares = block.along(block.slot.gather(shaped)).square().mean(0)
        assert_close(block.values, squares, case, 1e-6)


@pytest.mark.parametrize("curvature", [cf.Fisher(), cf.Fisher(samples=None)], ids=["sampled", "whole"])
@pytest.mark.parametrize(
    "case", [pytest.param(c, id=c.name) for c in CASES if c.name in ("gpt2", "llama", "bert", "t5")]
)
def test_the_fisher_matrix_finds_the_softmax_at_every_token(case, curvature):
    if curvature.samples is None:  # beside Gauss-Newton, of which it is the whole
        direction = torch.randn(1, case.risk().p, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        one, other = (kind.product(case.risk(), direction) for kind in (curvature, cf.GaussNewton()))
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-9)
        return
    few, all_at_once = (cf.influence(case.risk(size), case.ask, cf.EKFAC(curvature=curvature)) for size in (3, 8))
    torch.testing.assert_close(few.values, all_at_once.values, rtol=1e-5, atol=1e-9)


class Contrastive:
    """In-batch negatives on a sentence encoder, written out: the whole batch's field, and its derivative in weights."""

    def __init__(self):
        self.model, self.loss = bert_encoder(), language.in_batch_contrastive(0.5)
        sides = {"anchor": TEXTS, "positive": texts(8, 5, seed=4)}
        self.batch = {f"{side}_{name}": column for side, batch in sides.items() for name, column in batch.items()}
        self.ask = language.similarity(*({"input_ids": torch.tensor([ids])} for ids in ([6, 7], [8, 9, 10])))
        names = [n for n, _ in self.model.named_parameters() if "pooler" not in n]
        self.risk = cf.Risk(self.model, self.loss, [self.batch], l2=L2, params=names, n=[8])
        self.parts = [dict(self.model.named_parameters())[name] for name in names]
        self.names = names

    def flat(self, value, keep=False):
        found = torch.autograd.grad(value, self.parts, create_graph=keep, retain_graph=True, allow_unused=True)
        return torch.cat([
            (torch.zeros_like(p) if g is None else g).reshape(-1) for g, p in zip(found, self.parts, strict=True)
        ])

    def written(self):
        """Hessian, derivative of the field in weights `(p, n)`, and the question's gradient."""
        weights = torch.ones(8, dtype=torch.float64, requires_grad=True)
        with sdpa_kernel(SDPBackend.MATH):
            field = self.flat(self.loss(self.model, self.batch, weights) / 8, keep=True)
            hessian = torch.stack([self.flat(part) for part in field])
            cross = torch.stack([torch.autograd.grad(part, weights, retain_graph=True)[0] for part in field])
            return hessian, cross, self.flat(self.ask(self.model))


def test_a_contrastive_encoder_is_answered_like_the_dense_hessian():
    case = Contrastive()
    hessian, cross, slope = case.written()
    for solver, damping, tolerance in ((cf.Exact, DAMPING, 1e-6), (cf.CG, 10.0, 1e-4)):
        shifted = hessian + (L2 + damping) * torch.eye(len(hessian), dtype=torch.float64)
        assert solver is cf.Exact or float(torch.linalg.eigvalsh(shifted).min()) > 0
        found = cf.influence(case.risk, case.ask, solver(damping)).values[:, 0]
        torch.testing.assert_close(found, -slope @ torch.linalg.solve(shifted, cross), rtol=tolerance, atol=1e-9)


def test_ekfac_s_blocks_of_a_contrastive_encoder_are_second_moments_of_the_samples_rows():
    case = Contrastive()
    _, cross, slope = case.written()
    rows, matrix = 8 * cross.T, torch.zeros(len(slope), len(slope), dtype=torch.float64)
    ends = torch.tensor([0, *(part.numel() for part in case.parts)]).cumsum(0).tolist()
    places = {name: range(*ends[k : k + 2]) for k, name in enumerate(case.names)}
    inverse = cf.BlockDiagonal(damping=0.5).invert(case.risk)
    for block in inverse.blocks:
        at = torch.tensor([place for name in block.slot.names for place in places[name]])
        matrix[at[:, None], at] = rows[:, at].T @ rows[:, at] / 8
    wanted = -slope @ torch.linalg.solve(matrix + (L2 + 0.5) * torch.eye(len(matrix), dtype=torch.float64), cross)
    found = cf.influence(case.risk, case.ask, inverse).values[:, 0]
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("make", [gpt2, llama], ids=lambda make: make.__name__)
@pytest.mark.parametrize("solver", [cf.Identity(), cf.EKFAC(), cf.CG(5.0, curvature=cf.GaussNewton())],
                         ids=lambda solver: type(solver).__name__)  # fmt: skip
def test_bfloat16_answers_like_float64_as_far_as_it_goes(make, solver):
    fine, coarse = make(), make().bfloat16()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        one, other = (
            cf.influence(cf.Risk(model, CAUSAL, cf.batches(TEXTS)), COMPLETION, solver).values[:, 0].double()
            for model in (fine, coarse)
        )
    assert float(torch.corrcoef(torch.stack([one, other]))[0, 1]) > 0.99


def test_a_model_in_training_mode_is_refused_with_advice():
    with pytest.raises(cf.CrossfluenceError, match=r"model\.eval\(\)"):
        cf.Risk(gpt2().train(), CAUSAL, cf.batches(TEXTS))
