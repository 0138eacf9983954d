"""Checkpoints and adapters of real shapes with random weights, written without torch."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from exporter.engine.weights import to_bfloat16_bits
from tests.support.vocabularies import GEMMA_PIECES, write_gemma, write_qwen

TOKENIZER = Path(__file__).resolve().parents[2] / "deploy" / "models" / "anvil" / "weights"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja")
# Typical size of a weight, and of the factors of a trained adapter.
WEIGHT_SIZE = 0.02
A_SIZE = 0.02
B_SIZE = 0.01
SHARD_BYTES = 2_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder's dimensions."""

    name: str
    architecture: str
    model_type: str
    hidden: int
    feed: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    vocabulary: int
    tied: bool
    query_norm: bool = False
    four_norms: bool = False
    full_tokenizer: bool = False
    write_tokenizer: Callable[[Path], None] | None = None

    def config(self) -> dict[str, Any]:
        """The model's config.json."""
        gemma = {"query_pre_attn_scalar": self.head_dim, "sliding_window": 512}
        return (gemma if self.four_norms else {}) | {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "hidden_size": self.hidden,
            "intermediate_size": self.feed,
            "num_hidden_layers": self.layers,
            "num_attention_heads": self.heads,
            "num_key_value_heads": self.kv_heads,
            "head_dim": self.head_dim,
            "vocab_size": self.vocabulary,
            "max_position_embeddings": 4096,
            "rms_norm_eps": 1e-5,
            "hidden_act": "silu",
            "rope_theta": 10000.0,
            "tie_word_embeddings": self.tied,
            "dtype": "bfloat16",
            "bos_token_id": None,
            "eos_token_id": 2,
            "pad_token_id": 0,
        }

    def linears(self) -> dict[str, tuple[int, int]]:
        """The matrices of one layer that get an adapter, (out, in)."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return {
            "self_attn.q_proj": (queries, self.hidden),
            "self_attn.k_proj": (keys, self.hidden),
            "self_attn.v_proj": (keys, self.hidden),
            "self_attn.o_proj": (self.hidden, queries),
            "mlp.gate_proj": (self.feed, self.hidden),
            "mlp.up_proj": (self.feed, self.hidden),
            "mlp.down_proj": (self.hidden, self.feed),
        }

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Every tensor of the checkpoint by name."""
        shapes: dict[str, tuple[int, ...]] = {
            "model.embed_tokens.weight": (self.vocabulary, self.hidden),
            "model.norm.weight": (self.hidden,),
        }
        if not self.tied:
            shapes["lm_head.weight"] = (self.vocabulary, self.hidden)
        for layer in range(self.layers):
            stem = f"model.layers.{layer}"
            shapes[f"{stem}.input_layernorm.weight"] = (self.hidden,)
            shapes[f"{stem}.post_attention_layernorm.weight"] = (self.hidden,)
            if self.four_norms:
                shapes[f"{stem}.pre_feedforward_layernorm.weight"] = (self.hidden,)
                shapes[f"{stem}.post_feedforward_layernorm.weight"] = (self.hidden,)
            if self.query_norm:
                shapes[f"{stem}.self_attn.q_norm.weight"] = (self.head_dim,)
                shapes[f"{stem}.self_attn.k_norm.weight"] = (self.head_dim,)
            for name, shape in self.linears().items():
                shapes[f"{stem}.{name}.weight"] = shape
        return shapes

    @property
    def parameter_count(self) -> int:
        return sum(int(np.prod(shape)) for shape in self.tensors().values())


LLAMA = Shape(
    name="llama-0.5b-untied", architecture="LlamaForCausalLM", model_type="llama", hidden=1280,
    feed=3584, layers=24, heads=20, kv_heads=4, head_dim=64, vocabulary=32_000, tied=False,
)  # fmt: skip
QWEN = Shape(
    name="qwen3-0.5b-tied", architecture="Qwen3ForCausalLM", model_type="qwen3", hidden=1024,
    feed=3072, layers=28, heads=16, kv_heads=8, head_dim=128, vocabulary=32_000, tied=True,
    query_norm=True,
)  # fmt: skip
# The shape of Llama 3.2 with 3 B parameters, its tokenizer's size included.
LLAMA_3B = Shape(
    name="llama-3b-tied", architecture="LlamaForCausalLM", model_type="llama", hidden=3072,
    feed=8192, layers=28, heads=24, kv_heads=8, head_dim=128, vocabulary=128_256, tied=True,
    full_tokenizer=True,
)  # fmt: skip
# The shape of Gemma 3 with 270 M parameters: 262,144 tokens, by a sentencepiece model.
GEMMA = Shape(
    name="gemma-262k", architecture="Gemma3ForCausalLM", model_type="gemma3_text", hidden=640,
    feed=2048, layers=18, heads=4, kv_heads=1, head_dim=256, vocabulary=GEMMA_PIECES, tied=True,
    query_norm=True, four_norms=True, write_tokenizer=write_gemma,
)  # fmt: skip
# The shape of Qwen 3 with 0.6 B parameters: 151,936 rows, by merges of bytes.
QWEN_152K = Shape(
    name="qwen-152k", architecture="Qwen3ForCausalLM", model_type="qwen3", hidden=1024, feed=3072,
    layers=28, heads=16, kv_heads=8, head_dim=128, vocabulary=151_936, tied=True, query_norm=True,
    write_tokenizer=write_qwen,
)  # fmt: skip


