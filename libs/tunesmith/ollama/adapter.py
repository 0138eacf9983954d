"""A LoRA adapter as llama.cpp and Ollama load it: safetensors of PEFT to a GGUF adapter.

Ollama converts safetensors adapters itself for two architectures only and supports neither
rank-stabilised scaling nor ranks by module; the GGUF form supports both, for every architecture
that is listed here. Matrices stay as trained: only rows of queries and keys are put
into the order that llama.cpp keeps for some architectures.

Shapes: A (rank, in), B (out, rank), both row by row.

Source: Hu et al. 2021, arXiv:2106.09685; Kalajdzievski 2023, arXiv:2312.03732; the GGUF
specification (ggml, docs/gguf.md).
"""

from __future__ import annotations

import json
import re
import struct
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, Final, NoReturn

from lexicon.faults import Fault, FaultCode
from lexicon.lora_config import MAX_RANK, AdapterConfig, read_config, scale_of
from tunesmith.errors import InputError
from tunesmith.ollama.modelfile import CODE, DOWNLOAD_AGAIN

MAX_HEADER_BYTES: Final = 64 << 20
ALIGNMENT: Final = 32
# For each architecture, whether rows of queries and keys are interleaved by rotary pairs.
ARCHITECTURES: Final[Mapping[str, bool]] = {
    "gemma": False,
    "gemma2": False,
    "gemma3": False,
    "llama": True,
    "phi3": False,
    "qwen2": False,
    "qwen3": False,
    "smollm3": True,
}
_MODULES: Final[Mapping[str, str]] = {
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.qkv_proj": "attn_qkv",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_TENSOR: Final = re.compile(
    r"base_model\.model\.(?P<module>(?:[\w.]+\.)?layers\.(?P<layer>\d{1,4})\."
    r"(?P<part>[a-z_]+\.[a-z_]+))\.lora_(?P<factor>[AB])\.weight"
)
# Widths of the types that PEFT writes, and their numbers in GGUF. BF16 is widened, since not every
# backend multiplies with it.
_F32, _F16 = 0, 1
_TYPES: Final = {"F32": (4, _F32), "F16": (2, _F16), "BF16": (2, _F32)}
# So many numbers are multiplied at a time.
_PIECE: Final = 1 << 16
_STRING, _FLOAT32 = 8, 6
# Bounds of float32 with all its digits.
_LEAST_FLOAT32: Final = 2.0**-126
_LARGEST_FLOAT32: Final = float.fromhex("0x1.fffffep127")


