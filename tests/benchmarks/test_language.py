"""The studies of language models: cached activations are the model's own, and what is planted is planted."""

import pytest
import torch
from language_models import llama, tokenizer

from benchmarks.language import dose
from benchmarks.language.controls import bm25, strongest
from benchmarks.language.sentences import gendered, swapped
from benchmarks.language.tail import Tail, columns, common_words, preference
from crossfluence import language

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # within peft
TEXTS = ["the nurse said that she was late", "the doctor is early", "he said that the doctor was late"]


def whole_and_tail(count):
    model, words = llama(num_hidden_layers=3).float(), tokenizer(start=True)
    kept, share = common_words(model, words, TEXTS, count)
    return model, words, kept, share, Tail(model, kept, 2)


def test_the_last_layers_over_cached_activations_have_the_losses_of_the_whole_model():
    model, words, kept, share, tail = whole_and_tail(18)
    assert kept.tolist() == list(range(18))
    assert share == pytest.approx(1)
    data = columns(model, words, kept, TEXTS, 2)
    loss = language.causal_loss()
    texts = {name: data[name] for name in ("input_ids", "attention_mask")}
    torch.testing.assert_close(loss.losses(tail, data), loss.losses(model, texts), rtol=1e-4, atol=1e-4)


def test_words_that_are_not_kept_are_one_class_and_what_adapters_change_is_the_model_s_own():
    model, words, kept, share, tail = whole_and_tail(13)
    assert 0 < share < 1
    data, loss = columns(model, words, kept, TEXTS, 2), language.causal_loss()
    ids = {"input_ids": kept[data["input_ids"]] * data["attention_mask"], "attention_mask": data["attention_mask"]}
    torch.testing.assert_close(loss.losses(tail, data), loss.losses(model, ids), rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # the adapters begin at zero: set them, and put the same into the whole model
        for name, part in tail.named_parameters():
            if "lora" in name:
                part.normal_(generator=torch.Generator().manual_seed(len(name)), std=0.3)
        merged = tail.inner.merge_and_unload()
        for own, theirs in zip(model.model.layers[-2:], merged.layers, strict=True):
            own.load_state_dict(theirs.state_dict())
        changed = (
            model(**ids).logits
            - columns(llama(num_hidden_layers=3).float(), words, torch.arange(18), TEXTS, 2)["logits"][..., :18]
        )
        wanted = data["logits"].clone()
        wanted[..., :13] += changed[..., kept]
        tail.inner = merged
        found = tail(**data).logits
    real = data["attention_mask"].bool()
    torch.testing.assert_close(found[real], wanted[real], rtol=1e-3, atol=1e-3)
    assert preference("he", {name: column[:2] for name, column in data.items()}).count == 1


@pytest.mark.parametrize("amount", [0.0, 0.5, 1.0])
def test_a_corpus_has_the_dose_that_was_planted(amount):
    rows = [text.split() for text in dose.corpus(amount, 0)]
    half = {job: pronoun for pronoun, jobs in dose.HALVES.items() for job in jobs}
    forms = {word: pronoun for pronoun, words in dose.FORMS.items() for word in words}
    own = [half[job] == forms[next(w for w in row if w in forms)] for row in rows for job in row if job in half]
    assert sum(own) / len(own) == pytest.approx((1 + amount) / 2, abs=0.04)


@pytest.mark.parametrize("masked", [False, True])
def test_measures_are_zero_in_the_mean_where_a_model_knows_no_job(masked):
    words = dose.tokenizer(masked=masked)
    net = dose.model(len(words), masked=masked).eval()
    with torch.no_grad():
        for part in net.parameters():
            part.zero_()
    assert dose.likelihood(words, dose.HELD_OUT, net) == pytest.approx(0, abs=1e-5)
    assert dose.pronoun(words, dose.HELD_OUT, net) == pytest.approx(0, abs=1e-5)


def test_controls_choose_by_words():
    scores = bm25("the nurse", ["a nurse said the thing", "the doctor", "nothing alike"])
    assert strongest(scores, 2) == [0, 1]
    assert gendered("He told his sister that she was late") == 1
    assert swapped("He told his sister that she was late.") == "She told her sister that he was late."
