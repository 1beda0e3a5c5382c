"""The command `language`: an answer first, files beside it, exit codes, and one sentence for each kind of bad input."""

import csv
import io
import json
import re
import shutil

import pytest
import torch
from language_models import bert, gpt2, llama, t5, tokenizer
from small_model import lines, write_model
from typer.testing import CliRunner

import crossfluence as cf
from crossfluence.app import app

pytestmark = [
    pytest.mark.filterwarnings("ignore::crossfluence.errors.UnreliableWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_model(tmp_path)
    return tmp_path


def table(path):
    return list(csv.DictReader(io.StringIO(path.read_text())))


def run(*arguments):
    return CliRunner().invoke(app, ["language", *map(str, arguments)])


def test_texts_are_listed_for_each_question_with_files_beside(folder):
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl")
    assert found.exit_code in {0, 3}, found.output
    assert re.search(r"(?m)^These scores (can|cannot) be relied on", found.output)
    assert "he or she:" in found.output
    assert "pronouns:" in found.output
    assert "95 % interval" in found.output
    rows = table(folder / "crossfluence-language.csv")
    assert sorted(int(row["text"]) for row in rows) == list(range(1, 13))
    sizes = [abs(float(row["he or she"])) for row in rows]
    assert sizes == sorted(sizes, reverse=True)
    page = (folder / "crossfluence-language.html").read_text()
    assert "he or she" in page
    assert "http" not in page.split("<body>")[1]


def test_scores_of_tokens_stand_in_the_table_and_shade_the_page(folder):
    run("model", "texts.jsonl", "--ask", "ask.jsonl", "--out", "texts.html")
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl", "--unit", "token", "--out", "tokens.html")
    assert found.exit_code in {0, 3}, found.output
    whole = {row["text"]: float(row["pronouns"]) for row in table(folder / "texts.csv")}
    rows = table(folder / "tokens.csv")
    assert all(row["content"].split()[int(row["position"])] == row["token"] for row in rows)
    for text, value in whole.items():
        parts = sum(float(row["pronouns"]) for row in rows if row["text"] == text)
        assert parts == pytest.approx(value, rel=1e-3, abs=1e-6 * max(map(abs, whole.values())))
    assert "rgba(" in (folder / "tokens.html").read_text()


def test_training_first_checks_the_answer_by_training_again(folder):
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl", "--train", "--epochs", 2, "--lr", 0.01, "--remove", 2,
                "--batch-size", 4)  # fmt: skip
    assert found.exit_code in {0, 3}, found.output
    assert "that raise it most" in found.output
    assert "2 random, 1" in found.output
    page = (folder / "crossfluence-language.html").read_text()
    assert "trained again" in page
    assert re.search(r"Perplexity of 1 texts left out of the training: [\d.]+, before fine-tuning [\d.]+\.", page)
    assert len(table(folder / "crossfluence-language.csv")) == 11  # one is held out
    assert not (folder / "crossfluence-language.html.unfinished").exists()


TRAIN = ("--train", "--epochs", 2, "--lr", 0.01, "--batch-size", 4, "--remove", 2)


def test_a_bias_stands_beside_removals_by_words_and_by_chance_with_perplexity_before_and_after(folder):
    lines(folder / "bias.jsonl", [{"template": f"the {job} said that {{he/she}} was late"} for job in ("nurse",)])
    lines(folder / "others.jsonl", [{"text": "the doctor said that he was late"}])
    found = run("model", "texts.jsonl", "--bias", "bias.jsonl", *TRAIN, "--held-out", "others.jsonl")
    assert found.exit_code in {0, 3}, found.output
    rows = table(folder / "crossfluence-language-removals.csv")
    texts = [row["content"].split() for row in table(folder / "crossfluence-language.csv")]
    by_words = next(row for row in rows if row["removed"].endswith("with most of the words he"))
    assert int(by_words["texts"]) == min(2, sum(text.count("he") > text.count("she") for text in texts))
    assert sum("random" in row["removed"] for row in rows) == 3
    assert sum("it most" in row["removed"] for row in rows) == 2
    assert len({row["perplexity before"] for row in rows}) == 1
    assert len({row["perplexity after"] for row in rows}) > 1
    page = (folder / "crossfluence-language.html").read_text()
    assert all(row["removed"] in page for row in rows)
    assert f"{float(by_words['perplexity after']):.3f}" in page
    assert len(texts) == 12  # none is held out, where others are given


def test_a_stopped_run_says_what_is_kept_and_goes_on_to_the_same_bytes(folder, monkeypatch):
    from crossfluence import Recipe
    from crossfluence.language.removals import HeldOut

    command = ("model", "texts.jsonl", "--bias", "ask.jsonl", *TRAIN)
    asked, trained, fit, of_model = [], [], Recipe._fit, HeldOut.loss_of

    def stopped(self, model):
        asked.append(model)
        if len(asked) == 5:
            raise KeyboardInterrupt
        return of_model(self, model)

    def counted(self, weights):
        trained.append(weights)
        return fit(self, weights)

    monkeypatch.setattr(Recipe, "_fit", counted)
    assert run(*command, "--out", "whole.html").exit_code in {0, 3}
    whole = len(trained)
    with monkeypatch.context() as patch:
        patch.setattr(HeldOut, "loss_of", stopped)
        found = run(*command, "--out", "page.html")
    assert found.exit_code == 130
    assert re.search(r"The fine-tuned model and 3 finished retrainings are kept in page.html.unfinished", found.output)
    assert not (folder / "page.html").exists()
    before = len(trained)
    found = run(*command, "--out", "page.html")
    assert found.exit_code in {0, 3}, found.output
    for ending in (".csv", "-removals.csv"):
        assert (folder / f"page{ending}").read_bytes() == (folder / f"whole{ending}").read_bytes()
    assert len(trained) - before == whole - 4
    assert not (folder / "page.html.unfinished").exists()


class Killed(BaseException):
    """An end that no handler of errors sees."""


@pytest.mark.parametrize("training", [(), TRAIN])
def test_a_run_killed_between_its_files_goes_on_with_the_same_command(folder, monkeypatch, training):
    from crossfluence.app.report import language as report

    command = ("model", "texts.jsonl", "--ask", "ask.jsonl", "--out", "page.html", *training)

    def killed(*_):
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(report, "language_csv", killed)
        with pytest.raises(Killed):
            run(*command)
    assert (folder / "page.html").exists()
    assert not (folder / "page.csv").exists()
    found = run(*command)
    assert found.exit_code in {0, 3}, found.output
    assert table(folder / "page.csv")
    assert not (folder / "page.html.unfinished").exists()
    found = run(*command)
    assert (found.exit_code, "exists already" in found.output) == (2, True)


def test_a_bias_is_asked_by_official_files_and_by_one_s_own(folder, monkeypatch):
    lines(folder / "own.jsonl", [{"more": "the nurse is late", "less": "the doctor is late"}] * 2)
    assert run("model", "texts.jsonl", "--bias", "own.jsonl").exit_code in {0, 3}
    official = folder / "crows_pairs"
    official.mkdir()
    (official / "crows_pairs_anonymized.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,she was late,he was late,stereo,gender\n"
    )
    monkeypatch.setenv("CROSSFLUENCE_DATA", str(folder))
    found = run("model", "texts.jsonl", "--bias", "crows", "--kind", "gender", "--force")
    assert found.exit_code in {0, 3}, found.output
    assert "crows:" in found.output


def test_a_masked_model_and_plain_text_are_read(folder):
    bert().float().save_pretrained("masked")
    tokenizer(masked=True).save_pretrained("masked")
    (folder / "plain.txt").write_text("the nurse said that she was late\nthe doctor is early\n\nhe was late\n")
    found = run("masked", "plain.txt", "--ask", "ask.jsonl", "--unit", "token")
    assert found.exit_code in {0, 3}, found.output
    assert "3 texts" in found.output


def adapters_of(model, base):
    from peft import LoraConfig, get_peft_model

    found = get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], task_type="CAUSAL_LM"))
    with torch.no_grad():
        for part in found.parameters():
            part.add_(0.1 if part.requires_grad else 0.0)
    found.peft_config["default"].base_model_name_or_path = str(base)
    return found


