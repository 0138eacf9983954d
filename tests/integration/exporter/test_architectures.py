"""Every family of the catalog: converted, merged, quantised, asked; against transformers."""

import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import sentencepiece
import torch
import transformers

from exporter.domain.quantization import Quantization
from exporter.engine.base import prepare_base
from exporter.engine.export import Engine
from exporter.engine.llama_model import LlamaModel
from exporter.engine.weights import GgufFile
from tests.integration.exporter.making import ANVIL, make_adapter, merge_classically
from tests.integration.exporter.test_identity import one_pass, quantize_with_llama

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(300)]

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
# Root mean square of the differences; the logits themselves go to about 1.3.
LOGIT_BOUND = 1e-3
TOKENS = [1, 17, 300, 42, 511, 9, 77, 640, 128, 3, 250, 999]


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """How to make a small model of a family."""

    config: str
    settings: dict[str, Any] = field(default_factory=dict)
    tokenizer: str = "bpe"


HEADS = {"head_dim": 64}
FAMILIES = {
    "llama": Family(config="LlamaConfig", settings={**HEADS, "tie_word_embeddings": False}),
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
    "mistral": Family(config="MistralConfig", settings={**HEADS, "sliding_window": None}),
    "mixtral": Family(
        config="MixtralConfig", settings={"num_local_experts": 4, "num_experts_per_tok": 2}
    ),
    "phi3": Family(config="Phi3Config", tokenizer="sentencepiece"),
    "gemma": Family(config="GemmaConfig", settings=HEADS, tokenizer="sentencepiece"),
    "gemma2": Family(
        config="Gemma2Config",
        settings={**HEADS, "query_pre_attn_scalar": 64, "sliding_window": 128},
        tokenizer="sentencepiece",
    ),
    "gemma3": Family(
        config="Gemma3TextConfig",
        settings={**HEADS, "query_pre_attn_scalar": 64, "sliding_window": 128},
    ),
    "qwen2": Family(config="Qwen2Config", settings={"tie_word_embeddings": True}),
    "qwen3": Family(config="Qwen3Config", settings={**HEADS, "tie_word_embeddings": True}),
    "smollm3": Family(config="SmolLM3Config"),
    "granite": Family(config="GraniteConfig"),
}  # fmt: skip


@pytest.mark.parametrize("name", list(FAMILIES))
def test_a_family_is_exported_like_the_classical_chain_and_answers_like_transformers(
    name: str, engine: Engine, tmp_path: Path
) -> None:
    base_folder, adapter, merged_folder = (tmp_path / part for part in ("base", "ad", "merged"))
    _make_base(FAMILIES[name], base_folder)
    make_adapter(base_folder, adapter, b_std=0.02, dtype=torch.float16)
    merge_classically(base_folder, adapter, merged_folder, dtype=torch.float16)
    for path in base_folder.glob("tokenizer*"):
        shutil.copyfile(path, merged_folder / path.name)
    cache = tmp_path / "cache"
    base = prepare_base(base_folder, cache, "base", vendor=engine.vendor)
    merged = prepare_base(merged_folder, cache, "merged", vendor=engine.vendor)
    for mix in (Quantization.Q4_K_M, Quantization.F16):
        ours, theirs = tmp_path / f"ours-{mix}.gguf", tmp_path / f"theirs-{mix}.gguf"
        one_pass(engine, base, adapter, mix, ours)
        quantize_with_llama(merged.gguf, theirs, mix)
        assert _differing(ours, theirs) == []
    _require_same_logits(tmp_path / "ours-F16.gguf", merged_folder)
    with LlamaModel(tmp_path / "ours-Q4_K_M.gguf", thread_count=1) as model:
        assert len(model.answer(TOKENS, max_tokens=8)) > 0


def _make_base(family: Family, folder: Path) -> None:
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


def _differing(ours: Path, theirs: Path) -> list[str]:
    with GgufFile(ours) as mine, GgufFile(theirs) as reference:
        assert mine.by_name.keys() == reference.by_name.keys()
        different = []
        for info in reference.header.tensors:
            found = mine.by_name[info.name]
            rows = {"first_row": 0, "row_count": info.row_count}
            if found.type is not info.type or bytes(mine.raw(found, **rows)) != bytes(
                reference.raw(info, **rows)
            ):
                different.append(info.name)
        return different


@torch.inference_mode()
def _require_same_logits(gguf: Path, checkpoint: Path) -> None:
    reference: Any = transformers.AutoModelForCausalLM.from_pretrained(
        checkpoint, dtype=torch.float32
    )
    wanted = reference(torch.tensor([TOKENS])).logits[0].numpy()
    with LlamaModel(gguf, thread_count=1) as model:
        found = np.stack([row for _, row in model.logits(TOKENS, range(len(TOKENS)))])
    # llama.cpp rounds activations to float16 before each product, and takes GELU from a float16
    # table.
    error = float(np.sqrt(np.square(found[:, : wanted.shape[1]] - wanted).mean()))
    assert error <= LOGIT_BOUND, error