@dataclass(frozen=True, slots=True, kw_only=True)
class Base:
    """Facts about the base model from the keys of its GGUF."""

    architecture: str
    width: int
    layer_count: int
    head_count: int
    kv_head_count: int

    @staticmethod
    def of(facts: Mapping[str, Any]) -> Base:
        """Reads `model_info` of Ollama's answer about a model.

        Raises:
            InputError: DEP_OLLAMA_REGISTRATION_FAILED when the architecture is not known here.
        """
        name = facts.get("general.architecture")
        if not isinstance(name, str) or name not in ARCHITECTURES:
            _refuse(f"Ollama takes no adapter alone for the architecture {str(name)[:40]!r}")
        heads = _count(facts, f"{name}.attention.head_count")
        return Base(
            architecture=name,
            width=_count(facts, f"{name}.embedding_length"),
            layer_count=_count(facts, f"{name}.block_count"),
            head_count=heads,
            kv_head_count=_count(facts, f"{name}.attention.head_count_kv", default=heads),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Tensor:
    """A matrix of the adapter: its source, its target, and its conversion."""

    name: str
    kind: str
    shape: tuple[int, int]
    start: int
    rotary_heads: int
    factor: float

    @property
    def is_widened(self) -> bool:
        return self.kind == "BF16" or self.factor != 1.0

    @property
    def target_type(self) -> int:
        return _F32 if self.is_widened else _TYPES[self.kind][1]

    @property
    def source_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * _TYPES[self.kind][0]

    @property
    def target_bytes(self) -> int:
        return self.shape[0] * self.shape[1] * (4 if self.is_widened else _TYPES[self.kind][0])


def plain_settings(config: Mapping[str, Any]) -> AdapterConfig:
    """Reads a decoded adapter_config.json.

    Raises:
        InputError: DEP_OLLAMA_REGISTRATION_FAILED, with the field, for a setting that is damaged,
            that nobody knows, or that no GGUF adapter can say.
    """
    with _in_our_words():
        settings = read_config(config)
    beyond = {
        "use_dora": settings.has_magnitudes,
        "modules_to_save": bool(config.get("modules_to_save")),
        "target_parameters": bool(settings.target_parameters),
        "ensure_weight_tying": settings.ties_weights,
    }
    for field, is_set in beyond.items():
        if is_set:
            _refuse(f"{field} makes it more than LoRA of linear layers", field=field)
    return settings


def convert(
    settings: AdapterConfig, weights: IO[bytes], size_bytes: int, base: Base, target: IO[bytes]
) -> None:
    """Writes the adapter as GGUF, one matrix at a time.

    Args:
        settings: what adapter_config.json says.
        weights: adapter_model.safetensors, seekable.
        size_bytes: its size.
        target: empty file.
    Raises:
        InputError: DEP_OLLAMA_REGISTRATION_FAILED when the adapter does more than LoRA on the
            linear layers, does not fit the base, or is damaged.
    """
    tensors, alpha = _plan(settings, *_read_header(weights, size_bytes), base)
    target.write(_encoded_header(tensors, base, alpha))
    for tensor in tensors:
        weights.seek(tensor.start)
        data = weights.read(tensor.source_bytes)
        if len(data) != tensor.source_bytes:
            _refuse("the adapter's weights are cut off")
        if tensor.rotary_heads:
            data = _interleaved(data, tensor)
        target.writelines(_pieces(data, tensor))
        target.write(bytes(-tensor.target_bytes % ALIGNMENT))


def _read_header(weights: IO[bytes], size_bytes: int) -> tuple[Mapping[str, Any], int]:
    """The table of a safetensors file, and where its data begins."""
    weights.seek(0)
    prefix = weights.read(8)
    length = struct.unpack("<Q", prefix)[0] if len(prefix) == 8 else size_bytes
    if length > min(MAX_HEADER_BYTES, size_bytes - 8):
        _refuse("the adapter's weights have no header")
    try:
        table = json.loads(weights.read(length))
    except (ValueError, RecursionError):
        _refuse("the header of the adapter's weights cannot be read")
    if not isinstance(table, dict):
        _refuse("the header of the adapter's weights is no table")
    table.pop("__metadata__", None)
    for name, entry in table.items():
        if not _is_sound(entry, size_bytes - 8 - length):
            _refuse(f"the adapter's tensor {name[:80]!r} is damaged")
    return table, 8 + length


def _is_sound(entry: Any, data_bytes: int) -> bool:
    if not isinstance(entry, dict) or entry.get("dtype") not in _TYPES:
        return False
    shape: Any = entry.get("shape")
    offsets: Any = entry.get("data_offsets")
    numbers = [shape, offsets]
    if not all(isinstance(pair, list) and len(pair) == 2 for pair in numbers):
        return False
    if not all(type(number) is int and number >= 0 for pair in numbers for number in pair):
        return False
    width = _TYPES[entry["dtype"]][0]
    size_bytes = shape[0] * shape[1] * width
    return bool(0 < size_bytes == offsets[1] - offsets[0] and offsets[1] <= data_bytes)


def _plan(
    settings: AdapterConfig, table: Mapping[str, Any], data_start: int, base: Base
) -> tuple[list[_Tensor], float]:
    """The matrices in the order of the source, and the one alpha that the target states.

    llama.cpp scales by alpha / rank of each matrix, or by 1 when alpha is 0. Scales that one alpha
    cannot express are multiplied into B.
    """
    pairs: dict[str, dict[str, tuple[str, Any]]] = {}
    for name, entry in table.items():
        match = _TENSOR.fullmatch(name)
        if match is None or match["part"] not in _MODULES:
            _refuse(f"the adapter changes {name[:80]!r}, for which there is no place")
        if int(match["layer"]) >= base.layer_count:
            _refuse(f"the adapter has more layers than the base's {base.layer_count}")
        pairs.setdefault(match["module"], {})[match["factor"]] = (match["layer"], entry)
    if not pairs:
        _refuse("the adapter is empty")
    ranks = {module: _rank(module, pair, base) for module, pair in pairs.items()}
    scales = {module: _scale(settings, module, rank) for module, rank in ranks.items()}
    # The digits of a float32 and a few more: what comes of rounding is the same alpha.
    alpha = _shared_alpha({float(f"{scales[module] * ranks[module]:.12g}") for module in pairs})
    tensors = []
    for module, pair in pairs.items():
        part = _MODULES[".".join(module.rsplit(".", 2)[1:])]
        for factor, (layer, entry) in pair.items():
            is_b = factor == "B"
            tensors.append(
                _Tensor(
                    name=f"blk.{int(layer)}.{part}.weight.lora_{factor.lower()}",
                    kind=entry["dtype"],
                    shape=(entry["shape"][0], entry["shape"][1]),
                    start=data_start + entry["data_offsets"][0],
                    rotary_heads=_rotary_heads(part, base) if is_b else 0,
                    factor=scales[module] if is_b and alpha == 0.0 else 1.0,
                )
            )
    if len({tensor.name for tensor in tensors}) < len(tensors):
        _refuse("it changes a matrix of the base twice")
    # In the order of the source, which an archive can only be read through in.
    return sorted(tensors, key=lambda tensor: tensor.start), alpha


def _rank(module: str, pair: Mapping[str, tuple[str, Any]], base: Base) -> int:
    if set(pair) != {"A", "B"}:
        _refuse(f"{module} lacks one of its two factors")
    (rank, inner), (outer, b_rank) = pair["A"][1]["shape"], pair["B"][1]["shape"]
    if rank != b_rank or not 1 <= rank <= MAX_RANK:
        _refuse(f"the factors of {module} do not fit each other")
    reads_stream = module.endswith(("q_proj", "k_proj", "v_proj", "gate_proj", "up_proj"))
    if (reads_stream and inner != base.width) or (
        module.endswith("down_proj") and outer != base.width
    ):
        _refuse(f"the adapter belongs to another base: {module} is {inner} wide, not {base.width}")
    return int(rank)


def _scale(settings: AdapterConfig, module: str, rank: int) -> float:
    with _in_our_words():
        return scale_of(settings, module, rank=rank)


def _shared_alpha(alphas: set[float]) -> float:
    """The alpha of all modules, or 0 when no single float32 expresses all."""
    alpha = alphas.pop() if len(alphas) == 1 else 0.0
    return alpha if _LEAST_FLOAT32 <= abs(alpha) <= _LARGEST_FLOAT32 else 0.0


def _rotary_heads(part: str, base: Base) -> int:
    if not ARCHITECTURES[base.architecture]:
        return 0
    return {"attn_q": base.head_count, "attn_k": base.kv_head_count}.get(part, 0)


def _interleaved(data: bytes, tensor: _Tensor) -> bytes:
    """Rows (head, half, pair) in the order (head, pair, half)."""
    rows, heads = tensor.shape[0], tensor.rotary_heads
    if rows % (2 * heads):
        _refuse(f"the adapter belongs to another base: {rows} rows for {heads} heads")
    pairs, row_bytes = rows // heads // 2, len(data) // rows
    order = (
        (head * 2 + half) * pairs + pair
        for head in range(heads)
        for pair in range(pairs)
        for half in (0, 1)
    )
    view = memoryview(data)
    return b"".join(view[row * row_bytes : (row + 1) * row_bytes] for row in order)


def _pieces(data: bytes, tensor: _Tensor) -> Iterator[bytes]:
    """The numbers of a matrix as they are written, with its factor multiplied in."""
    if not tensor.is_widened:
        yield data
        return
    width = _TYPES[tensor.kind][0]
    for start in range(0, len(data), _PIECE * width):
        piece = data[start : start + _PIECE * width]
        if tensor.kind == "BF16":
            wide = bytearray(2 * len(piece))
            wide[2::4], wide[3::4] = piece[0::2], piece[1::2]
            piece = bytes(wide)
        if tensor.factor == 1.0:
            yield piece
            continue
        count = len(piece) // (2 if tensor.kind == "F16" else 4)
        numbers = struct.unpack(f"<{count}{'e' if tensor.kind == 'F16' else 'f'}", piece)
        try:
            yield struct.pack(f"<{count}f", *(number * tensor.factor for number in numbers))
        except OverflowError:
            _refuse(f"{tensor.name} times its scale is beyond float32")


def _encoded_header(tensors: list[_Tensor], base: Base, alpha: float) -> bytes:
    entries = [
        _entry("general.architecture", _STRING, _string(base.architecture)),
        _entry("general.type", _STRING, _string("adapter")),
        _entry("adapter.type", _STRING, _string("lora")),
        _entry("adapter.lora.alpha", _FLOAT32, struct.pack("<f", alpha)),
    ]
    infos = list(_infos(tensors))
    header = struct.pack("<4sIQQ", b"GGUF", 3, len(tensors), len(entries))
    header += b"".join(entries) + b"".join(infos)
    return header + bytes(-len(header) % ALIGNMENT)


def _infos(tensors: list[_Tensor]) -> Iterator[bytes]:
    offset = 0
    for tensor in tensors:
        rows, columns = tensor.shape
        yield (
            _string(tensor.name)
            + struct.pack("<IQQIQ", 2, columns, rows, tensor.target_type, offset)
        )
        offset += tensor.target_bytes + -tensor.target_bytes % ALIGNMENT


def _entry(key: str, kind: int, value: bytes) -> bytes:
    return _string(key) + struct.pack("<I", kind) + value


def _string(text: str) -> bytes:
    encoded = text.encode("utf-8")
    return struct.pack("<Q", len(encoded)) + encoded


def _count(facts: Mapping[str, Any], key: str, *, default: int = 0) -> int:
    value = facts.get(key, default)
    if isinstance(value, list) and value and all(item == value[0] for item in value):
        value = value[0]
    if type(value) is not int or not 0 < value < sys.maxsize:
        _refuse(f"Ollama does not say {key} of the base model")
    return value


@contextmanager
def _in_our_words() -> Iterator[None]:
    """Turns the fault of a setting into a refusal to register.

    The merged model is no alternative, since an export refuses the setting as well.
    """
    try:
        yield
    except Fault as fault:
        is_damaged = fault.code is FaultCode.MODEL_WEIGHTS_INVALID
        raise InputError(
            CODE,
            f"The adapter cannot be registered alone. {fault.message}",
            remedy=DOWNLOAD_AGAIN if is_damaged else fault.remedy,
            metadata=fault.metadata,
        ) from None


def _refuse(reason: str, **metadata: str) -> NoReturn:
    raise InputError(
        CODE,
        f"The adapter cannot be registered alone: {reason}.",
        remedy="Register the merged model instead: leave out --adapter.",
        metadata=metadata,
    )
