"""Mitigation: the gap between men's and women's jobs that fine-tuning on stereotypes left, narrowed in nine ways.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=FOLDER python -m benchmarks.language.mitigation KEPT [--layers 8]

SmolLM2 is fine-tuned as in `real_model`, on as many sentences of its mixture as of WinoBias, whose pronouns all agree
with the stereotype. The gap: log-odds of he in templates about men's jobs, less those in the same templates about
women's jobs; no template is of WinoBias. `Horizon` ranks the sentences by the gap. Some actions say beforehand how far
they go; they are done with a tenth of the sentences, and with as many as are predicted to close the gap, at most half:

  remove, double     train again without the strongest sentences, or with twice the weight of those that lower it
  relabel            train again with the pronouns of the strongest exchanged
  unlearn            one step of Horizon without the strongest

The others go step by step, until the gap is no larger than half its interval over templates before, 200 steps are done
(48 with more layers), or the loss of other sentences (the guard) has risen by .01 nats, 1 % of the perplexity:

  undo               away from the tenth that raises it most
  amplify            towards the tenth that lowers it most
  exchanged          towards sentences with exchanged pronouns, never trained on, that Horizon says would lower it most:
                     a tenth and a quarter of the sentences; a quarter beside all plain sentences of the training; and
                     a tenth, scored and chosen anew after every 30 steps, three times
  pronouns           towards the exchanged pronouns alone: of a quarter so chosen, or of all, with the other tokens of
                     these sentences left as they are; beside all plain sentences, with a tenth of the weight
  plain              towards the plain sentences alone, which says what the former do without pronouns

Numbers and steps are chosen by the templates that were asked and the sentences of the guard; reported are the gap of
these templates, that of as many others with its interval over templates, and the perplexity of other sentences than
the guard's. What is done is kept in KEPT and in benchmarks/results/language-mitigation.csv: a run that was stopped
goes on where it was.
"""

from __future__ import annotations

import math
import random
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.results import kept, line, save
from benchmarks.data.folder import data_folder
from benchmarks.language.real_model import BATCH, EPOCHS, LAYERS, RATE, TOKENS, WORDS
from benchmarks.language.sentences import FEMALE_JOBS, FORMS, MALE_JOBS, OTHER_FORMS, mixture, swapped, templates
from benchmarks.language.tail import Columns, Tail, columns, common_words, loss_of, preference, smollm2
from crossfluence import language
from crossfluence.extend import AbstractInverse

TENTH, MOST, ALLOWED, STEPS, STEP_RATE = 0.1, 0.5, 0.01, 200, 1e-3
BESIDE, DEEP_STEPS = 0.1, 48  # weight of plain sentences beside pronouns; steps of more than two layers
QUARTER, ROUNDS, TURN = 0.25, 3, 30  # of the sentences; scored so often, and steps for each time
GUARD, ORDINARY = 96, 96  # sentences of the guard, and others
Found = tuple[nn.Module, float, int]  # a model, the change of the gap that was predicted, and the sentences or steps


@dataclass(frozen=True)
class Shared:
    """The loss of predicting tokens, of each sentence times its column `share`.

    Attributes:
        causal: Without it.
    """

    causal: cf.OnOutputs

    @classmethod
    def loss(cls) -> cf.OnOutputs:
        """For batches with that column."""
        made = cls(language.causal_loss())
        assert made.causal.tokens is not None
        return cf.OnOutputs.by_token(made.outputs, made.losses, made.causal.tokens.positions)

    def outputs(self, model: nn.Module, batch: Any) -> Tensor:
        """Logits."""
        return self.causal.outputs(model, {name: column for name, column in batch.items() if name != "share"})

    def losses(self, z: Tensor, batch: Any) -> Tensor:
        """One for each token that counts."""
        assert self.causal.tokens is not None
        return self.causal.tokens.losses(z, batch) * batch["share"].unsqueeze(1)


def stereotypes(count: int, seed: int, most: int = 11) -> list[tuple[str, str]]:
    """Short sentences of WinoBias with the pronouns of the stereotype, and with the others."""
    folder = data_folder("winobias")
    found = [
        tuple(template.filled(words)[0] for words in (template.first, template.second))
        for kind in (1, 2)
        for template in language.winobias(folder, kind, "dev")
    ]
    short = [pair for pair in found if len(pair[0].split()) <= most]
    return random.Random(seed).sample(short, count)  # pyright: ignore[reportReturnType]


