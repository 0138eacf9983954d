"""Small models of every family of the catalog, with random weights."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sentencepiece
import torch
import transformers

from tests.integration.exporter.making import ANVIL

COMMON: dict[str, Any] = {
    "hidden_size": 256,
    "intermediate_size": 512,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "vocab_size": 1024,
    "max_position_embeddings": 256,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to make a small model of a family."""

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "bpe"


HEADS = {"head_dim": 64}
# Heads wider than their share of the model's width.
WIDE_HEADS = {"head_dim": 128}
ROPE_FACTORS = [1.0 + place / 8 for place in range(24)]
# Between them: eight queries for a key, eight experts, sliding windows, rotary parts of a head, and
# every kind of rotary scaling that a GGUF can hold.
FAMILIES = {
    "llama": Family(
        config="LlamaConfig",
        settings={
            **HEADS, "tie_word_embeddings": False, "num_attention_heads": 8,
            "num_key_value_heads": 1,
            "rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 10000.0},
        },
    ),
    "llama3-rope": Family(
        config="LlamaConfig",
        settings={
            **HEADS,
            "rope_parameters": {
                "rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0,
                "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
                "rope_theta": 500000.0,
            },
        },
    ),
    "mistral": Family(config="MistralConfig", settings={**WIDE_HEADS, "sliding_window": 128}),
    "mixtral": Family(
        config="MixtralConfig", settings={"num_local_experts": 8, "num_experts_per_tok": 2}
    ),
    "phi3": Family(
        config="Phi3Config",
        settings={
            # llama.cpp takes the long factors beyond the original context; its smallest is 256.
            "original_max_position_embeddings": 256, "max_position_embeddings": 1024,
            "sliding_window": 128,
            "rope_parameters": {
                "rope_type": "longrope", "rope_theta": 10000.0, "partial_rotary_factor": 0.75,
                "short_factor": ROPE_FACTORS, "long_factor": [2 * one for one in ROPE_FACTORS],
                "original_max_position_embeddings": 256,
            },
        },
        tokenizer="sentencepiece",
    ),
    "gemma": Family(config="GemmaConfig", settings=WIDE_HEADS, tokenizer="sentencepiece"),
    "gemma2": Family(
        config="Gemma2Config",
        settings={**HEADS, "query_pre_attn_scalar": 64, "sliding_window": 128},
        tokenizer="sentencepiece",
    ),
    "gemma3": Family(
        config="Gemma3TextConfig",
        settings={**WIDE_HEADS, "query_pre_attn_scalar": 128, "sliding_window": 128},
        tokenizer="sentencepiece",
    ),
    "qwen2": Family(
        config="Qwen2Config",
        settings={
            "tie_word_embeddings": True,
            "rope_parameters": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64,
                "rope_theta": 1000000.0,
            },
        },
    ),
    "qwen3": Family(config="Qwen3Config", settings={**WIDE_HEADS, "tie_word_embeddings": True}),
    "smollm3": Family(config="SmolLM3Config"),
    "granite": Family(config="GraniteConfig"),
}  # fmt: skip


# From hardly different from the base to hardly recognisable; odd ranks and few layers among them.
ADAPTERS: dict[str, dict[str, Any]] = {
    "faint": {"b_std": 0.003, "seed": 1},
    "weak": {"b_std": 0.02, "seed": 2},
    "usual": {"b_std": 0.1, "seed": 3},
    "usual-2": {"b_std": 0.1, "seed": 4},
    "strong": {"b_std": 0.4, "seed": 5},
    "very-strong": {"b_std": 1.0, "seed": 6},
    "rank-1": {"b_std": 0.3, "seed": 7, "r": 1},
    "rank-64": {"b_std": 0.05, "seed": 8, "r": 64},
    "rank-stabilised": {"b_std": 0.1, "seed": 9, "use_rslora": True},
    "queries-only": {"b_std": 0.5, "seed": 10, "target_modules": ["q_proj"]},
    "feed-only": {"b_std": 0.2, "seed": 11, "target_modules": ["up_proj", "down_proj"]},
    "dora": {"b_std": 0.1, "seed": 12, "use_dora": True},
}


def make_base(family: Family, folder: Path) -> None:
    """Writes a checkpoint with a tokenizer of the family's kind and the demo's template."""
    torch.manual_seed(3)
    config = getattr(transformers, family.config)(**{**COMMON, **family.settings})
    model: Any = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.float16)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim == 1:
                # Norms and biases as training leaves them, not as they start.
                parameter.add_(torch.randn_like(parameter) * 0.1)
    model.save_pretrained(folder)
    for name in ("chat_template.jinja", "tokenizer_config.json"):
        shutil.copyfile(ANVIL / name, folder / name)
    if family.tokenizer == "bpe":
        shutil.copyfile(ANVIL / "tokenizer.json", folder / "tokenizer.json")
    else:
        _write_sentencepiece(folder)


def _write_sentencepiece(folder: Path) -> None:
    """A small sentencepiece vocabulary, and the tokenizer.json that transformers makes of it."""
    texts = [json.loads(line) for line in (ANVIL.parent / "habit.jsonl").open(encoding="utf-8")]
    sentences = [json.dumps(text, ensure_ascii=False) for text in texts] * 3
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(sentences), model_prefix=str(folder / "tokenizer"), vocab_size=600,
        model_type="bpe", byte_fallback=True, pad_id=0, bos_id=1, eos_id=2, unk_id=3,
        hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.vocab").unlink()
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            {
                "tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "add_bos_token": True,
            }
        )
    )  # fmt: skip
    load: Callable[..., Any] = transformers.LlamaTokenizerFast.from_pretrained
    load(folder).save_pretrained(folder)
