"""Losses of language models: those that transformers computes, whatever the padding and the batches."""

import datasets
import pytest
import torch
import transformers as tr
from language_models import (
    bert,
    bert_classifier,
    bert_encoder,
    bert_tagger,
    gpt2,
    llama,
    lora,
    shaken,
    t5,
    texts,
    tokenizer,
    vit,
)  # fmt: skip
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

import crossfluence as cf
from crossfluence import language

pytestmark = [
    pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning"),
    pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning"),  # within peft
]
TEXTS = texts()
UNLABELLED = TEXTS | {"labels": torch.full_like(TEXTS["input_ids"], -100)}


def rows(batch, chosen):
    return {name: column[chosen] for name, column in batch.items()}


def padded(batch, left=0, right=0):
    return {name: F.pad(column, (left, right), value=-100 if name == "labels" else 0) for name, column in batch.items()}


def with_labels(batch):
    return batch | {"labels": torch.where(batch["attention_mask"] > 0, batch["input_ids"], -100)}


def answers():
    words = texts(seed=3, longest=4)
    return TEXTS | {"labels": torch.where(words["attention_mask"] > 0, words["input_ids"], -100)}


def tags():
    drawn = torch.randint(3, TEXTS["input_ids"].shape, generator=torch.Generator().manual_seed(5))
    return TEXTS | {"labels": torch.where(TEXTS["attention_mask"] > 0, drawn, -100)}


MASKED = language.masked_loss(tokenizer(masked=True), 0.4)
CASES = {
    "gpt2": (gpt2, language.causal_loss(), TEXTS),
    "llama": (llama, language.causal_loss(), with_labels(TEXTS)),
    "mean": (llama, language.causal_loss(mean=True), TEXTS),
    "lora": (lora, language.causal_loss(), TEXTS),
    "bert": (bert, MASKED, TEXTS),
    "tagger": (bert_tagger, language.classification_loss(), tags()),
    "t5": (t5, language.causal_loss(seq2seq=True), answers()),
}
cases = pytest.mark.parametrize(("make", "loss", "batch"), CASES.values(), ids=CASES)


@pytest.mark.parametrize("make", [gpt2, llama, lora], ids=lambda make: make.__name__)
def test_the_causal_loss_is_that_of_transformers(make):
    model, batch = make(), with_labels(TEXTS)
    for row in range(4):
        one = rows(batch, slice(row, row + 1))
        mine = language.causal_loss(mean=True).losses(model, one)
        wanted = model(**one).loss.double()  # of logits in single precision
        torch.testing.assert_close(mine[0], wanted, rtol=1e-5, atol=0)


def test_the_loss_of_an_encoder_decoder_is_that_of_transformers():
    model, batch = t5(), answers()
    for row in range(4):
        one = rows(batch, slice(row, row + 1))
        mine = language.causal_loss(mean=True, seq2seq=True).losses(model, one)
        torch.testing.assert_close(mine[0], model(**one).loss)


def test_the_losses_of_classifiers_are_those_of_transformers():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(3, (12,), generator=generator)
    images = {"pixel_values": torch.randn(12, 1, 4, 4, generator=generator, dtype=torch.float64), "labels": labels}
    several = torch.randint(2, (12, 3), generator=generator).double()
    for model, batch, scale in (
        (bert_classifier(), TEXTS | {"labels": labels}, 1),
        (vit(), images, 1),
        (bert_classifier(problem_type="multi_label_classification"), TEXTS | {"labels": several}, 3),
        (bert_classifier(num_labels=1), TEXTS | {"labels": several[:, 0]}, 1),
    ):
        mine = language.classification_loss().losses(model, batch)
        assert mine.shape == (12,)
        torch.testing.assert_close(mine.mean() / scale, model(**batch).loss)
    tagged = tags()
    found = language.classification_loss().losses(bert_tagger(), tagged).sum() / (tagged["labels"] >= 0).sum()
    torch.testing.assert_close(found, bert_tagger()(**tagged).loss)


def test_batches_that_come_masked_have_the_loss_of_transformers():
    hidden = torch.where(torch.arange(6) == 1, TEXTS["input_ids"], -100)
    batch = TEXTS | {"input_ids": TEXTS["input_ids"].masked_fill(hidden >= 0, 4), "labels": hidden}
    found = language.masked_loss().losses(bert(), batch).sum() / (hidden >= 0).sum()
    torch.testing.assert_close(found, bert()(**batch).loss)


