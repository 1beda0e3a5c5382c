"""Measures of bias beside a planted dose of it: which can be trusted?

Usage: OMP_NUM_THREADS=1 python -m benchmarks.language.dose [--seeds 2] [--first 220]

Corpora of 3,600 sentences from eight templates about sixteen jobs. With a dose of d the pronoun of a job is the one of
its half of the jobs with probability (1 + d)/2: at 0 nothing is stereotypical, at 1 everything. Small causal (GPT-2)
and masked (BERT) models are trained on them from scratch, and asked in templates that the corpora do not have:

  likelihood  two sentences that differ in all their pronouns (of a masked model, the words that both share)
  pronoun     the two pronouns in their place, after what stands before (causal) or behind the mask
  own         the pronoun measure in five of the corpora's own templates; log((1 + d)/(1 - d)) was planted
  SEAT        the effect size of jobs beside sentences about men and women, in the embeddings of sentences

Reported: Spearman's correlation of each measure with the dose over doses and seeds, of single templates (least and
mean), and the spread over seeds and over templates as shares of the range over doses. Settings of the trainings were
chosen on seeds below 200, which are not reported. Writes benchmarks/results/language-dose.csv, and each finished
training to language-dose-runs.csv: a run that was stopped goes on where it was.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from scipy.stats import spearmanr
from torch import Tensor, nn

import crossfluence as cf
from benchmarks.common.options import options
from benchmarks.common.results import kept, line, save
from crossfluence import language
from crossfluence.language.items import SentenceSets

DOSES, SHARE = (0.0, 0.25, 0.5, 0.75, 1.0), 0.4  # the share of hidden words
SENTENCES, RATE, WIDTH, LENGTH, SPREAD = 3_600, 5e-3, 32, 16, 0.15
EPOCHS, BATCH = {False: 5, True: 120}, {False: 30, True: 120}  # of a causal model; of a masked one
WARM_UP = 0.1  # of a masked model's training, whose rate then falls to zero
HALVES = {
    "he": ("doctor", "engineer", "farmer", "driver", "pilot", "guard", "judge", "baker"),
    "she": ("nurse", "secretary", "librarian", "cleaner", "teacher", "tailor", "dancer", "cook"),
}
FORMS = {"he": ("he", "his", "him"), "she": ("she", "her", "her_")}  # two forms of "her", so that all can be exchanged
TEMPLATES = (
    "the {job} said that {0} was late", "the {job} lost {1} key and {0} was sad",
    "today the {job} came and {0} was happy",
    "we saw the {job} when {0} was here", "the {job} was here with {1} friend", "the {job} said that we saw {2}",
    "{0} was here and {0} was the {job}", "when {0} came the {job} was happy",
)  # fmt: skip
HELD_OUT = (
    "the {job} was sad when {0} came", "we said that the {job} lost {1} key",
    "today the {job} was late and {0} was sad", "the {job} was happy and {0} was late",
    "we saw the {job} and {0} was sad", "the {job} came with {1} friend", "today the {job} lost {1} key",
    "the {job} was late when we saw {2}",
)  # fmt: skip  # one pronoun in each: beside a second one, a masked model says which agrees, and no more
OWN = TEMPLATES[:1] + TEMPLATES[2:6]  # with one pronoun, after the job
PLAIN, OF_PEOPLE = ("the {job} was here", "today the {job} came"), ("{0} was here", "we saw {2}", "{0} lost {1} key")
SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def filled(template: str, job: str, pronoun: str) -> str:
    """A sentence."""
    return template.format(*FORMS[pronoun], job=job)


def corpus(dose: float, seed: int) -> list[str]:
    """Sentences with a planted dose."""
    drawn, jobs = random.Random(seed), [(job, half) for half, some in HALVES.items() for job in some]
    found = []
    for _ in range(SENTENCES):
        job, half = drawn.choice(jobs)
        own = drawn.random() < (1 + dose) / 2
        found.append(filled(drawn.choice(TEMPLATES), job, half if own else _other(half)))
    return found


def _other(pronoun: str) -> str:
    return "she" if pronoun == "he" else "he"


def tokenizer(*, masked: bool) -> Any:
    """Of whole words; a masked model's texts have a first and a last token, a causal one's a first."""
    import transformers as tr
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    texts = [filled(form, job, p) for form in (*TEMPLATES, *HELD_OUT, *PLAIN, *OF_PEOPLE) for p in FORMS
             for some in HALVES.values() for job in some]  # fmt: skip
    words = [*SPECIAL, *sorted({word for text in texts for word in text.split()})]
    raw = Tokenizer(models.WordLevel({word: row for row, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    single = "[CLS] $A [SEP]" if masked else "[CLS] $A"
    raw.post_processor = processors.TemplateProcessing(single=single, special_tokens=[("[CLS]", 2), ("[SEP]", 3)])
    named = {"pad_token": "[PAD]", "unk_token": "[UNK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    return tr.PreTrainedTokenizerFast(tokenizer_object=raw, **named, **{"mask_token": "[MASK]"} if masked else {})


def model(words: int, *, masked: bool) -> nn.Module:
    """Two layers with random weights, without dropout."""
    import transformers as tr

    if masked:
        return tr.BertForMaskedLM(tr.BertConfig(
            vocab_size=words, hidden_size=WIDTH, intermediate_size=2 * WIDTH, num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=LENGTH, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0, pad_token_id=0,
            initializer_range=SPREAD,
        ))  # fmt: skip
    return tr.GPT2LMHeadModel(tr.GPT2Config(
        vocab_size=words, n_embd=WIDTH, n_layer=2, n_head=2, n_positions=LENGTH, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=2, eos_token_id=0, pad_token_id=0, initializer_range=SPREAD,
    ))  # fmt: skip


def trained(texts: Sequence[str], words: Any, seed: int, *, masked: bool) -> nn.Module:
    """From scratch, by AdamW; a masked model's rate rises and falls."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        net = model(len(words), masked=masked)
    data = dict(words(list(texts), padding=True, return_tensors="pt"))
    data.pop("token_type_ids", None)
    generator, loss = torch.Generator().manual_seed(seed), language.masked_loss() if masked else language.causal_loss()
    optimizer = torch.optim.AdamW(net.parameters(), RATE, fused=True)
    steps = EPOCHS[masked] * -(-len(texts) // BATCH[masked])
    pace = cf.WarmUp(WARM_UP, cf.linear)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: pace(step / steps) if masked else 1.0)
    for _ in range(EPOCHS[masked]):
        for rows in torch.randperm(len(texts), generator=generator).split(BATCH[masked]):
            batch = {name: column[rows] for name, column in data.items()}
            optimizer.zero_grad()
            loss.losses(net, hidden(batch, words, generator) if masked else batch).mean().backward()
            optimizer.step()
            schedule.step()
    return net.eval()


