"""Ordinary trainings of models of all kinds, each with its questions, small enough for a table.

Images are the 8 x 8 digits of scikit-learn; texts are Markov chains of four topics, as long as a sentence.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import transformers as tr
from sklearn.datasets import load_breast_cancer, load_diabetes, load_digits
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

import crossfluence as cf
from crossfluence.clustering import DEC
from crossfluence.language import in_batch_contrastive

WORDS, LENGTH = 40, 16


@dataclass(frozen=True, eq=False)
class Training:
    """A training, its questions, and what is left out of it.

    Attributes:
        name: For the table.
        recipe: How it is run.
        ask: The questions.
        size: Samples in a group.
        orders: Of the data, whose mean is the truth.
        most: Groups, at most.
    """

    name: str
    recipe: cf.Recipe
    ask: Callable[[nn.Module], Mapping[str, Tensor]]
    size: int = 20
    orders: int = 3
    most: int = 20

    @property
    def groups(self) -> dict[str, range]:
        """What is left out, by name."""
        count = min(self.most, self.recipe.n // self.size)
        return {f"g{k}": range(self.size * k, self.size * (k + 1)) for k in range(count)}

    @property
    def settings(self) -> dict[str, Any]:
        """What everyone knows of it."""
        recipe = self.recipe
        size = recipe.batch_size or recipe.n
        steps = recipe.epochs * -(-recipe.n // size)
        return {"optimizer": recipe.optimizer, "steps": steps, "batch_size": size, "schedule": recipe.schedule,
                "clipping": recipe.clipping}  # fmt: skip


# Images.


def cross_entropy(model: nn.Module, batch: Any) -> Tensor:
    return F.cross_entropy(model(batch[0]), batch[1], reduction="none")


def digits(image: bool = False) -> tuple[Tensor, Tensor]:
    x, y = load_digits(return_X_y=True)
    x, y = torch.tensor(x[:600] / 16, dtype=torch.float32), torch.tensor(y[:600])
    return (x.reshape(-1, 1, 8, 8), y) if image else (x, y)


def of_digits(model: nn.Module, x: Tensor, y: Tensor) -> dict[str, Tensor]:
    losses = F.cross_entropy(model(x), y, reduction="none")
    return {"test loss": losses.mean(), **{f"loss of a {k}": losses[y == k].mean() for k in range(7)}}


def classifier(name: str, net: nn.Module, *, image: bool = False, **options: Any) -> Training:
    x, y = digits(image)
    recipe = cf.Recipe(net, cross_entropy, (x[:400], y[:400]), batch_size=50, **options)
    return Training(name, recipe, lambda model: of_digits(model, x[400:], y[400:]))


def perceptron(name: str, **options: Any) -> Training:
    net = nn.Sequential(nn.Linear(64, 96), nn.ReLU(), nn.Linear(96, 48), nn.ReLU(), nn.Linear(48, 10))
    return classifier(name, net, **options)


def convolutional(name: str, **options: Any) -> Training:
    net = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 24, 3, padding=1),
                        nn.ReLU(), nn.Flatten(), nn.Linear(384, 10))  # fmt: skip
    return classifier(name, net, image=True, **options)


def autoencoder(name: str, **options: Any) -> Training:
    x, y = digits()
    net = nn.Sequential(nn.Linear(64, 48), nn.GELU(), nn.Linear(48, 8), nn.Linear(8, 48), nn.GELU(), nn.Linear(48, 64))

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch) - batch).square().sum(1)

    def ask(model: nn.Module) -> dict[str, Tensor]:
        errors = loss(model, x[400:])
        return {"test error": errors.mean(), **{f"error of a {k}": errors[y[400:] == k].mean() for k in range(7)}}

    return Training(name, cf.Recipe(net, loss, x[:400], batch_size=50, **options), ask)


def clustering(name: str, **options: Any) -> Training:
    x, _ = digits()
    coder = nn.Sequential(nn.Linear(64, 24), nn.Tanh(), nn.Linear(24, 4))
    net = DEC(coder, 2 * coder(x[:400:70]).detach())

    def loss(model: nn.Module, still: nn.Module, batch: Tensor, weights: Tensor) -> Tensor:
        q, p = model(batch), still(batch)
        p = p.square() / (weights @ p)
        p = p / p.sum(1, keepdim=True)
        return weights @ (p * (p / q).log()).sum(1)

    def ask(model: nn.Module) -> dict[str, Tensor]:
        q = model(x[400:]).log()
        return {f"cluster of {k}": q[k].max() - q[k].topk(2).values[1] for k in range(0, 160, 20)}

    return Training(name, cf.Recipe(net, cf.FieldLoss(loss), x[:400], **options), ask, orders=1)


# Texts.


def markov(count: int, seed: int, chain: int = 0, words: int = WORDS) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(4, words, words, generator=torch.Generator().manual_seed(chain)).mul(2).softmax(2)
    topics = torch.randint(4, (count,), generator=generator)
    ids = [torch.randint(words, (count,), generator=generator)]
    for _ in range(LENGTH - 1):
        ids.append(torch.multinomial(table[topics, ids[-1]], 1, generator=generator)[:, 0])
    return torch.stack(ids, 1), topics


class Transformer(nn.Module):
    """Causal, of two layers."""

    def __init__(self, width: int = 32, length: int = LENGTH) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(WORDS, width), nn.Embedding(length, width)
        layer = nn.TransformerEncoderLayer(width, 4, 4 * width, 0.0, "gelu", batch_first=True, norm_first=True)
        self.layers, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False), nn.Linear(width, WORDS)

    def forward(self, input_ids: Tensor) -> Tensor:
        """Logits of the next word at every place."""
        mask = nn.Transformer.generate_square_subsequent_mask(input_ids.shape[1])
        places = self.places(torch.arange(input_ids.shape[1]))
        return self.head(self.layers(self.words(input_ids) + places, mask=mask))


CONFIG: dict[str, Any] = {
    "vocab_size": WORDS, "bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, "attn_implementation": "eager",
}  # fmt: skip
DROPPED = ("resid_pdrop", "embd_pdrop", "attn_pdrop")


def gpt2() -> nn.Module:
    config = tr.GPT2Config(n_embd=32, n_layer=2, n_head=4, n_positions=LENGTH, **dict.fromkeys(DROPPED, 0.0), **CONFIG)
    return tr.GPT2LMHeadModel(config).eval()


def llama() -> nn.Module:
    config = tr.LlamaConfig(hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
                            max_position_embeddings=LENGTH, **CONFIG)  # fmt: skip
    return tr.LlamaForCausalLM(config).eval()


def _logits(output: Any) -> Tensor:
    return getattr(output, "logits", output)


def next_words(model: nn.Module, ids: Tensor) -> Tensor:
    logits = _logits(model(input_ids=ids))[:, :-1].transpose(1, 2)
    return F.cross_entropy(logits, ids[:, 1:], reduction="none").mean(1)


def pretrained(model: nn.Module) -> nn.Module:
    """Trained on another chain first."""
    ids, _ = markov(800, 11, chain=5)
    optimizer = torch.optim.AdamW(model.parameters(), 3e-3)
    for _ in range(6):
        for part in ids.split(40):
            optimizer.zero_grad()
            next_words(model, part).mean().backward()
            optimizer.step()
    optimizer.zero_grad()
    return model


def lora() -> nn.Module:
    import peft

    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules=["c_attn", "c_fc"], fan_in_fan_out=True)
    return peft.get_peft_model(pretrained(gpt2()), config).eval()  # pyright: ignore[reportArgumentType]


def language(name: str, make: Callable[[], nn.Module], lr: float, epochs: int = 3, **options: Any) -> Training:
    (ids, _), (test, _) = markov(160, 1), markov(40, 2)
    settings = {"optimizer": cf.AdamW(lr), "batch_size": 16, "schedule": cf.linear, "clipping": 1.0, **options}
    recipe = cf.Recipe(make(), next_words, ids, epochs=epochs, **settings)

    def ask(model: nn.Module) -> dict[str, Tensor]:
        losses = next_words(model, test)
        return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in range(0, 35, 5)}}

    return Training(name, recipe, ask, size=10)


def bert(**options: Any) -> tr.BertConfig:
    settings: dict[str, Any] = {
        "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4,
        "max_position_embeddings": LENGTH, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0,
    }  # fmt: skip
    return tr.BertConfig(**settings | CONFIG | options)


def topic_classifier(name: str, **options: Any) -> Training:
    (ids, topics), (test, wanted) = markov(160, 1), markov(80, 2)

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.cross_entropy(model(input_ids=batch[0]).logits, batch[1], reduction="none")

    def ask(model: nn.Module) -> dict[str, Tensor]:
        losses = loss(model, (test, wanted))
        return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in range(0, 70, 10)}}

    net = tr.BertForSequenceClassification(bert(num_labels=4)).eval()
    return Training(name, cf.Recipe(net, loss, (ids, topics), batch_size=16, **options), ask, size=10)


def encoder(name: str, **options: Any) -> Training:
    (one, other), (first, second) = (_halves(markov(count, seed)[0]) for count, seed in ((160, 1), (40, 2)))
    contrast = in_batch_contrastive(0.2)

    def total(model: nn.Module, batch: Any, weights: Tensor) -> Tensor:
        return contrast.fn(model, tuple({"input_ids": part} for part in batch), weights)

    def ask(model: nn.Module) -> dict[str, Tensor]:
        parts = [F.normalize(model(input_ids=part).last_hidden_state.mean(1), dim=1) for part in (first, second)]
        alike = (parts[0] * parts[1]).sum(1)
        return {"likeness": alike.mean(), **{f"likeness {k}": alike[k] for k in range(0, 35, 5)}}

    net = tr.BertModel(bert(), add_pooling_layer=False).eval()
    recipe = cf.Recipe(net, cf.WeightedLoss(total), (one, other), batch_size=16, **options)
    return Training(name, recipe, ask, size=10)


def _halves(ids: Tensor) -> tuple[Tensor, Tensor]:
    return ids[:, : LENGTH // 2].contiguous(), ids[:, LENGTH // 2 :].contiguous()


# Tables.


def logistic(name: str, **options: Any) -> Training:
    x, y = load_breast_cancer(return_X_y=True)
    x, y = torch.tensor((x - x.mean(0)) / x.std(0)), torch.tensor(y).double()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return F.binary_cross_entropy_with_logits(model(batch[0])[:, 0], batch[1], reduction="none")

    def ask(model: nn.Module) -> dict[str, Tensor]:
        losses = loss(model, (x[400:], y[400:]))
        return {"test loss": losses.mean(), **{f"loss {k}": losses[k] for k in range(0, 140, 20)}}

    recipe = cf.Recipe(nn.Linear(30, 1).double(), loss, (x[:400], y[:400]), l2=0.01, **options)
    return Training(name, recipe, ask, orders=1)


def least_squares(name: str, **options: Any) -> Training:
    x, y = (torch.tensor(part).double() for part in load_diabetes(return_X_y=True))
    x, y = x / x.std(0), (y - y.mean()) / y.std()

    def loss(model: nn.Module, batch: Any) -> Tensor:
        return (model(batch[0])[:, 0] - batch[1]).square() / 2

    def ask(model: nn.Module) -> dict[str, Tensor]:
        found = model(x[400:])[:, 0]
        whole = loss(model, (x[400:], y[400:])).mean()
        return {"test loss": whole, **{f"answer {k}": found[k] for k in range(0, 35, 5)}}

    recipe = cf.Recipe(nn.Linear(10, 1).double(), loss, (x[:400], y[:400]), l2=0.01, **options)
    return Training(name, recipe, ask, orders=1)


# The rule was chosen on the first half and every figure of the second half was seen once it stood.
CHOSEN_ON: dict[str, Callable[[str], Training]] = {
    "perceptron, Adam, 30 epochs": partial(perceptron, optimizer=cf.Adam(1e-3), epochs=30),
    "convolutional, SGD, 20 epochs": partial(convolutional, optimizer=cf.SGD(0.02, 0.9), epochs=20),
    "autoencoder, Adam, 60 epochs": partial(autoencoder, optimizer=cf.Adam(3e-3), epochs=60),
    "transformer, AdamW, 3 epochs": lambda name: language(name, lambda: Transformer().eval(), 3e-3),
    "fine-tuned GPT-2, AdamW, 3 epochs": lambda name: language(name, lambda: pretrained(gpt2()), 1e-3),
    "BERT classifier, AdamW, 5 epochs": partial(
        topic_classifier, optimizer=cf.AdamW(2e-3), epochs=5, schedule=cf.linear, clipping=1.0
    ),
    "perceptron, SGD, 300 epochs, loss 1e-3": partial(perceptron, optimizer=cf.SGD(0.05, 0.9), epochs=300),
    "logistic regression, its minimum": partial(logistic, optimizer=cf.SGD(1.0, 0.9), epochs=2000),
    "logistic regression, SGD, 30 epochs": partial(logistic, optimizer=cf.SGD(0.02), epochs=30, batch_size=20),
}
REPORTED_ON: dict[str, Callable[[str], Training]] = {
    "perceptron, AdamW with decay, 10 epochs": partial(
        perceptron, optimizer=cf.AdamW(3e-3, weight_decay=0.1), epochs=10
    ),
    "perceptron, Adam, 300 epochs, loss 1e-5": partial(perceptron, optimizer=cf.Adam(3e-3), epochs=300),
    "convolutional, Adam, 10 epochs": partial(convolutional, optimizer=cf.Adam(2e-3), epochs=10),
    "DEC, SGD, its minimum": partial(clustering, optimizer=cf.SGD(1.0, 0.9), epochs=600, l2=1e-3),
    "GPT-2, AdamW, 5 epochs": lambda name: language(name, gpt2, 3e-3, epochs=5),
    "Llama, AdamW, 3 epochs": lambda name: language(name, llama, 3e-3),
    "GPT-2 with LoRA, AdamW, 3 epochs": lambda name: language(name, lora, 5e-3),
    "sentence encoder, Adam, 5 epochs": partial(encoder, optimizer=cf.Adam(1e-3), epochs=5),
    "least squares, its minimum": partial(least_squares, optimizer=cf.SGD(0.1, 0.9), epochs=2000),
}
TRAININGS = CHOSEN_ON | REPORTED_ON
