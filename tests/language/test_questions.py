"""Questions about language models, beside the same worked out token by token."""

import gzip
import json
import math

import pytest
import torch
from language_models import bert, bert_classifier, bert_encoder, gpt2, llama, t5, texts, tokenizer
from torch.nn import functional as F

import crossfluence as cf
from crossfluence import language

pytestmark = pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning")
PLAIN, START, BERT = tokenizer(), tokenizer(start=True), tokenizer(masked=True)


def spelled(model, ids, first):
    """The log-probability of the tokens from a place on, one forward pass for each."""
    total = 0.0
    for place in range(first, len(ids)):
        logits = model(input_ids=torch.tensor([ids[:place]])).logits[0, -1]
        total += logits.double().log_softmax(0)[ids[place]].item()
    return total


def behind_the_mask(model, ids, places):
    total = 0.0
    for place in places:
        hidden = torch.tensor([ids])
        hidden[0, place] = BERT.mask_token_id
        total += model(input_ids=hidden).logits[0, place].log_softmax(0)[ids[place]].item()
    return total


def ids_of(text, tok=PLAIN):
    return tok(text)["input_ids"]


@pytest.mark.parametrize("make", [gpt2, llama], ids=lambda make: make.__name__)
def test_the_probability_of_a_completion_is_the_product_over_its_tokens(make):
    model = make()
    found = language.log_probability("the nurse said that", " she was late", tokenizer=PLAIN)(model)
    assert found.item() == pytest.approx(spelled(model, ids_of("the nurse said that she was late"), 4))
    of_ids = language.log_probability(ids_of("the nurse said that"), ids_of("she was late"))(model)
    torch.testing.assert_close(of_ids, found)


def test_a_text_without_a_prompt_begins_with_the_token_of_beginnings():
    model = gpt2()
    found = language.log_probability("", "the nurse said", tokenizer=START)(model)
    assert found.item() == pytest.approx(spelled(model, [2, *ids_of("the nurse said")], 1))
    without = language.log_probability("", "the nurse said", tokenizer=PLAIN)(model)
    assert without.item() == pytest.approx(spelled(model, ids_of("the nurse said"), 1))


def test_a_masked_model_hides_each_token_of_the_completion():
    model, ids = bert(), ids_of("the nurse said that she was late", BERT)
    found = language.log_probability("the nurse said that", " she was late", tokenizer=BERT)(model)
    assert found.item() == pytest.approx(behind_the_mask(model, ids, [5, 6, 7]))


def test_an_encoder_decoder_completes_what_its_encoder_read():
    model = t5()
    prompt, said = ids_of("the nurse said"), ids_of("she was late")
    logits = model(input_ids=torch.tensor([prompt]), decoder_input_ids=torch.tensor([[0, *said[:-1]]])).logits[0]
    wanted = logits.log_softmax(1)[range(3), said].sum()
    found = language.log_probability("the nurse said", " she was late", tokenizer=PLAIN)(model)
    torch.testing.assert_close(found, wanted)
    with pytest.raises(cf.CrossfluenceError, match="prompt"):
        language.log_probability("", "she", tokenizer=PLAIN)(model)


def test_a_contrast_is_a_difference_and_is_influenced_like_one():
    model = llama()
    he, she = (language.log_probability("the nurse said that", f" {word}", tokenizer=PLAIN) for word in ("he", "she"))
    torch.testing.assert_close(language.contrast(he, she)(model), he(model) - she(model))
    risk = cf.Risk(model, language.causal_loss(), cf.batches(texts()))
    one, other, both = (
        cf.influence(risk, question, cf.EKFAC()).values for question in (he, she, language.contrast(he, she))
    )
    torch.testing.assert_close(one - other, both)


PAIRS = [("the nurse said that she was late", "the nurse said that he was late"),
         ("the doctor is early", "the nurse is early"),
         ("he was late and early", "she was late and early")]  # fmt: skip