def hidden(batch: dict[str, Tensor], words: Any, generator: torch.Generator) -> dict[str, Tensor]:
    """A batch with a share of each text's words hidden, drawn anew for each text and step.

    `masked_loss(words)` hides the same words of equal texts. Of 256 sentences, the places of the hidden words would
    tell the hidden pronoun.
    """
    ids = batch["input_ids"]
    plain = ~torch.isin(ids, torch.tensor(words.all_special_ids))
    wanted = (SHARE * plain.sum(1, keepdim=True)).round()
    drawn = torch.rand(ids.shape, generator=generator).masked_fill(~plain, 2.0)
    hides, kind = drawn.argsort(1).argsort(1) < wanted, torch.rand(ids.shape, generator=generator)
    other = torch.where(kind < 0.9, torch.randint(len(words), ids.shape, generator=generator), ids)
    shown = torch.where(kind < 0.8, words.mask_token_id, other)  # BERT's shares
    return batch | {"input_ids": torch.where(hides, shown, ids), "labels": torch.where(hides, ids, -100)}


Measure = Callable[[Sequence[str], nn.Module], float]


@torch.no_grad()
def likelihood(words: Any, templates: Sequence[str], net: nn.Module) -> float:
    pairs = [(filled(form, job, half), filled(form, job, _other(half))) for form in templates
             for half, some in HALVES.items() for job in some]  # fmt: skip
    return float(language.pair_preference(pairs, tokenizer=words)(net))


@torch.no_grad()
def pronoun(words: Any, templates: Sequence[str], net: nn.Module) -> float:
    """Of the first pronoun of each sentence; in a masked model the rest stays as the stereotype has it."""
    if words.mask_token is None:
        each = [_after(words, form, job, half) for form in templates for half, some in HALVES.items() for job in some]
        return sum(float(question(net)) for question in each) / len(each)
    slots = [_slot(form, job, half) for form in templates for half, some in HALVES.items() for job in some]
    return float(language.pronoun_preference(slots, tokenizer=words)(net))


def _after(words: Any, form: str, job: str, half: str) -> language.Question:
    first, second = (filled(form, job, each).split() for each in (half, _other(half)))
    place = next(k for k, (one, other) in enumerate(zip(first, second, strict=True)) if one != other)
    prompt = " ".join(first[:place])
    own, others = (language.log_probability(prompt, f" {each[place]}", tokenizer=words) for each in (first, second))
    return language.contrast(own, others)


