"""Recipes of a Trainer: its own weights come out, or the setting that is not known is named."""

import copy

import datasets
import pytest
import torch
import transformers as tr
from language_models import bert, bert_classifier, gpt2, llama, lora, t5, texts, tokenizer

import crossfluence as cf
from crossfluence import language
from crossfluence._horizon.recorded_loss import gradient_ratio, other_loss

pytestmark = [
    pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore:.*pin_memory"),
]
DROPOUT = {"gpt2": {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
           "bert": {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}}  # fmt: skip


def rows(batch):
    mask = batch["attention_mask"]
    return [{"input_ids": ids[: int(m.sum())].tolist()} for ids, m in zip(batch["input_ids"], mask, strict=True)]


def data_of(kind):
    found = rows(texts(11))
    for place, row in enumerate(found):
        if kind == "classifier":
            row["labels"] = place % 3
        if kind == "masked":
            row["labels"] = [-100, *row["input_ids"][1:]]
        if kind == "seq2seq":
            row["labels"] = row["input_ids"][::-1][:3]
    return datasets.Dataset.from_list(found)


def trainer_of(model, kind, folder, **options):
    collate = {
        "causal": lambda: tr.DataCollatorForLanguageModeling(tokenizer(), mlm=False),
        "classifier": lambda: tr.DataCollatorWithPadding(tokenizer()),
        "masked": lambda: tr.DataCollatorForTokenClassification(tokenizer()),
        "seq2seq": lambda: tr.DataCollatorForSeq2Seq(tokenizer()),
    }[kind]()
    settings = {
        "per_device_train_batch_size": 3, "num_train_epochs": 2, "learning_rate": 1e-2, "weight_decay": 0.1,
        "report_to": [], "save_strategy": "no", "logging_strategy": "no", "disable_tqdm": True, "use_cpu": True,
        "seed": 5, **options,
    }  # fmt: skip
    args = tr.TrainingArguments(output_dir=str(folder), **settings)
    return tr.Trainer(model, args, train_dataset=data_of(kind), data_collator=collate)


MODELS = {
    "llama": (lambda: llama(), "causal"),
    "gpt2": (lambda: gpt2(**DROPOUT["gpt2"]), "causal"),
    "lora": (lora, "causal"),
    "classifier": (lambda: bert_classifier(**DROPOUT["bert"]), "classifier"),
    "masked": (lambda: bert(**DROPOUT["bert"]), "masked"),
    "t5": (lambda: t5(dropout_rate=0.0), "seq2seq"),
}
OPTIONS = {
    "defaults": {},
    "accumulation": {"gradient_accumulation_steps": 2},
    "warm-up, cosine": {"warmup_steps": 3, "lr_scheduler_type": "cosine"},
    "no clipping": {"max_grad_norm": 0.0},
    "hard clipping": {"max_grad_norm": 0.05},
    "few steps": {"max_steps": 5},
    "drop last": {"dataloader_drop_last": True},
    "in order": {"train_sampling_strategy": "sequential"},
    "SGD": {"optim": "sgd", "weight_decay": 0.0},
    "data seed": {"data_seed": 9},
}
CASES = [("llama", option) for option in OPTIONS] + [(model, "defaults") for model in MODELS if model != "llama"]


def _determined(parts):
    """Without what attention does not depend on, so that rounding alone moves it."""
    return {name: part for name, part in parts.items() if "key.bias" not in name and "c_attn.bias" not in name}


def trained(model):
    return {name: part.detach().clone() for name, part in model.named_parameters() if part.requires_grad}


@pytest.mark.parametrize(("name", "option"), CASES)
def test_a_recipe_ends_at_the_trainer_s_own_weights(name, option, tmp_path):
    make, kind = MODELS[name]
    model = make().float()
    trainer = trainer_of(model, kind, tmp_path, **OPTIONS[option])
    before = copy.deepcopy(model)
    recipe = language.recipe(trainer)
    assert all(torch.equal(part, trained(before)[key]) for key, part in trained(model).items())  # nothing was trained
    trainer.train()
    found, wanted = (_determined(trained(each)) for each in (recipe.train(), model))
    moved = torch.cat([(wanted[key] - part).flatten() for key, part in _determined(trained(before)).items()]).norm()
    off = torch.cat([(wanted[key] - found[key]).flatten() for key in wanted]).norm()
    whole = torch.cat([part.flatten() for part in wanted.values()]).norm()
    assert moved > 1e-3 * whole
    assert off < 1e-5 * whole
    after = _determined(trained(language.recipe(trainer, start=before).train()))
    assert all(torch.equal(after[key], part) for key, part in found.items())


def test_what_a_recipe_of_a_trainer_is_good_for(tmp_path):
    recipe = language.recipe(trainer_of(llama().float(), "causal", tmp_path))
    ask = language.log_probability([6, 7], [8])
    found = cf.replay(recipe, ask, groups=0)
    gone = cf.leave_out(recipe, ask, [0, 3, 6, 9])
    assert cf.compare(found.select([0, 3, 6, 9]), gone).pearson > 0.9


@pytest.mark.parametrize(("options", "words"), [
    ({"label_smoothing_factor": 0.1}, "label_smoothing_factor=0.1"),
    ({"optim": "adafactor"}, "optim='adamw_torch'"),
    ({"neftune_noise_alpha": 5.0}, "neftune_noise_alpha=5.0"),
])  # fmt: skip
def test_settings_that_are_not_known_are_named(options, words, tmp_path):
    with pytest.raises(cf.CrossfluenceError, match=words):
        language.recipe(trainer_of(llama().float(), "causal", tmp_path, **options))


def test_trainings_that_cannot_be_repeated_are_refused_with_advice(tmp_path):
    with pytest.raises(cf.CrossfluenceError, match="Trainer"):
        language.recipe(llama())
    with pytest.raises(cf.CrossfluenceError, match="redraw=True"):
        language.recipe(trainer_of(gpt2().float(), "causal", tmp_path))
    assert language.recipe(trainer_of(gpt2().float(), "causal", tmp_path), redraw=True).random
    trainer = trainer_of(llama().float(), "causal", tmp_path, max_steps=1)
    trainer.train()
    with pytest.raises(cf.CrossfluenceError, match="start=model"):
        language.recipe(trainer)
    stepped = trainer_of(llama().float(), "causal", tmp_path)
    stepped.create_optimizer()
    stepped.lr_scheduler = torch.optim.lr_scheduler.StepLR(stepped.optimizer, 2)
    with pytest.raises(cf.CrossfluenceError, match="lr_scheduler_type='linear'"):
        language.recipe(stepped)
    other = trainer_of(llama().float(), "causal", tmp_path)
    other.compute_loss = lambda model, inputs, **_: 2 * model(**inputs).loss
    with pytest.raises(cf.CrossfluenceError, match="compute_loss"):
        language.recipe(other)
    masked = trainer_of(bert(**DROPOUT["bert"]).float(), "causal", tmp_path)
    masked.data_collator = tr.DataCollatorForLanguageModeling(tokenizer(masked=True), mlm_probability=0.4)
    with pytest.raises(cf.CrossfluenceError, match="drawn anew"):
        language.recipe(masked)


@pytest.mark.parametrize("options", [{"max_grad_norm": 0.5}, {"gradient_accumulation_steps": 2, "max_grad_norm": 0.2}],
                         ids=["clipping", "accumulation"])  # fmt: skip
def test_a_recorder_keeps_what_the_recipe_of_the_same_training_records(options, tmp_path):
    model = llama().float()
    trainer, recorder = trainer_of(model, "causal", tmp_path, **options), language.Recorder()
    recipe = language.recipe(trainer)
    trainer.add_callback(recorder)
    trainer.train()
    assert recorder.steps == trainer.state.global_step
    again = recipe.train()
    data = cf.batches(texts(11))
    ask = language.log_probability([6, 7], [8])
    one, other = (
        cf.influence(cf.Risk(each.eval(), language.causal_loss(), data, record=record), ask, cf.Horizon()).values
        for each, record in ((model, recorder.record()), (again, recipe.record()))
    )
    assert float((one - other).norm()) < 1e-2 * float(other.norm())
    assert not any(part._post_accumulate_grad_hooks for part in model.parameters())


def theirs(trainer, parts):
    """The Trainer's loss of all data: its mean over what it counts, tokens or samples."""
    counts = [trainer._get_num_items_in_batch([batch], torch.device("cpu")) for batch in parts]
    with torch.no_grad():
        values = [
            float(trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=count))
            for batch, count in zip(parts, counts, strict=True)
        ]
    sizes = [len(batch["labels"]) if count is None else int(count) for batch, count in zip(parts, counts, strict=True)]
    return sum(value * size for value, size in zip(values, sizes, strict=True)) / sum(sizes)


