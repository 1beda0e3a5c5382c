"""Tiny models of transformers with random weights, and a tokenizer of whole words for them."""

from __future__ import annotations

import torch
import transformers as tr
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = [*SPECIAL, "the", "nurse", "doctor", "said", "that", "he", "she", "was", "late", "early", "a", "and", "is"]
COMMON = {"vocab_size": len(WORDS), "pad_token_id": 0}


def tokenizer(*, masked: bool = False, start: bool = False) -> tr.PreTrainedTokenizerFast:
    raw = Tokenizer(models.WordLevel({word: row for row, word in enumerate(WORDS)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    options = {"pad_token": "[PAD]", "unk_token": "[UNK]"}
    if masked:
        raw.post_processor = processors.TemplateProcessing(
            single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
        )
        options |= {"mask_token": "[MASK]", "cls_token": "[CLS]", "sep_token": "[SEP]"}
    if start:
        options |= {"bos_token": "[CLS]"}
    return tr.PreTrainedTokenizerFast(tokenizer_object=raw, **options)


def shaken(model: nn.Module, seed: int = 0, size: float = 0.5) -> nn.Module:
    """In float64 and evaluation mode, with random weights: biases too, and scales of norms around one."""
    generator = torch.Generator().manual_seed(seed)
    model = model.double().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            centre = 1.0 if "weight" in name and parameter.ndim == 1 else 0.0
            parameter.copy_(centre + size * torch.randn(parameter.shape, generator=generator, dtype=torch.float64))
    return model


def gpt2(**options) -> nn.Module:
    config = tr.GPT2Config(n_embd=4, n_layer=1, n_head=2, n_positions=10, n_inner=4,
                           **COMMON | {"bos_token_id": 2, "eos_token_id": 3} | options)  # fmt: skip
    return shaken(tr.GPT2LMHeadModel(config))


def llama(**options) -> nn.Module:
    sizes = {"hidden_size": 4, "intermediate_size": 4, "num_hidden_layers": 1, "num_attention_heads": 2,
             "num_key_value_heads": 1, "max_position_embeddings": 10}  # fmt: skip
    config = tr.LlamaConfig(**COMMON | sizes | {"bos_token_id": 2, "eos_token_id": 3} | options)
    return shaken(tr.LlamaForCausalLM(config))


def _bert(**options) -> tr.BertConfig:
    return tr.BertConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2, max_position_embeddings=10,
        **COMMON | options,
    )  # fmt: skip


def bert(**options) -> nn.Module:
    return shaken(tr.BertForMaskedLM(_bert(**options)))


def bert_encoder() -> nn.Module:
    return shaken(tr.BertModel(_bert()))


def bert_classifier(**options) -> nn.Module:
    return shaken(tr.BertForSequenceClassification(_bert(**{"num_labels": 3} | options)))


def bert_tagger() -> nn.Module:
    return shaken(tr.BertForTokenClassification(_bert(num_labels=3)))


def t5(**options) -> nn.Module:
    config = tr.T5Config(
        d_model=4, d_kv=2, d_ff=4, num_layers=1, num_heads=2, decoder_start_token_id=0, eos_token_id=3,
        relative_attention_num_buckets=4, **COMMON | options,
    )  # fmt: skip
    return shaken(tr.T5ForConditionalGeneration(config))


def vit() -> nn.Module:
    config = tr.ViTConfig(
        hidden_size=4, intermediate_size=4, num_hidden_layers=1, num_attention_heads=2, image_size=4, patch_size=2,
        num_channels=1, num_labels=3,
    )  # fmt: skip
    return shaken(tr.ViTForImageClassification(config))


def lora() -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(r=2, target_modules=["q_proj", "v_proj"], lora_dropout=0.0, task_type="CAUSAL_LM")
    return shaken(get_peft_model(llama(), config), seed=1)


def texts(n: int = 12, longest: int = 6, seed: int = 0) -> dict[str, torch.Tensor]:
    """Random texts of different length, padded on the right."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(5, len(WORDS), (n, longest), generator=generator)
    lengths = torch.randint(3, longest + 1, (n, 1), generator=generator)
    mask = (torch.arange(longest) < lengths).long()
    return {"input_ids": ids * mask, "attention_mask": mask}