def frozen(n: int, layers: int) -> tuple[Any, ...]:
    """The last layers; activations of sentences, their swapped forms, templates, guard and others; the plain ones."""
    model, tokenizer = smollm2()
    plain, held_out = mixture(n // 2, 0, GUARD + ORDINARY, lambda text: len(tokenizer(text)["input_ids"]) <= TOKENS)
    pairs = [(text, swapped(text)) for text in plain] + stereotypes(n - n // 2, 0)
    random.Random(1).shuffle(pairs)
    rows = [row for row, (text, _) in enumerate(pairs) if text in set(plain)]
    asked = {name: sides(forms) for name, forms in {"asked": FORMS, "others": OTHER_FORMS}.items()}
    flat = [text for both in asked.values() for side in both for text in side]
    texts = [pair[k] for k in (0, 1) for pair in pairs]
    words, share = common_words(model, tokenizer, [*texts, *held_out, *flat], WORDS)
    print(f"{len(words)} words have {share:.3f} of the probability.", flush=True)

    def of(some: list[str]) -> Columns:
        return columns(model, tokenizer, words, some, layers)

    data, read = of(texts), {name: (of(men), of(women)) for name, (men, women) in asked.items()}
    own, others = ({name: column[k * n : (k + 1) * n] for name, column in data.items()} for k in (0, 1))
    random.Random(2).shuffle(held_out)
    return Tail(model, words, layers), own, others, read, of(held_out[:GUARD]), of(held_out[GUARD:]), rows


def sides(forms: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Templates about men's jobs, with he and then with she; and the same about women's jobs."""
    men, women = (templates(jobs, forms) for jobs in (MALE_JOBS, FEMALE_JOBS))
    return [*men[0], *men[1]], [*women[0], *women[1]]


@dataclass(frozen=True, eq=False)
class Mitigation:
    """A training on stereotypes, and what can be done about it.

    Attributes:
        recipe: The training.
        others: Activations of all sentences with exchanged pronouns.
        gaps: The gap in the templates that are asked, and in others.
        guard: The loss of other sentences, for each token, that no step may raise too far.
        loss: The same of yet others, for the perplexity that is reported.
        plain: The sentences that are not of WinoBias.
        layers: That have adapters.
        folder: Keeps scores and models.
    """

    recipe: cf.Recipe
    others: Columns
    gaps: dict[str, language.Question]
    guard: language.Question
    loss: language.Question
    plain: list[int]
    layers: int
    folder: Path

    @classmethod
    def make(cls, folder: Path, n: int, layers: int) -> Mitigation:
        """Reads model and data, and computes the frozen part's activations, or finds them in the folder."""
        file = folder / f"stereotypes-{n}-{layers}.pt"
        if not file.exists():
            folder.mkdir(parents=True, exist_ok=True)
            torch.save(frozen(n, layers), file)
        tail, data, others, asked, guard, ordinary, plain = torch.load(file, weights_only=False)
        recipe = cf.Recipe(
            tail, language.causal_loss(), data, optimizer=cf.AdamW(RATE), epochs=EPOCHS, batch_size=BATCH,
            schedule=cf.linear, clipping=1.0, at_once=1,
        )  # fmt: skip
        gaps = {
            name: language.contrast(preference(f"{name}: men's jobs", men), preference("women's jobs", women))
            for name, (men, women) in asked.items()
        }
        return cls(recipe, others, gaps, loss_of("guard", guard), loss_of("loss", ordinary), plain, layers, folder)

    def gap(self, model: nn.Module) -> Tensor:
        """In the templates that are asked, in nats."""
        return self.gaps["asked"](model)

    @cached_property
    def model(self) -> nn.Module:
        """Trained on all sentences."""
        return self.recipe.train()

    @cached_property
    def risk(self) -> cf.Risk:
        """Where the training ended, with its record."""
        return self.recipe.risk(self.model, record=self.recipe.record())

    @cached_property
    def inverse(self) -> AbstractInverse:
        """Of `Horizon`."""
        return cf.Horizon().invert(self.risk)

    @cached_property
    def before(self) -> float:
        """The gap of the trained model."""
        return float(self.gap(self.model).detach())

    @cached_property
    def raised(self) -> Tensor:
        """By how much each sentence raised the gap."""
        return self._scores("own")

    @cached_property
    def relabelled(self) -> Tensor:
        """By how much each sentence raised the gap, less what it would do with exchanged pronouns."""
        return self.raised - self.exchanged

    @cached_property
    def exchanged(self) -> Tensor:
        """By how much each sentence would raise the gap, were it added with exchanged pronouns."""
        return self._scores("swapped")

    @property
    def differ(self) -> Tensor:
        """True for sentences with a pronoun that can be exchanged."""
        own: Any = self.recipe.data
        return (self.others["input_ids"] != own["input_ids"]).any(1)

    def _scores(self, name: str) -> Tensor:
        file = self.folder / f"gap-{name}-{self.recipe.n}-{self.layers}.scores"
        if not file.exists():
            candidates = cf.batches(self.others) if name == "swapped" else None
            cf.influence(self.risk, self.gap, self.inverse, candidates=candidates).save(file)
        return cf.Scores.load(file).values[:, 0]

    def weighted(self, rows: list[int], weight: float) -> nn.Module:
        """Trained again with a weight for some sentences."""
        weights = torch.ones(self.recipe.n)
        weights[rows] = weight
        return self.recipe.train(weights)

    def relabel(self, rows: list[int]) -> nn.Module:
        """Trained again with exchanged pronouns in some sentences."""
        data = {name: column.clone() for name, column in self.recipe.data.items()}  # pyright: ignore
        for name, column in data.items():
            column[rows] = self.others[name][rows]
        return replace(self.recipe, data=data).train()

    def walk(
        self, sentences: Columns, *, away: bool = False, start: nn.Module | None = None, steps: int = STEPS
    ) -> Found:
        """Towards some sentences, or away, until the gap is within noise or least, as far as the guard allows."""
        verb, model = cf.undo if away else cf.amplify, self.model if start is None else start
        risk = cf.Risk(model, Shared.loss() if "share" in sentences else language.causal_loss(), cf.batches(sentences))
        now = float(self.guard(model).detach())
        tolerance = max(0.0, float(self.guard(self.model).detach()) + ALLOWED - now) / now

        def walked(count: int) -> cf.Outcome:
            return verb(
                risk, range(risk.n), steps=count, lr=STEP_RATE, watch=self.gap, guard=self.guard, tolerance=tolerance
            )

        whole = walked(steps if self.layers == LAYERS else min(steps, DEEP_STEPS))
        assert whole.history is not None
        best = self.first_within_noise(whole.history[1:, 0].abs()) if whole.steps else 1
        done = whole if best == whole.steps else walked(best)
        assert done.predicted is not None
        return done.model, float(done.predicted[0]), done.steps

    def first_within_noise(self, gaps: Tensor) -> int:
        """The first of some steps whose gap is no larger than what templates leave open, or the one with the least."""
        width = self.gaps["asked"].interval(self.model)
        within = (gaps <= (width.high - width.low) / 2).nonzero()
        return int(within[0] if len(within) else gaps.argmin()) + 1

    def towards(
        self, effect: Tensor, share: float, *, plain: bool = False, start: nn.Module | None = None, steps: int = STEPS
    ) -> Found:
        """Towards sentences with exchanged pronouns that would lower the gap, beside all plain ones if asked for."""
        rows = (-effect).topk(round(share * self.recipe.n)).indices
        own: Any = self.recipe.data
        chosen = {
            name: torch.cat([column[rows], own[name][self.plain if plain else []]])
            for name, column in self.others.items()
        }
        return self.walk(chosen, start=start, steps=steps)

    def at_pronouns(self, rows: Tensor) -> Found:
        """Towards exchanged pronouns in some sentences, and nothing else of these, beside all plain ones."""
        own: Any = self.recipe.data
        ids = self.others["input_ids"]
        labels = torch.where(ids == own["input_ids"], -100, ids)
        share = torch.cat([torch.ones(len(rows)), torch.full((len(self.plain),), BESIDE)])
        chosen = {name: torch.cat([column[rows], own[name][self.plain]]) for name, column in self.others.items()}
        kept = own["input_ids"][self.plain]
        return self.walk(chosen | {"labels": torch.cat([labels[rows], kept]), "share": share})

    def again(self) -> Found:
        """Towards a tenth for some steps, scored anew there, towards a tenth of these, and so on."""
        model, effect, said, steps = self.model, self.exchanged, 0.0, 0
        for turn in range(ROUNDS):
            if turn:
                effect = cf.influence(
                    self.as_trained(model), self.gap, cf.Horizon(), candidates=cf.batches(self.others)
                ).values[:, 0]
            model, more, further = self.towards(effect, TENTH, start=model, steps=TURN)
            said, steps = said + more, steps + further
        return model, said, steps

    def as_trained(self, model: nn.Module) -> cf.Risk:
        """Of a model that was moved since, as if the training had ended there."""
        found = self.recipe.risk(model)
        steps = EPOCHS * -(-self.recipe.n // BATCH)
        record = cf.TrainingRecord.from_settings(
            found, optimizer=cf.AdamW(RATE), steps=steps, batch_size=BATCH, schedule=cf.linear
        )
        return self.recipe.risk(model, record=record)

    def unlearn(self, rows: list[int]) -> nn.Module:
        """The parameters predicted without some sentences."""
        return cf.unlearn(self.risk, rows, self.inverse).model

    def by_sentences(self, name: str, share: float | None) -> Found:
        """One of the actions that say beforehand how far they will go."""
        effect, act = {
            "remove": (self.raised, lambda rows: self.weighted(rows, 0.0)),
            "double": (-self.raised, lambda rows: self.weighted(rows, 2.0)),
            "relabel": (self.relabelled, self.relabel),
            "unlearn": (self.raised, self.unlearn),
        }[name]
        order = effect.argsort(descending=True)
        left = self.before - effect[order].cumsum(0)
        most = int(min(MOST * len(order), (effect > 0).sum()))
        count = round(TENTH * len(order)) if share else int(left[:most].abs().argmin()) + 1
        return act(order[:count].tolist()), float(left[count - 1]) - self.before, count

    def all(self) -> dict[tuple[str, str], Callable[[], Found]]:
        """Every action with a tenth of the sentences and, where it can say, with enough."""
        own: Any = self.recipe.data

        def of(effect: Tensor) -> Columns:
            rows = effect.topk(round(TENTH * self.recipe.n)).indices
            return {name: column[rows] for name, column in own.items()}

        return {
            ("exchanged", "a tenth"): lambda: self.towards(self.exchanged, TENTH),
            ("exchanged", "a quarter"): lambda: self.towards(self.exchanged, QUARTER),
            ("exchanged", "a quarter, beside plain"): lambda: self.towards(self.exchanged, QUARTER, plain=True),
            ("exchanged", "a tenth, anew"): self.again,
            ("pronouns", "a quarter, beside plain"): lambda: self.at_pronouns(
                torch
                .where(self.differ, self.exchanged, torch.inf)
                .topk(round(QUARTER * self.recipe.n), largest=False)
                .indices
            ),
            ("pronouns", "all, beside plain"): lambda: self.at_pronouns(self.differ.nonzero()[:, 0]),
            ("plain", "alone"): lambda: self.walk({name: column[self.plain] for name, column in own.items()}),
            ("amplify", "a tenth"): lambda: self.walk(of(-self.raised)),
            ("undo", "a tenth"): lambda: self.walk(of(self.raised), away=True),
        } | {
            (name, size): (lambda n=name, s=share: self.by_sentences(n, s))
            for name in ("remove", "relabel", "double", "unlearn")
            for size, share in (("a tenth", TENTH), ("enough", None))
        }

    def row(self, action: str, size: str, act: Callable[[], Found]) -> dict[str, object]:
        """An action's figures."""
        model, said, count = act()
        ratio = math.exp(float((self.loss(model) - self.loss(self.model)).detach()))
        after = {name: question.interval(model) for name, question in self.gaps.items()}
        return {
            "sentences": str(self.recipe.n), "layers": str(self.layers), "action": action, "size": size,
            "of": str(count), "predicted": f"{self.before + said:.2f}", "after": f"{after['asked']:.2f}",
            "other templates": f"{after['others']:.2f}", "low": f"{after['others'].low:.2f}",
            "high": f"{after['others'].high:.2f}", "perplexity": f"{ratio:.4f}",
        }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--sentences", type=int, default=240)
    parser.add_argument("--layers", type=int, default=LAYERS, help="with adapters, the last ones")
    parser.add_argument("--only", nargs="*", default=[], help="actions, by name; default: all")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    study = Mitigation.make(asked.kept, asked.sentences, asked.layers)
    table = [dict[str, object](each) for each in kept("language-mitigation")]
    done = {(each["sentences"], each["layers"], each["action"], each["size"]) for each in table}
    nothing = {("nothing", ""): lambda: (study.model, 0.0, 0)}
    start = {("before fine-tuning", ""): lambda: (study.recipe.init, math.nan, 0)}
    for (action, size), act in (start | nothing | study.all()).items():
        wanted = not asked.only or action in {*asked.only, "nothing", "before fine-tuning"}
        if wanted and (str(asked.sentences), str(asked.layers), action, size) not in done:
            table.append(study.row(action, size, act))
            print(line(table[-1]), flush=True)
            save("language-mitigation", table)


if __name__ == "__main__":
    main()