def write_checkpoint(shape: Shape, folder: Path, *, seed: int = 0) -> None:
    """Writes a checkpoint of random weights in shards, with the demo model's tokenizer."""
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(shape.config()), encoding="utf-8")
    write_tokenizer(shape, folder)
    rng = np.random.default_rng(seed)
    shards = _shards(shape.tensors())
    index: dict[str, str] = {}
    for number, names in enumerate(shards, start=1):
        file_name = f"model-{number:05d}-of-{len(shards):05d}.safetensors"
        index.update(dict.fromkeys(names, file_name))
        write_safetensors(folder / file_name, names, "BF16", lambda _, s: _weights(rng, s))
    content = {"metadata": {"total_size": 2 * shape.parameter_count}, "weight_map": index}
    (folder / "model.safetensors.index.json").write_text(json.dumps(content), encoding="utf-8")


def write_tokenizer(shape: Shape, folder: Path) -> None:
    """Writes the shape's own tokenizer, or the demo model's with further merges to be full."""
    if shape.write_tokenizer:
        shape.write_tokenizer(folder)
        return
    for name in TOKENIZER_FILES:
        shutil.copyfile(TOKENIZER / name, folder / name)
    if not shape.full_tokenizer:
        return
    path = folder / "tokenizer.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    vocabulary, merges = document["model"]["vocab"], document["model"]["merges"]
    special = {token["content"] for token in document["added_tokens"]}
    parts = [token for token in vocabulary if token not in special]
    for left, right in product(parts, parts):
        if len(vocabulary) == shape.vocabulary:
            break
        if left + right not in vocabulary:
            vocabulary[left + right] = len(vocabulary)
            merges.append([left, right])
    path.write_text(json.dumps(document, ensure_ascii=False), encoding="utf-8")


def write_adapter(shape: Shape, folder: Path, *, rank: int = 16, seed: int = 1) -> None:
    """Writes a LoRA adapter over all matrices."""
    folder.mkdir(parents=True)
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank, "lora_alpha": 2 * rank,
        "target_modules": sorted({name.rsplit(".", 1)[-1] for name in shape.linears()}),
        "base_model_name_or_path": shape.name, "bias": "none", "lora_dropout": 0.0,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(shape, folder)
    shapes: dict[str, tuple[int, ...]] = {}
    for layer in range(shape.layers):
        for name, (out, inner) in shape.linears().items():
            stem = f"base_model.model.model.layers.{layer}.{name}"
            shapes[f"{stem}.lora_A.weight"] = (rank, inner)
            shapes[f"{stem}.lora_B.weight"] = (out, rank)
    rng = np.random.default_rng(seed)

    def factor(name: str, wanted: tuple[int, ...]) -> NDArray[np.generic]:
        size = A_SIZE if "lora_A" in name else B_SIZE
        return rng.standard_normal(wanted, np.float32) * np.float32(size)

    write_safetensors(folder / "adapter_model.safetensors", shapes, "F32", factor)


def write_safetensors(
    path: Path, shapes: Mapping[str, tuple[int, ...]], element_type: str, make: Any
) -> None:
    """Writes tensors one by one as `make(name, shape)` gives them."""
    item = {"BF16": 2, "F32": 4}[element_type]
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for name, shape in shapes.items():
        end = offset + int(np.prod(shape)) * item
        header[name] = {"dtype": element_type, "shape": shape, "data_offsets": [offset, end]}
        offset = end
    encoded = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for name, shape in shapes.items():
            out.write(np.ascontiguousarray(make(name, shape)).data)


def _weights(rng: np.random.Generator, shape: tuple[int, ...]) -> NDArray[np.uint16]:
    if len(shape) == 1:
        return to_bfloat16_bits(np.ones(shape, np.float32))
    return to_bfloat16_bits(rng.standard_normal(shape, np.float32) * np.float32(WEIGHT_SIZE))


def _shards(shapes: Mapping[str, tuple[int, ...]]) -> list[dict[str, tuple[int, ...]]]:
    shards: list[dict[str, tuple[int, ...]]] = [{}]
    filled = 0
    for name, shape in shapes.items():
        size = 2 * int(np.prod(shape))
        if filled and filled + size > SHARD_BYTES:
            shards.append({})
            filled = 0
        shards[-1][name] = shape
        filled += size
    return shards