def test_adapters_are_explained_alone(folder):
    from transformers import AutoModelForCausalLM

    adapters_of(AutoModelForCausalLM.from_pretrained("model"), folder / "model").save_pretrained("adapters")
    found = run("adapters", "texts.jsonl", "--ask", "ask.jsonl")
    assert found.exit_code in {0, 3}, found.output


@pytest.fixture(scope="module")
def fine_tuned(tmp_path_factory):
    """A folder with a model, and checkpoints of a Trainer that went on from it; and the training's recipe."""
    import datasets
    from transformers import AutoModelForCausalLM, DataCollatorForLanguageModeling, Trainer, TrainingArguments

    from crossfluence import language

    whole = tmp_path_factory.mktemp("trainer")
    write_model(whole)
    words = tokenizer()
    texts = [json.loads(line)["text"] for line in (whole / "texts.jsonl").read_text().splitlines()]
    data = datasets.Dataset.from_list([{"input_ids": words(text)["input_ids"]} for text in texts])
    settings = TrainingArguments(
        output_dir=str(whole / "run"), per_device_train_batch_size=3, num_train_epochs=4, learning_rate=1e-2,
        report_to=[], save_strategy="epoch", disable_tqdm=True, use_cpu=True, seed=5, logging_steps=1,
    )  # fmt: skip
    trainer = Trainer(
        AutoModelForCausalLM.from_pretrained(whole / "model"), settings, train_dataset=data,
        data_collator=DataCollatorForLanguageModeling(words, mlm=False), processing_class=words,
    )  # fmt: skip
    recipe = language.recipe(trainer)
    trainer.train()
    return whole, recipe


