"""Tiny models of `transformers`, one for each architecture, with what each reads."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

TOKENS, LENGTH, WIDTH = 60, 24, 48
USUAL = {
    "vocab_size": TOKENS,
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODERN = USUAL | {"num_key_value_heads": 1, "head_dim": 24}
IMAGES = {
    "hidden_size": WIDTH,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "image_size": 16,
    "patch_size": 4,
    "num_channels": 3,
    "num_labels": 5,
}
TWO_SIDES = {
    "vocab_size": TOKENS,
    "d_model": WIDTH,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 24,
    "decoder_ffn_dim": 24,
    "max_position_embeddings": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "decoder_start_token_id": 2,
    "forced_eos_token_id": 2,
}
T5 = {
    "vocab_size": TOKENS,
    "d_model": WIDTH,
    "d_kv": 8,
    "d_ff": 24,
    "num_layers": 1,
    "num_decoder_layers": 1,
    "num_heads": 2,
    "decoder_start_token_id": 0,
    "pad_token_id": 0,
    "relative_attention_num_buckets": 8,
}
SPEECH = {
    "hidden_size": WIDTH,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": (8, 8),
    "conv_stride": (4, 2),
    "conv_kernel": (8, 4),
    "num_conv_pos_embeddings": 8,
    "num_conv_pos_embedding_groups": 2,
    "num_labels": 5,
    "classifier_proj_size": 8,
    "num_feat_extract_layers": 2,
}


def texts(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_ids": torch.randint(3, TOKENS, (n, LENGTH), generator=generator)}


def pairs(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {f"{side}input_ids": torch.randint(3, TOKENS, (n, LENGTH), generator=generator) for side in ("", "decoder_")}


def images(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"pixel_values": torch.randn(n, 3, 16, 16, generator=generator)}


def sounds(n: int, generator: torch.Generator) -> dict[str, Tensor]:
    return {"input_values": torch.randn(n, 160, generator=generator)}


@dataclass(frozen=True)
class Architecture:
    """A model of `transformers` and its data.

    Attributes:
        name: `NameConfig` is its configuration.
        head: `NameHead` is the model.
        settings: Of the configuration.
        data: Makes a batch.
    """

    name: str
    head: str
    settings: dict[str, Any] = field(default_factory=dict)
    data: Callable[[int, torch.Generator], dict[str, Tensor]] = texts

    def model(self) -> nn.Module:
        import transformers

        torch.manual_seed(0)
        config = getattr(transformers, f"{self.name}Config")(**self.settings)
        model = getattr(
            transformers,
            self.head
            if self.name in self.head or self.name.removesuffix("Text") in self.head
            else f"{self.name}{self.head}",
        )(config).eval()
        for name, part in model.named_parameters():
            if not name.endswith("A_log"):
                nn.init.normal_(part, std=0.2) if part.ndim > 1 else part.data.add_(0.1 * torch.randn_like(part))
        return model


def losses(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """Of fixed labels: what is measured is cost, and gradients."""
    z = model(**batch).logits.flatten(1).float()
    return F.cross_entropy(z, torch.ones(len(z), dtype=torch.long), reduction="none")


def by_sample(model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """Gradients `(b, ...)` by each parameter, of one sample after another."""
    rows = []
    for number in range(len(next(iter(batch.values())))):
        one = {name: part[number : number + 1] for name, part in batch.items()}
        with torch.enable_grad():
            named = dict(model.named_parameters())
            found = torch.autograd.grad(
                losses(model, one).sum(), list(named.values()), allow_unused=True, materialize_grads=True
            )
        rows.append(dict(zip(named, found, strict=True)))
    return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}


def epoch(model: nn.Module, data: list[dict[str, Tensor]]) -> None:
    """Forwards and backwards."""
    for batch in data:
        losses(model, batch).sum().backward()
    model.zero_grad()


def seconds(work: Callable[[], object]) -> float:
    """CPU seconds."""
    start = time.process_time()
    work()
    return time.process_time() - start


LM, CLASSES = "ForCausalLM", "ForSequenceClassification"
QUICK = [
    Architecture(
        "GPT2", "LMHeadModel", {"vocab_size": TOKENS, "n_positions": 32, "n_embd": WIDTH, "n_layer": 2, "n_head": 2}
    ),
    Architecture("Llama", LM, MODERN),
    Architecture("Gemma3Text", "Gemma3ForCausalLM", MODERN),
    Architecture("Mixtral", LM, MODERN | {"num_local_experts": 4, "num_experts_per_tok": 2}),
    Architecture("Bert", "ForMaskedLM", USUAL),
    Architecture("T5", "ForConditionalGeneration", T5, pairs),
    Architecture("ViT", "ForImageClassification", IMAGES, images),
    Architecture(
        "Mamba",
        LM,
        {"vocab_size": TOKENS, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
    ),
]
OTHERS = [
    Architecture("Qwen2", LM, MODERN),
    Architecture("Qwen3", LM, MODERN),
    Architecture("Qwen3Moe", LM, MODERN | {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}),
    Architecture("Gemma", LM, MODERN),
    Architecture("Gemma2", LM, MODERN),
    Architecture("Mistral", LM, MODERN),
    Architecture("Phi", LM, USUAL),
    Architecture("Phi3", LM, MODERN),
    Architecture("Olmo2", LM, MODERN),
    Architecture("Olmoe", LM, MODERN | {"num_experts": 4, "num_experts_per_tok": 2}),
    Architecture("Cohere", LM, MODERN),
    Architecture("Granite", LM, MODERN),
    Architecture("StableLm", LM, MODERN),
    Architecture("Starcoder2", LM, MODERN),
    Architecture("GPTNeoX", LM, USUAL),
    Architecture(
        "GPTNeo",
        LM,
        {
            "vocab_size": TOKENS,
            "max_position_embeddings": 32,
            "hidden_size": WIDTH,
            "num_layers": 2,
            "num_heads": 2,
            "attention_types": [[["global", "local"], 1]],
            "window_size": 8,
        },
    ),
    Architecture(
        "GPTJ",
        LM,
        {"vocab_size": TOKENS, "n_positions": 32, "n_embd": WIDTH, "n_layer": 2, "n_head": 2, "rotary_dim": 4},
    ),
    Architecture("Bloom", LM, {"vocab_size": TOKENS, "hidden_size": WIDTH, "n_layer": 2, "n_head": 2}),
    Architecture(
        "OPT",
        LM,
        {
            "vocab_size": TOKENS,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "ffn_dim": 24,
            "num_attention_heads": 2,
            "max_position_embeddings": 32,
            "word_embed_proj_dim": WIDTH,
            "pad_token_id": 0,
        },
    ),
    Architecture("Roberta", CLASSES, USUAL),
    Architecture(
        "DistilBert",
        CLASSES,
        {
            "vocab_size": TOKENS,
            "dim": WIDTH,
            "n_layers": 2,
            "n_heads": 2,
            "hidden_dim": 24,
            "max_position_embeddings": 32,
        },
    ),
    Architecture("Albert", CLASSES, USUAL | {"embedding_size": 8}),
    Architecture("Electra", CLASSES, USUAL | {"embedding_size": 8}),
    Architecture(
        "DebertaV2",
        CLASSES,
        USUAL | {"relative_attention": True, "pos_att_type": ["p2c", "c2p"], "position_buckets": 8},
    ),
    Architecture("ModernBert", CLASSES, USUAL | {"cls_token_id": 1, "sep_token_id": 2}),
    Architecture("MPNet", CLASSES, USUAL),
    Architecture(
        "XLNet",
        LM[:0] + "LMHeadModel",
        {"vocab_size": TOKENS, "d_model": WIDTH, "n_layer": 2, "n_head": 2, "d_inner": 24},
    ),
    Architecture("Bart", "ForConditionalGeneration", TWO_SIDES, pairs),
    Architecture("Pegasus", "ForConditionalGeneration", TWO_SIDES, pairs),
    Architecture("MT5", "ForConditionalGeneration", T5, pairs),
    Architecture("Dinov2", "ForImageClassification", IMAGES, images),
    Architecture("DeiT", "ForImageClassification", IMAGES, images),
    Architecture("Beit", "ForImageClassification", IMAGES, images),
    Architecture(
        "ConvNext",
        "ForImageClassification",
        {
            "num_channels": 3,
            "patch_size": 2,
            "hidden_sizes": [8, 16],
            "depths": [1, 1],
            "num_stages": 2,
            "num_labels": 5,
            "image_size": 16,
        },
        images,
    ),
    Architecture(
        "Swin",
        "ForImageClassification",
        {
            "image_size": 16,
            "patch_size": 2,
            "embed_dim": 8,
            "depths": [1, 1],
            "num_heads": [2, 2],
            "window_size": 4,
            "num_labels": 5,
        },
        images,
    ),
    Architecture(
        "ResNet",
        "ForImageClassification",
        {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "num_labels": 5},
        images,
    ),
    Architecture("Wav2Vec2", CLASSES, SPEECH, sounds),
    Architecture("Hubert", CLASSES, SPEECH, sounds),
    Architecture(
        "Mamba2",
        LM,
        {
            "vocab_size": TOKENS,
            "hidden_size": WIDTH,
            "num_hidden_layers": 2,
            "state_size": 4,
            "num_heads": 4,
            "head_dim": 24,
            "n_groups": 1,
            "chunk_size": 8,
        },
    ),
    Architecture(
        "FalconMamba",
        LM,
        {"vocab_size": TOKENS, "hidden_size": WIDTH, "num_hidden_layers": 2, "state_size": 4, "time_step_rank": 4},
    ),
]