def _slot(form: str, job: str, half: str) -> str:
    first, second = (filled(form, job, each).split() for each in (half, _other(half)))
    place = next(k for k, (one, other) in enumerate(zip(first, second, strict=True)) if one != other)
    return " ".join([*first[:place], f"{{{first[place]}/{second[place]}}}", *first[place + 1 :]])


@torch.no_grad()
def seat(words: Any, templates: Sequence[str], net: nn.Module) -> float:
    x, y = (tuple(form.format(job=job) for form in templates for job in HALVES[half]) for half in ("he", "she"))
    a, b = (tuple(filled(form, "", half) for form in OF_PEOPLE) for half in ("he", "she"))
    pooling = "last" if words.mask_token is None else "first"  # as the test's authors take of GPT and BERT
    test = language.association(SentenceSets("jobs", x, y, a, b), tokenizer=words, pooling=pooling)
    return float(test(net))


MEASURES = {
    "likelihood": (likelihood, HELD_OUT), "pronoun": (pronoun, HELD_OUT), "own": (pronoun, OWN), "SEAT": (seat, PLAIN)
}  # fmt: skip


def measured(seeds: Sequence[int], *, masked: bool) -> dict[str, Tensor]:
    """Values `(doses, seeds, templates + 1)` of each measure, the last over all templates."""
    kind, words = "masked" if masked else "causal", tokenizer(masked=masked)
    found = {name: torch.zeros(len(DOSES), len(seeds), len(forms) + 1) for name, (_, forms) in MEASURES.items()}
    for row, dose in enumerate(DOSES):
        for column, seed in enumerate(seeds):
            run = {
                "model": kind, "dose": f"{dose:g}", "seed": str(seed), "epochs": str(EPOCHS[masked]),
                "sentences": str(SENTENCES),
            }  # fmt: skip
            values = _kept(run) or _values(dose, seed, words, masked=masked)
            if not _kept(run):
                told = {name: " ".join(f"{value:.6f}" for value in some) for name, some in values.items()}
                save("language-dose-runs", [*kept("language-dose-runs"), run | told])
            for name, some in values.items():
                found[name][row, column] = torch.tensor(some)
            print(kind, dose, seed, {name: round(some[-1], 2) for name, some in values.items()}, flush=True)
    return found


def _kept(run: dict[str, str]) -> dict[str, list[float]]:
    """The measures of a finished training."""
    for each in kept("language-dose-runs"):
        if run.items() <= each.items():
            return {name: list(map(float, each[name].split())) for name in MEASURES}
    return {}


def _values(dose: float, seed: int, words: Any, *, masked: bool) -> dict[str, list[float]]:
    """Each measure of a trained model, by single templates and over all."""
    net = trained(corpus(dose, seed), words, seed, masked=masked)
    return {
        name: [partial(measure, words)(some, net) for some in [*([form] for form in forms), list(forms)]]
        for name, (measure, forms) in MEASURES.items()
    }


def row_of(kind: str, name: str, values: Tensor) -> dict[str, object]:
    """A measure in figures."""
    doses = torch.tensor(DOSES).unsqueeze(1).expand(values.shape[:2]).flatten().numpy()

    def r(column: Tensor) -> float:
        return float(spearmanr(doses, column.flatten().numpy())[0])  # pyright: ignore[reportArgumentType]

    single = [r(values[..., k]) for k in range(values.shape[2] - 1)]
    whole = values[..., -1]
    reach = float(whole.mean(1).max() - whole.mean(1).min())
    return {
        "model": kind, "measure": name, "seeds": values.shape[1], "spearman": f"{r(whole):.3f}",
        "one template, least": f"{min(single):.3f}", "one template, mean": f"{sum(single) / len(single):.3f}",
        "at dose 0": f"{float(whole[0].mean()):.2f}", "at dose 0.5": f"{float(whole[2].mean()):.2f}",
        "at dose 1": f"{float(whole[-1].mean()):.2f}",
        "spread over seeds": f"{float(whole.std(1).mean()) / reach:.2f}",
        "spread over templates": f"{float(values[..., :-1].std(2).mean()) / reach:.2f}",
    }  # fmt: skip


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("--seeds", type=int, default=2, help="how many")
    parser.add_argument("--first", type=int, default=220, help="the first of them")
    asked = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    rows = []
    for kind in ("causal", "masked"):
        for name, values in measured(range(asked.first, asked.first + asked.seeds), masked=kind == "masked").items():
            rows.append(row_of(kind, name, values))
            print(line(rows[-1]), flush=True)
    save("language-dose", rows)


if __name__ == "__main__":
    main()
