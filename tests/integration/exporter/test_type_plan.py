"""The type plan against llama.cpp's own dry run, over architectures, depths and odd shapes."""

import ctypes
import re
from dataclasses import dataclass
from pathlib import Path

import llama_cpp
import pytest

from exporter.domain import gguf_format
from exporter.domain.gguf_format import Metadata, ValueKind
from exporter.domain.quantization import Quantization, TensorType
from exporter.engine import llama_model, writer

pytestmark = pytest.mark.integration

_LINE = re.compile(r"\] +(\S+) +- \[.*?\], type = +(\w+),.*?size = .*?(?:\((\w+)\))?$")


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """What decides a plan."""

    architecture: str = "llama"
    layers: int = 4
    heads: int = 8
    kv_heads: int = 8
    hidden: int = 256
    feed: int = 512
    experts: int = 0
    tied: bool = False
    fused: bool = False


MODELS = {
    "llama": Model(),
    "tied": Model(tied=True),
    "grouped": Model(layers=32, heads=32, kv_heads=8, hidden=512),
    "24-layers": Model(layers=24, kv_heads=4),
    "28-layers": Model(layers=28, kv_heads=2, tied=True),
    "1-layer": Model(layers=1),
    "3-layers": Model(layers=3, kv_heads=1),
    "70b": Model(layers=80, heads=16, kv_heads=2),
    "65b": Model(layers=80, heads=16, kv_heads=16),
    "qwen2-72b": Model(architecture="qwen2", layers=80, heads=16, kv_heads=2),
    "qwen3": Model(architecture="qwen3", layers=36, kv_heads=2, tied=True),
    "gemma2": Model(architecture="gemma2", layers=26, kv_heads=4, tied=True),
    "gemma3": Model(architecture="gemma3", layers=18, kv_heads=1, tied=True),
    "phi3": Model(architecture="phi3", layers=32, fused=True),
    "falcon": Model(architecture="falcon", layers=32, kv_heads=1, fused=True),
    "mixtral": Model(layers=32, heads=32, kv_heads=8, experts=8, hidden=512),
    "4-experts": Model(layers=6, experts=4, kv_heads=2),
    "odd-rows": Model(hidden=96, feed=160, heads=4, kv_heads=4),
    "very-odd-rows": Model(hidden=100, feed=250, heads=4, kv_heads=4, tied=True),
    "odd-feed": Model(feed=704, layers=12),
}


@pytest.mark.parametrize("mix", list(Quantization))
@pytest.mark.parametrize("name", list(MODELS))
def test_every_tensor_gets_the_type_that_llama_gives_it(
    name: str, mix: Quantization, tmp_path: Path
) -> None:
    path = tmp_path / "model.gguf"
    metadata, tensors = _describe(MODELS[name])
    header = gguf_format.encode_header(metadata, tensors)
    last = tensors[-1]
    size = len(header) + last.offset + gguf_format.padded(last.size_bytes, 32)
    with path.open("wb") as out:
        out.write(header)
        # Numbers do not matter to a dry run; the file is a hole.
        out.truncate(size)
    parsed = gguf_format.parse_header(header, file_bytes=size)
    plan = writer.plan_file(parsed, mix)
    ours = {info.name: info.type.name.lower() for info in plan.tensors}
    assert list(ours.items()) == [(n, t.lower()) for n, t in _dry_run(path, mix)]


def _dry_run(path: Path, mix: Quantization) -> list[tuple[str, str]]:
    """(name, type) of every tensor in the order of the file, from llama.cpp's log."""
    pieces: list[str] = []

    @llama_cpp.llama_log_callback  # type: ignore[untyped-decorator]  # ctypes' own
    def keep(_level: int, text: bytes, _data: ctypes.c_void_p) -> None:
        pieces.append(text.decode())

    llama_cpp.llama_log_set(keep, ctypes.c_void_p(0))
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = mix.file_type
    parameters.dry_run = True
    try:
        result = llama_cpp.llama_model_quantize(
            str(path).encode(), b"/dev/null", ctypes.byref(parameters)
        )
    finally:
        # llama.cpp would call what is gone by then.
        llama_cpp.llama_log_set(llama_model.keep_log, ctypes.c_void_p(0))
    log = "".join(pieces)
    assert result == 0, log[-2000:]
    found = [_LINE.search(line.rstrip()) for line in log.splitlines() if "] " in line]
    return [(match[1], match[3] or match[2]) for match in found if match]


def _describe(model: Model) -> tuple[list[Metadata], list[gguf_format.TensorInfo]]:
    keys = {
        "context_length": 512,
        "embedding_length": model.hidden,
        "block_count": model.layers,
        "feed_forward_length": model.feed,
        "attention.head_count": model.heads,
        "attention.head_count_kv": model.kv_heads,
        "attention.key_length": model.hidden // model.heads,
        "attention.value_length": model.hidden // model.heads,
        "rope.dimension_count": model.hidden // model.heads,
        "vocab_size": 64,
        "attention.sliding_window": 64,
    }
    if model.experts:
        keys |= {"expert_count": model.experts, "expert_used_count": 2}
    metadata = [
        gguf_format.string_value("general.architecture", model.architecture),
        *(gguf_format.uint32_value(f"{model.architecture}.{k}", v) for k, v in keys.items()),
        *(_epsilon(f"{model.architecture}.attention.{name}") for name in _EPSILONS),
    ]
    shapes: list[tuple[str, tuple[int, ...], TensorType]] = [
        ("token_embd.weight", (model.hidden, 64), TensorType.BF16),
        ("output_norm.weight", (model.hidden,), TensorType.F32),
    ]
    if not model.tied:
        shapes.append(("output.weight", (model.hidden, 64), TensorType.BF16))
    for layer in range(model.layers):
        for name, dimensions in _layer(model).items():
            kind = TensorType.F32 if len(dimensions) == 1 else TensorType.BF16
            shapes.append((f"blk.{layer}.{name}", dimensions, kind))
    return metadata, gguf_format.lay_out(shapes)


_EPSILONS = ("layer_norm_rms_epsilon", "layer_norm_epsilon")


def _epsilon(key: str) -> Metadata:
    return Metadata(key=key, kind=ValueKind.FLOAT32, encoded=b"\xac\xc5\x27\x37")


def _layer(model: Model) -> dict[str, tuple[int, ...]]:
    hidden, feed = model.hidden, model.feed
    keys = hidden // model.heads * model.kv_heads
    if model.fused:
        attention = {"attn_qkv.weight": (hidden, hidden + 2 * keys)}
    else:
        attention = {
            "attn_q.weight": (hidden, hidden),
            "attn_k.weight": (hidden, keys),
            "attn_v.weight": (hidden, keys),
        }
    shapes: dict[str, tuple[int, ...]] = {
        **attention,
        "attn_norm.weight": (hidden,),
        "attn_output.weight": (hidden, hidden),
        "ffn_norm.weight": (hidden,),
    }
    if model.experts:
        return shapes | {
            "ffn_gate_inp.weight": (hidden, model.experts),
            "ffn_gate_exps.weight": (hidden, feed, model.experts),
            "ffn_up_exps.weight": (hidden, feed, model.experts),
            "ffn_down_exps.weight": (feed, hidden, model.experts),
        }
    return shapes | {
        "ffn_gate.weight": (hidden, feed),
        "ffn_up.weight": (hidden, feed),
        "ffn_down.weight": (feed, hidden),
    }