def test_the_preference_of_a_causal_model_is_over_whole_texts():
    model, question = gpt2(), language.pair_preference(PAIRS, tokenizer=START)
    of = lambda text: spelled(model, [2, *ids_of(text)], 1)  # noqa: E731
    wanted = [of(more) - of(less) for more, less in PAIRS]
    assert question.each(model).tolist() == pytest.approx(wanted)
    assert question(model).item() == pytest.approx(sum(wanted) / 3)
    assert question.hard_share(model) == pytest.approx(sum(value > 0 for value in wanted) / 3)
    assert question.soft_share(model) == pytest.approx(sum(1 / (1 + math.exp(-value)) for value in wanted) / 3)


def test_the_preference_of_a_masked_model_is_over_the_words_that_both_texts_share():
    model, question = bert(), language.pair_preference(PAIRS, tokenizer=BERT)
    shared = [[1, 2, 3, 4, 6, 7], [1, 3, 4], [2, 3, 4, 5]]  # [CLS] stands at 0
    wanted = [
        behind_the_mask(model, ids_of(more, BERT), places) - behind_the_mask(model, ids_of(less, BERT), places)
        for (more, less), places in zip(PAIRS, shared, strict=True)
    ]
    assert question.each(model).tolist() == pytest.approx(wanted)


def test_pronouns_of_a_masked_model_are_asked_in_their_places():
    model = bert()
    question = language.pronoun_preference(["the nurse said that {he/she} was late"], tokenizer=BERT)
    hidden = torch.tensor([ids_of("the nurse said that he was late", BERT)])
    hidden[0, 5] = BERT.mask_token_id
    logits = model(input_ids=hidden).logits[0, 5]
    he, she = BERT.convert_tokens_to_ids(["he", "she"])
    torch.testing.assert_close(question(model), logits[he] - logits[she])


def test_pronouns_of_a_causal_model_are_compared_by_whole_texts():
    model = llama()
    templates = ["{he/she} said that {he/she} was late", ("the nurse said {} is early", "he", "she")]
    question = language.pronoun_preference(templates, tokenizer=PLAIN)
    both = [("he said that he was late", "she said that she was late"),
            ("the nurse said he is early", "the nurse said she is early")]  # fmt: skip
    wanted = [spelled(model, ids_of(one), 1) - spelled(model, ids_of(other), 1) for one, other in both]
    assert question.each(model).tolist() == pytest.approx(wanted)


def test_the_interval_holds_the_mean_and_narrows_with_more_items():
    values = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    question = language.Question("values", lambda model: values, 400)
    few = language.Question("values", lambda model: values[:40], 40)
    found = question.interval(torch.nn.Identity())
    assert float(found) == pytest.approx(float(values.mean()))
    assert found.low < found < found.high
    assert found.high - found.low == pytest.approx(2 * 1.96 * float(values.std()) / 20, rel=0.1)
    wide = few.interval(torch.nn.Identity())
    assert wide.high - wide.low > 2 * (found.high - found.low)
    assert math.isnan(language.log_probability([6], [7]).interval(gpt2()).low)


def test_class_logits_are_log_odds():
    model, batch = bert_classifier(), texts(2)
    p = model(**batch).logits.softmax(1)[:, 1]
    torch.testing.assert_close(language.class_logit(batch, 1)(model), (p / (1 - p)).log().mean())
    words = language.class_logit("the nurse was late", 1, tokenizer=BERT)
    columns = language.class_logit(dict(BERT("the nurse was late", return_tensors="pt")), 1)
    torch.testing.assert_close(words(model), columns(model))


def test_similarity_is_a_cosine_whatever_the_padding():
    model, (one, other) = bert_encoder(), ("the nurse was late", "she is early and late")
    vectors = [model(**BERT(text, return_tensors="pt")).last_hidden_state[0].mean(0) for text in (one, other)]
    found = language.similarity(one, other, tokenizer=BERT)(model)
    torch.testing.assert_close(found, F.cosine_similarity(*vectors, dim=0))
    several = language.similarity([one, "he was late"], [other, "she"], tokenizer=BERT).items(model)
    torch.testing.assert_close(several[0], found)