@pytest.mark.parametrize("name", sorted(MODELS))
def test_the_risk_of_a_trainer_has_the_loss_that_it_minimised(name, tmp_path):
    make, kind = MODELS[name]
    trainer, recorder = trainer_of(make().float(), kind, tmp_path), language.Recorder()
    trainer.add_callback(recorder)
    trainer.train()
    risk = language.risk_of(trainer, record=recorder.record())
    assert 0.5 < gradient_ratio(risk) < 2
    assert not other_loss(risk)
    parts = [dict(batch) for _, batch, _ in risk.passes()]
    with torch.no_grad():
        mine = sum(float(risk.loss.losses(trainer.model, batch).sum()) for batch in parts) / risk.n
    assert mine == pytest.approx(theirs(trainer, parts), rel=1e-5)


def test_a_sum_over_tokens_is_not_the_trainer_s_loss(tmp_path):
    trainer, recorder = trainer_of(llama().float(), "causal", tmp_path), language.Recorder()
    ids = torch.randint(5, 18, (11, 9), generator=torch.Generator().manual_seed(0))
    trainer.train_dataset = datasets.Dataset.from_list([{"input_ids": row} for row in ids.tolist()])
    trainer.add_callback(recorder)
    trainer.train()
    record = recorder.record()
    assert other_loss(cf.Risk(trainer.model.eval(), language.causal_loss(), cf.batches(ids), record=record))
    assert not other_loss(language.risk_of(trainer, record=record))
    with pytest.raises(cf.CrossfluenceError, match=r"needs a transformers\.Trainer"):
        language.risk_of(trainer.model)


def test_a_recorder_without_a_training_is_refused_with_advice():
    with pytest.raises(cf.CrossfluenceError, match="callbacks="):
        language.Recorder().record()