@pytest.fixture
def checkpoint(fine_tuned, folder):
    shutil.copytree(fine_tuned[0] / "run" / "checkpoint-16", folder / "checkpoint-16")
    return folder / "checkpoint-16"


def column_of(path):
    return torch.tensor([float(row["pronouns"]) for row in sorted(table(path), key=lambda row: int(row["text"]))])


@pytest.mark.parametrize("logged", [True, False])
def test_a_trainer_s_checkpoint_tells_how_the_model_was_fine_tuned(fine_tuned, checkpoint, folder, logged):
    from crossfluence import Horizon, influence
    from crossfluence.language.loading import read_questions

    recipe = fine_tuned[1]
    if not logged:
        told = json.loads((checkpoint / "trainer_state.json").read_text())
        (checkpoint / "trainer_state.json").write_text(json.dumps(told | {"log_history": []}))
    found = run("checkpoint-16", "texts.jsonl", "--ask", "ask.jsonl")
    assert found.exit_code == 0, found.output
    assert "is a guess" not in found.output
    parts = recipe.loss.fn.by_sample([*recipe.data])
    model = recipe.train().eval()
    risk = cf.Risk(model, parts, recipe.data, record=recipe.record())
    ask = read_questions(folder / "ask.jsonl", tokenizer())["pronouns"]
    wanted = influence(risk, ask, Horizon()).values[:, 0].float()
    said = column_of(folder / "crossfluence-language.csv")
    slope = float(said @ wanted / (wanted @ wanted))
    assert float(torch.corrcoef(torch.stack([said, wanted]))[0, 1]) > 0.9
    assert 0.6 < slope < 1.7


def test_settings_of_the_fine_tuning_stand_in_for_its_record(checkpoint, folder):
    options = ("--epochs", 4, "--batch-size", 3)
    assert run("checkpoint-16", "texts.jsonl", "--ask", "ask.jsonl", "--out", "known.html").exit_code == 0
    (checkpoint / "optimizer.pt").unlink()
    found = run("checkpoint-16", "texts.jsonl", "--ask", "ask.jsonl", "--out", "guess.html")
    assert "is a guess" in " ".join(found.output.split())
    told = run("checkpoint-16", "texts.jsonl", "--ask", "ask.jsonl", "--lr", 0.01, *options, "--out", "told.html")
    assert told.exit_code == 0
    assert "is a guess" not in " ".join(told.output.split())
    known, settings = column_of(folder / "known.csv"), column_of(folder / "told.csv")
    assert float(torch.corrcoef(torch.stack([known, settings]))[0, 1]) > 0.8
    assert 0.5 < float(settings @ known / (known @ known)) < 2


@pytest.mark.parametrize(("n", "fits"), [(12, True), (11, True), (24, True), (6, False), (17, False)])
def test_other_texts_than_the_checkpoint_s_are_refused_by_their_number(checkpoint, folder, n, fits):
    texts = (folder / "texts.jsonl").read_text().splitlines()
    (folder / "some.jsonl").write_text("\n".join((texts * 2)[:n]))
    found = run("checkpoint-16", "some.jsonl", "--ask", "ask.jsonl")
    assert (found.exit_code != 2) == fits, found.output
    assert fits or "Needed the texts that the model was fine-tuned on" in " ".join(found.output.split())