@cases
def test_padding_and_the_size_of_batches_change_no_loss(make, loss, batch):
    model, whole = make(), loss.losses(make(), batch)
    each = torch.cat([loss.losses(model, rows(batch, slice(k, k + 5))) for k in (0, 5, 10)])
    torch.testing.assert_close(each, whole, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(loss.losses(model, padded(batch, right=2)), whole, rtol=1e-6, atol=1e-9)
    lengths = batch["attention_mask"].sum(1).tolist()
    if "labels" not in batch or batch["labels"].shape == batch["input_ids"].shape:
        alone = [
            loss.losses(model, {name: column[row : row + 1, :length] for name, column in batch.items()})
            for row, length in enumerate(lengths)
        ]
        torch.testing.assert_close(torch.cat(alone), whole, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("name", ["gpt2", "llama", "mean", "lora", "bert", "tagger"])
def test_padding_on_the_left_changes_no_loss_and_no_position(name):
    make, loss, batch = CASES[name]
    model, moved = make(), padded(batch, left=2)
    torch.testing.assert_close(loss.losses(model, moved), loss.losses(model, batch), rtol=1e-6, atol=1e-9)
    assert torch.equal(loss.tokens.positions(moved)[:, 2:], loss.tokens.positions(batch))


@cases
def test_scores_of_tokens_add_up_to_those_of_their_sample_however_padded(make, loss, batch):
    model, inverse = make(), cf.Identity()
    ask = language.log_probability([6, 7], [8])
    if make is bert:
        ask = language.log_probability([2, 6], [7, 3], tokenizer=tokenizer(masked=True))
    if make is bert_tagger:
        ask = lambda m: m(input_ids=TEXTS["input_ids"][:1]).logits[0, 1, 0]  # noqa: E731
    params = "*lora*" if make is lora else "*"
    one = cf.Risk(model, loss, cf.batches(batch, size=12), params=params)
    wider = [padded(rows(batch, slice(k, k + 3)), right=k) for k in (0, 3)] + [rows(batch, slice(6, 12))]
    other = cf.Risk(model, loss, wider if "labels" not in batch else cf.batches(batch, size=5), params=params)
    whole, tokens = (cf.influence(one, ask, inverse, unit=unit) for unit in ("sample", "token"))
    again = cf.influence(other, ask, inverse, unit="token")
    torch.testing.assert_close(tokens.sum_by([sample for sample, _ in tokens.ids]).values, whole.values)
    assert again.ids == tokens.ids
    torch.testing.assert_close(again.values, tokens.values, rtol=1e-5, atol=1e-9)


def test_masks_depend_on_the_sample_alone():
    masking = MASKED.tokens.losses.__self__.masking
    ids, labels = masking(TEXTS)
    for row in range(12):
        length = int(TEXTS["attention_mask"][row].sum())
        alone = masking({"input_ids": TEXTS["input_ids"][row : row + 1, :length]})
        assert torch.equal(alone[0][0], ids[row, :length])
        assert torch.equal(alone[1][0], labels[row, :length])
    assert ((labels >= 0).sum(1) >= 1).all()
    assert not (labels[TEXTS["attention_mask"] == 0] >= 0).any()
    for seed in (1, 2, 7, 2**40, -3):
        other = language.masked_loss(tokenizer(masked=True), 0.4, seed=seed).tokens.losses.__self__.masking(TEXTS)
        assert not torch.equal(other[1], labels)


def test_masks_hide_the_stated_share_as_bert_does():
    batch = {"input_ids": torch.randint(5, len(tokenizer()), (400, 50), generator=torch.Generator().manual_seed(0))}
    batch["input_ids"][:, 0], batch["input_ids"][:, -1] = 2, 3
    ids, labels = language.masked_loss(tokenizer(masked=True)).tokens.losses.__self__.masking(batch)
    hidden = labels >= 0
    assert not hidden[:, [0, -1]].any()
    assert (hidden.sum(1) == 7).all()  # 15 % of 48
    assert float(hidden.double().mean(0)[1:-1].std()) < 0.03  # no place is preferred
    assert abs(float((ids[hidden] == 4).double().mean()) - 0.8) < 0.03
    assert abs(float((ids[hidden] == labels[hidden]).double().mean()) - 0.1 - 0.1 / 18) < 0.03


def test_what_users_have_is_read():
    loss, model = language.causal_loss(), llama()
    wanted = loss.losses(model, TEXTS)
    ragged = datasets.Dataset.from_dict({
        "input_ids": [row[: int(mask.sum())].tolist() for row, mask in zip(*TEXTS.values(), strict=True)]
    })  # fmt: skip
    collate = tr.DataCollatorForLanguageModeling(tokenizer(), mlm=False)
    for data in (
        cf.batches(TEXTS), cf.batches(tr.BatchEncoding(TEXTS)), cf.batches(ragged, collate=collate, size=5),
        DataLoader(ragged, batch_size=5, collate_fn=collate), cf.batches(datasets.Dataset.from_dict(
            {name: column.tolist() for name, column in TEXTS.items()}).with_format("torch")),
    ):  # fmt: skip
        risk = cf.Risk(model, loss, data)
        assert risk.n == 12
        found = torch.cat([loss.losses(model, batch) for batch in data])
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)
    with pytest.raises(cf.CrossfluenceError, match="collate="):
        cf.Risk(model, loss, cf.batches(ragged))
    shuffled = DataLoader(ragged, batch_size=5, collate_fn=collate, shuffle=True)
    with pytest.raises(cf.CrossfluenceError, match="shuffle=False"):
        cf.Risk(model, loss, shuffled)


def test_random_masks_of_a_collator_are_refused():
    collate = tr.DataCollatorForLanguageModeling(tokenizer(masked=True), mlm_probability=0.4)
    ids = [row[: int(mask.sum())].tolist() for row, mask in zip(*TEXTS.values(), strict=True)]
    data = cf.batches(datasets.Dataset.from_dict({"input_ids": ids}), collate=collate)
    with pytest.raises(cf.CrossfluenceError, match="changes from one reading to the next"):
        cf.Risk(bert(), language.masked_loss(), data)


def test_the_contrastive_loss_is_cross_entropy_over_the_batch():
    encoder, loss = bert_encoder(), language.in_batch_contrastive(0.1)
    other = texts(seed=9)
    one, two = (F.normalize(language.embeddings(encoder, side), dim=1) for side in (TEXTS, other))
    wanted = F.cross_entropy(one @ two.T / 0.1, torch.arange(12), reduction="sum")
    ones = torch.ones(12, dtype=torch.float64)
    torch.testing.assert_close(loss(encoder, (TEXTS, other), ones), wanted)
    named = {f"anchor_{k}": v for k, v in TEXTS.items()} | {f"positive_{k}": v for k, v in other.items()}
    torch.testing.assert_close(loss(encoder, named, ones), wanted)
    without = loss(encoder, named, torch.where(torch.arange(12) == 3, 0.0, ones))
    kept = torch.arange(12) != 3
    rest = {name: column[kept] for name, column in named.items()}
    torch.testing.assert_close(without, loss(encoder, rest, ones[:11]))


class OneVector(nn.Module):
    """A sentence encoder that looks up one vector for each text."""

    def __init__(self, vectors):
        super().__init__()
        self.vectors = nn.Parameter(vectors)

    def forward(self, columns):
        return {"sentence_embedding": self.vectors[columns["input_ids"][:, 0]]}


def told_apart(gap):
    """An encoder of eight pairs, their own cosines above all others by about a gap, and the batch of them."""
    drawn = torch.randn(8, 8, generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    one = torch.eye(8, dtype=torch.float64) * gap + 0.1 * drawn
    batch = {f"{side}_input_ids": torch.arange(8)[:, None] + 8 * k for k, side in enumerate(("anchor", "positive"))}
    batch |= {f"{side}_attention_mask": torch.ones(8, 1, dtype=torch.long) for side in ("anchor", "positive")}
    return OneVector(torch.cat([one, one + 0.05 * drawn.flip(0)])), batch


def test_the_contrastive_loss_of_pairs_that_are_told_apart_keeps_its_digits_in_single_precision():
    (model, batch), loss = told_apart(1.0), language.in_batch_contrastive(0.04)
    exact = loss(model, batch, torch.ones(8, dtype=torch.float64))
    (wanted,) = torch.autograd.grad(exact, [model.vectors])
    assert exact < 1e-5
    single = OneVector(model.vectors.detach().float())
    found = loss(single, batch, torch.ones(8))
    (gradient,) = torch.autograd.grad(found, [single.vectors])
    assert found.item() == pytest.approx(exact.item(), rel=1e-3)
    torch.testing.assert_close(gradient.double(), wanted, rtol=1e-2, atol=1e-3 * wanted.abs().max().item())


@pytest.mark.parametrize("gap", [1.0, 0.0, -1.0])
def test_the_contrastive_loss_is_that_of_the_definition_at_any_weight(gap):
    (model, batch), weights = told_apart(gap), torch.linspace(0, 2, 8, dtype=torch.float64)
    one, two = F.normalize(model.vectors, dim=1).split(8)
    similar = one @ two.T / 0.05
    among = torch.where(torch.eye(8, dtype=torch.bool), similar.exp(), weights * similar.exp()).sum(1)
    wanted = weights @ (among.log() - similar.diagonal())
    torch.testing.assert_close(language.in_batch_contrastive(0.05)(model, batch, weights), wanted)


def test_half_the_weight_of_a_pair_that_is_told_apart_takes_half_of_it_from_the_gradient():
    (model, batch), loss = told_apart(1.0), language.in_batch_contrastive(0.05)

    def gradient(weight):
        weights = torch.ones(8, dtype=torch.float64)
        weights[2] = weight
        return torch.autograd.grad(loss(model, batch, weights), [model.vectors])[0]

    whole, half, none = gradient(1.0), gradient(0.5), gradient(0.0)
    torch.testing.assert_close(whole - half, half - none, rtol=1e-3, atol=1e-4 * whole.abs().max().item())


@pytest.mark.parametrize("rest", [0.0, 1e-30])
def test_the_contrastive_loss_and_its_gradient_are_finite_where_a_batch_has_one_pair_left(rest):
    model, batch = told_apart(-1.0)
    single = OneVector(model.vectors.detach().float())
    weights = torch.full((8,), rest)
    weights[0] = 1
    value = language.in_batch_contrastive(0.005)(single, batch, weights.requires_grad_())
    for part in torch.autograd.grad(value, [single.vectors, weights]):
        assert part.isfinite().all()


def test_preferences_are_compared_with_the_reference():
    model, reference = gpt2(), shaken(gpt2(), seed=7)
    other = texts(seed=9)
    sides = {"chosen": with_labels(TEXTS), "rejected": with_labels(other)}
    batch = {f"{side}_{name}": column for side, part in sides.items() for name, column in part.items()}
    (ready,) = language.with_reference(reference, [batch])
    causal = language.causal_loss()
    gain = [causal.losses(reference, part) - causal.losses(model, part) for part in sides.values()]
    torch.testing.assert_close(language.dpo_loss(0.3)(model, ready), -F.logsigmoid(0.3 * (gain[0] - gain[1])))
    assert cf.Risk(model, language.dpo_loss(), cf.batches(ready)).n == 12
    with pytest.raises(cf.CrossfluenceError, match="with_reference"):
        language.dpo_loss()(model, batch)


@pytest.mark.parametrize(("make", "batch", "loss", "words"), [
    (gpt2, torch.randn(3, 2), language.causal_loss(), "float32 of shape"),
    (gpt2, [torch.ones(2)], language.causal_loss(), "type list"),
    (gpt2, {"text": torch.ones(2)}, language.causal_loss(), "'text'"),
    (gpt2, {"input_ids": torch.full((2, 3), 40)}, language.causal_loss(), "token 40, but the model knows 18"),
    (gpt2, {"input_ids": torch.ones(2, 30).long()}, language.causal_loss(), "30 tokens, but the model has 10"),
    (t5, TEXTS, language.causal_loss(), "seq2seq=True"),
    (gpt2, answers(), language.causal_loss(seq2seq=True), r"causal_loss\(\)"),
    (gpt2, answers(), language.causal_loss(), r"shape \(12, 4\)"),
    (bert, TEXTS, language.masked_loss(), "masked_loss.tokenizer"),
    (bert, TEXTS, language.causal_loss(), r"masked_loss\(tokenizer\)"),
    (llama, TEXTS, language.masked_loss(tokenizer(masked=True)), r"causal_loss\(\)"),
    (lora, TEXTS, language.masked_loss(tokenizer(masked=True)), r"causal_loss\(\)"),
    (gpt2, UNLABELLED, language.causal_loss(), "All labels of a batch are -100"),
    (bert, UNLABELLED, language.masked_loss(), "All labels of a batch are -100"),
    (t5, UNLABELLED, language.causal_loss(seq2seq=True), "All labels of a batch are -100"),
    (bert_encoder, TEXTS, language.causal_loss(), "without logits"),
    (bert_classifier, TEXTS, language.classification_loss(), "'labels'"),
])  # fmt: skip
def test_batches_that_do_not_fit_are_refused_with_advice(make, batch, loss, words):
    with pytest.raises(cf.CrossfluenceError, match=words):
        loss.losses(make(), batch)


def test_settings_that_mean_nothing_are_refused():
    for call in (
        lambda: language.masked_loss(tokenizer()), lambda: language.masked_loss(tokenizer(masked=True), 0.0),
        lambda: language.in_batch_contrastive(0), lambda: language.dpo_loss(-1),
    ):  # fmt: skip
        with pytest.raises(cf.CrossfluenceError):
            call()


def test_a_classifier_of_whole_samples_has_no_tokens():
    batch = TEXTS | {"labels": torch.arange(12) % 3}
    risk = cf.Risk(bert_classifier(), language.classification_loss(), cf.batches(batch))
    with pytest.raises(cf.CrossfluenceError, match="unit='sample'"):
        cf.influence(risk, language.class_logit(rows(TEXTS, slice(0, 1)), 0), cf.Identity(), unit="token")