@pytest.mark.parametrize(("pooling", "place"), [("first", 0), ("last", -1)])
def test_embeddings_are_pooled_as_stated(pooling, place):
    model, batch = bert_encoder(), texts(3)
    found = language.embeddings(model, batch, pooling)
    for row in range(3):
        length = int(batch["attention_mask"][row].sum())
        alone = model(input_ids=batch["input_ids"][row : row + 1, :length]).last_hidden_state[0, place]
        torch.testing.assert_close(found[row], alone)


SETS = {"targ1": ["he was late", "he is early", "the doctor"], "targ2": ["she was late", "the nurse is early"],
        "attr1": ["late", "said that", "early and late"], "attr2": ["a nurse", "was"]}  # fmt: skip


def test_an_association_is_the_published_effect_size(tmp_path):
    file = tmp_path / "sent-own.jsonl"
    file.write_text(json.dumps({key: {"category": key, "examples": found} for key, found in SETS.items()}))
    test = language.seat(file)
    assert (test.name, test.X) == ("sent-own", tuple(SETS["targ1"]))
    model = bert_encoder()
    x, y, a, b = (
        [model(**BERT(text, return_tensors="pt")).last_hidden_state[0, 0] for text in found] for found in SETS.values()
    )
    near = lambda w, side: sum(F.cosine_similarity(w, v, dim=0).item() for v in side) / len(side)  # noqa: E731
    s = torch.tensor([near(w, a) - near(w, b) for w in [*x, *y]], dtype=torch.float64)
    wanted = (s[:3].mean() - s[3:].mean()) / s.std()  # n - 1, as numpy.std(ddof=1)
    question = language.association(test, tokenizer=BERT, pooling="first")
    torch.testing.assert_close(question(model), wanted, check_dtype=False)
    found = question.interval(model)
    assert found.low <= float(found) <= found.high
    statistic = s[:3].sum() - s[3:].sum()
    divisions = [sum(s[i] for i in rows) for rows in torch.combinations(torch.arange(5), 3).tolist()]
    share = sum(float(2 * one - s.sum()) >= float(statistic) - 1e-9 for one in divisions) / len(divisions)
    assert question.p_value(model) == pytest.approx(share, abs=0.02)
    risk = cf.Risk(model, language.in_batch_contrastive(), [(texts(6), texts(6, seed=1))], n=[6])
    assert len(cf.influence(risk, question, cf.Identity())) == 6


def test_crows_pairs_are_read_by_kind(tmp_path):
    file = tmp_path / "crows_pairs_anonymized.csv"
    file.write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n"
        '0,"He was late, again.","She was late, again.",stereo,gender\n1,The poor.,The rich.,antistereo,socioeconomic\n'
    )
    pairs = language.crows_pairs(tmp_path)
    assert [(pair.more, pair.less, pair.kind) for pair in pairs] == [
        ("He was late, again.", "She was late, again.", "gender"), ("The poor.", "The rich.", "socioeconomic")
    ]  # fmt: skip
    assert language.crows_pairs(file, "gender") == pairs[:1]
    with pytest.raises(cf.CrossfluenceError, match="gender, socioeconomic"):
        language.crows_pairs(file, "age")
    with pytest.raises(cf.CrossfluenceError, match=r"crows_pairs_anonymized\.csv"):
        language.crows_pairs(tmp_path / "missing")
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(cf.CrossfluenceError, match="sent_more"):
        language.crows_pairs(tmp_path / "other.csv")