@pytest.mark.parametrize("damage", ["cut", "other", "text", "steps", "size"])
def test_a_checkpoint_whose_optimizer_is_not_understood_is_explained_without_it(checkpoint, damage):
    file = checkpoint / "optimizer.pt"
    if damage == "cut":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "other":
        state = torch.load(file)
        state["param_groups"][0]["params"].pop()
        torch.save(state, file)
    elif damage == "text":
        file.write_text("no optimizer")
    else:
        told = json.loads((checkpoint / "trainer_state.json").read_text())
        zero = {"global_step": 0} if damage == "steps" else {"train_batch_size": 0}
        (checkpoint / "trainer_state.json").write_text(json.dumps(told | zero))
    found = run("checkpoint-16", "texts.jsonl", "--ask", "ask.jsonl")
    assert found.exit_code in {0, 3}, found.output
    assert "is a guess" in " ".join(found.output.split()) or found.exit_code == 3


def test_texts_that_are_too_long_are_cut_where_that_is_asked_for(folder):
    (folder / "long.txt").write_text("the nurse " * 8 + "\nshe was late\n")
    found = run("model", "long.txt", "--ask", "ask.jsonl", "--truncate", 10)
    assert found.exit_code in {0, 3}, found.output
    assert "2 texts, 13 tokens" in found.output


def test_a_plan_writes_nothing(folder):
    found = run("model", "texts.jsonl", "--ask", "ask.jsonl", "--plan")
    assert found.exit_code == 0
    assert run("model", "texts.jsonl", "--bias", "ask.jsonl", *TRAIN, "--plan").exit_code == 0
    assert re.search(r"12 texts, 72 tokens\.\nAbout \d+ s and [\d.]+ GiB\.", found.output)
    assert not list(folder.glob("crossfluence-language*"))


def write_strange_models(folder):
    """Folders that people have and that hold no language model, or not all of one."""
    from transformers import BertConfig, BertForSequenceClassification

    llama().float().save_pretrained("untold")
    small = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2}
    BertForSequenceClassification(BertConfig(vocab_size=18, **small)).save_pretrained("classifier")
    t5().float().save_pretrained("t5")
    for name in ("classifier", "t5"):
        tokenizer(masked=True).save_pretrained(name)
    shutil.copytree("model", "damaged")
    weights = folder / "damaged" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-40])
    shutil.copytree("model", "trainer/checkpoint-12")
    shutil.copytree("model", "trainer/checkpoint-6")
    (folder / "one.txt").write_text("the nurse said\n")
    lines(folder / "unprompted.jsonl", [{"prompt": "", "completion": "he", "against": "she"}])


@pytest.mark.parametrize("model", ["untold", "classifier", "t5", "damaged", "trainer"])
def test_a_plan_refuses_what_the_run_would_refuse(folder, model, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write_strange_models(folder)
    whole, plan = (run(model, "texts.jsonl", "--ask", "ask.jsonl", *more) for more in ([], ["--plan"]))
    assert (plan.exit_code, plan.output) == (2, whole.output)


@pytest.mark.parametrize(("arguments", "words"), [
    (["model", "texts.jsonl"], "--ask questions.jsonl"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--unit", "word"], "sentence or token"),
    (["missing", "texts.jsonl", "--ask", "ask.jsonl"], "No model could be loaded from missing"),
    (["model", "missing.jsonl", "--ask", "ask.jsonl"], "no file missing.jsonl"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--field", "body"], "--field"),
    (["model", "empty.txt", "--ask", "ask.jsonl"], "is empty"),
    (["model", "long.txt", "--ask", "ask.jsonl"], "--truncate 10"),
    (["model", "texts.jsonl", "--ask", "same.jsonl"], "zero whatever the model"),
    (["model", "texts.jsonl", "--ask", "alike.jsonl"], "line 1 of alike.jsonl are equal"),
    (["model", "texts.jsonl", "--ask", "number.jsonl"], "prompt: 3; needed a text"),
    (["adapters", "texts.jsonl", "--ask", "ask.jsonl"], "The adapters in adapters do not fit their base model"),
    (["nobody/no-such-model", "texts.jsonl", "--ask", "ask.jsonl"], "a name while there is a network"),
    (["model", "texts.jsonl", "--ask", "wrong.jsonl"], "needed prompt and completion"),
    (["model", "texts.jsonl", "--ask", "broken.jsonl"], "no JSON"),
    (["model", "texts.jsonl", "--bias", "crows"], "--bias-data"),
    (["other", "texts.jsonl", "--ask", "ask.jsonl"], "the tokenizer is not the"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--train", "--remove", "99"], "99 of 11"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--held-out", "missing.txt"], "no file missing.txt"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--held-out", "long.txt", "--train"], "--truncate 10"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--train", "--lr", "-1"], "learning rate"),
    (["model", "texts.jsonl", "--bias", "crows", "--bias-data", ".", "--kind", "size"], "size"),
    (["model", "texts.jsonl", "--bias", "missing.jsonl"], "no file missing.jsonl"),
    (["model", "model", "--ask", "ask.jsonl"], "model is a folder; needed a file"),
    (["untold", "texts.jsonl", "--ask", "ask.jsonl"], "has no tokenizer. Type tokenizer.save_pretrained('untold')"),
    (["classifier", "texts.jsonl", "--ask", "ask.jsonl"], "BertForSequenceClassification, which lacks cls"),
    (["t5", "texts.jsonl", "--ask", "ask.jsonl"], "An encoder-decoder is not trained on plain texts"),
    (["damaged", "texts.jsonl", "--ask", "ask.jsonl"], "could be loaded from damaged"),
    (["trainer", "texts.jsonl", "--ask", "ask.jsonl"], "It holds checkpoints: type trainer/checkpoint-12."),
    (["model/config.json", "texts.jsonl", "--ask", "ask.jsonl"], "is a file; needed the folder of the model: model."),
    (["model", "one.txt", "--ask", "ask.jsonl", "--train"], "Got 0 texts to train on"),
    (["model", "texts.jsonl", "--ask", "unprompted.jsonl"], "needed a prompt before the completion"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--kind", "gender"], "--kind is of a published test"),
    (["model", "texts.jsonl", "--bias", "winobias", "--kind", "gender"], "winobias is about pronouns alone"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--remove", "2"], "--remove is of a training"),
    (["model", "texts.jsonl", "--ask", "unknown.jsonl"], "The tokenizer does not know 'xe', and has '[UNK]' for it"),
    (["model", "texts.jsonl", "--ask", "far.jsonl"], "A question asks about a text of 14 tokens"),
    (["./nowhere", "texts.jsonl", "--ask", "ask.jsonl"], "There is no folder ./nowhere"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--epochs", "2"], "Add --lr, or --train"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--lr", "1e-3", "--batch-size", "12"], "all texts cannot be"),
    (["model", "texts.jsonl", "--bias", "crow"], "none of crows, stereoset, winobias, and no file"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--train", "--lr", "1e9"], "Training diverged"),
    (["model", "texts.jsonl", "--ask", "ask.jsonl", "--out", "page.txt"], ".html"),
])  # fmt: skip
def test_bad_input_is_one_sentence_and_nothing_is_written(folder, arguments, words, monkeypatch):
    monkeypatch.delenv("CROSSFLUENCE_DATA", raising=False)
    (folder / "empty.txt").write_text("\n")
    (folder / "long.txt").write_text("the nurse " * 8 + "\n")
    lines(folder / "same.jsonl", [{"prompt": "the nurse", "completion": " he", "against": " he"}])
    lines(folder / "alike.jsonl", [{"prompt": "the nurse", "completion": " he", "against": "  he"}])
    lines(folder / "number.jsonl", [{"prompt": 3, "completion": " he"}])
    adapters_of(llama(num_key_value_heads=2, head_dim=4).float(), base="model").save_pretrained("adapters")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    lines(folder / "unknown.jsonl", [{"template": "the nurse said that {he/xe} was late"}])
    lines(folder / "far.jsonl", [{"template": "the nurse said that " * 2 + "{he/she} was that late and late"}])
    lines(folder / "wrong.jsonl", [{"question": "who?"}])
    (folder / "crows_pairs_anonymized.csv").write_text(
        ",sent_more,sent_less,stereo_antistereo,bias_type\n0,she was late,he was late,stereo,gender\n"
    )
    (folder / "broken.jsonl").write_text("{\n")
    gpt2(vocab_size=8, pad_token_id=0, bos_token_id=1, eos_token_id=1).float().save_pretrained("other")
    tokenizer().save_pretrained("other")
    write_strange_models(folder)
    found = run(*arguments)
    assert found.exit_code == 2, found.output
    assert words in " ".join(found.output.split())
    assert "Traceback" not in found.output
    assert not [file for ending in ("html", "csv", "unfinished") for file in folder.glob(f"crossfluence*.{ending}")]