def test_stereoset_is_read_in_both_forms(tmp_path):
    item = {"bias_type": "gender", "context": "BLANK"}
    official = [{"sentence": text, "gold_label": label} for text, label in
                (("A", "anti-stereotype"), ("U", "unrelated"), ("S", "stereotype"))]  # fmt: skip
    forms = {
        "official.json": {"data": {"intrasentence": [item | {"sentences": official}]}},
        "dev.json": [item | {"sentences": official}],
        "parts.json": [item | {"data": {part["gold_label"]: {"sentence": part["sentence"]} for part in official}}],
    }
    for name, content in forms.items():
        (tmp_path / f"{name}.gz").write_bytes(gzip.compress(json.dumps(content).encode()))
        (found,) = language.stereoset(tmp_path / f"{name}.gz")
        assert (found.more, found.less, found.kind) == ("S", "A", "gender")
    assert len(language.stereoset(tmp_path)) == 3
    (tmp_path / "wrong.json").write_text("[{}]")
    with pytest.raises(cf.CrossfluenceError, match="anti-stereotype"):
        language.stereoset(tmp_path / "wrong.json")
    (tmp_path / "wrong.json").write_text("{")
    with pytest.raises(cf.CrossfluenceError, match="JSON"):
        language.stereoset(tmp_path / "wrong.json")


def test_winobias_is_read_with_a_place_for_each_pronoun(tmp_path):
    (tmp_path / "pro_stereotyped_type1.txt.dev").write_text(
        "1 [The mover] rested because [he] hurt [his] back.\n2 The mover thanked [the nurse] and paid [her].\n"
        "3 The chief [the clerk] told [her] to wait.\n"
    )
    (tmp_path / "anti_stereotyped_type1.txt.dev").write_text(
        "1 [The mover] rested because [she] hurt [her] back.\n2 The mover thanked [the nurse] and paid [him].\n"
        "3 Nothing alike at all.\n"
    )
    found = [(each.text, each.first, each.second) for each in language.winobias(tmp_path, 1, "dev")]
    assert found == [
        ("The mover rested because {} hurt {} back.", ("he", "his"), ("she", "her")),
        ("The mover thanked the nurse and paid {}.", ("her",), ("him",)),
        ("The chief the clerk told {} to wait.", ("her",), ("him",)),
    ]
    with pytest.raises(cf.CrossfluenceError, match=r"type2.txt.dev"):
        language.winobias(tmp_path, 2, "dev")


@pytest.mark.parametrize(("ask", "words"), [
    (lambda: language.log_probability("the", "", tokenizer=PLAIN), "no tokens"),
    (lambda: language.log_probability("the", " nurse"), "tokenizer="),
    (lambda: language.contrast(*[language.log_probability([6], [7])] * 2), "twice"),
    (lambda: language.contrast(language.log_probability([6], [7]), language.pair_preference(PAIRS, tokenizer=PLAIN)),
     "1 and 3 items"),
    (lambda: language.pair_preference([("he was", "he was")], tokenizer=PLAIN), "equal"),
    (lambda: language.pair_preference([("he", "she was late")], tokenizer=PLAIN), "share no word"),
    (lambda: language.pair_preference([], tokenizer=PLAIN), "no pairs"),
    (lambda: language.pronoun_preference(["the nurse was late"], tokenizer=PLAIN), "he/she"),
    (lambda: language.pronoun_preference(["{hx/hy} was late"], tokenizer=PLAIN), r"\('hx',\) and \('hy',\), are equal"),
    (lambda: language.pronoun_preference([], tokenizer=PLAIN), "no templates"),
    (lambda: language.similarity("he", "he", tokenizer=BERT), "equal"),
    (lambda: language.similarity("he", "she"), "no tokenizer"),
    (lambda: language.embeddings(bert_encoder(), texts(), "middle"), "'mean', 'first' or 'last'"),
    (lambda: language.log_probability([6], [7])(bert()), "no mask token"),
    (lambda: language.log_probability([6], [70])(gpt2()), "token 70"),
])  # fmt: skip
def test_questions_without_an_answer_are_refused_with_advice(ask, words):
    with pytest.raises(cf.CrossfluenceError, match=words):
        ask()
