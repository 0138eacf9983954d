"""A million damaged headers: no crash, no read behind the end, no memory beyond the file's size.

Attacks 5 and 6. Damage is what found holes in other readers: extreme lengths, counts, offsets and
types in the places where such fields stand, bits anywhere, cuts, and parts that come twice.
"""

import json
import os
import random
import struct
import tracemalloc
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pytest

from exporter.domain import gguf_format, safetensors_format
from exporter.domain.adapter import read_adapter
from exporter.domain.gguf_format import Metadata, ValueKind
from exporter.domain.quantization import TensorType
from exporter.engine.weights import GgufFile, SafetensorsFile, read_json
from lexicon.faults import Fault, FaultCode

pytestmark = [pytest.mark.integration, pytest.mark.slow, pytest.mark.timeout(1200)]

COUNT = int(os.environ.get("TUNESMITH_FUZZ_COUNT", "500000"))
# What a reader may hold beside the file's own bytes: interpreter objects of a small header.
SPARE_BYTES = 64 * 1024
MEMORY_EVERY = 50
EXTREMES = (
    0, 1, 2, 7, 8, 31, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF,
    1 << 32, 1 << 40, (1 << 61) - 1, 1 << 62, (1 << 63) - 1, 1 << 63, (1 << 64) - 1,
)  # fmt: skip


def a_gguf() -> bytes:
    words = gguf_format._ARRAY_HEAD.pack(ValueKind.STRING, 3) + b"".join(
        struct.pack("<Q", len(word)) + word for word in (b"one", b"", b"three")
    )
    floats = gguf_format._ARRAY_HEAD.pack(ValueKind.FLOAT32, 2) + struct.pack("<2f", 1.0, 2.0)
    metadata = [
        gguf_format.string_value("general.architecture", "llama"),
        gguf_format.uint32_value("general.alignment", 32),
        gguf_format.uint32_value("llama.block_count", 2),
        Metadata(key="tokenizer.ggml.tokens", kind=ValueKind.ARRAY, encoded=words),
        Metadata(key="tokenizer.ggml.scores", kind=ValueKind.ARRAY, encoded=floats),
        gguf_format.bool_value("tokenizer.ggml.add_bos_token", True),
    ]
    tensors = gguf_format.lay_out(
        [
            ("token_embd.weight", (256, 3), TensorType.Q6_K),
            ("blk.0.ffn_up_exps.weight", (32, 4, 2), TensorType.BF16),
            ("output_norm.weight", (32,), TensorType.F32),
        ]
    )
    header = gguf_format.encode_header(metadata, tensors)
    return header + bytes(sum(gguf_format.padded(t.size_bytes, 32) for t in tensors))


def a_safetensors() -> bytes:
    header = json.dumps(
        {
            "__metadata__": {"format": "pt"},
            "model.a": {"dtype": "BF16", "shape": [2, 8], "data_offsets": [0, 32]},
            "model.b": {"dtype": "F32", "shape": [4], "data_offsets": [32, 48]},
            "model.c": {"dtype": "I64", "shape": [], "data_offsets": [48, 56]},
        }
    ).encode()
    return struct.pack("<Q", len(header)) + header + bytes(56)


def damaged(content: bytes, header_bytes: int, rng: random.Random) -> bytes:
    made = bytearray(content)
    for _ in range(rng.randint(1, 4)):
        place = rng.randrange(max(1, min(header_bytes, len(made) - 8)))
        match rng.randrange(7):
            case 0:
                made[place] ^= 1 << rng.randrange(8)
            case 1:
                made[place] = rng.randrange(256)
            case 2:
                struct.pack_into("<Q", made, place, rng.choice(EXTREMES))
            case 3:
                struct.pack_into("<I", made, place, rng.choice(EXTREMES) & 0xFFFFFFFF)
            case 4:
                del made[place : place + rng.randint(1, 16)]
            case 5:
                made[place:place] = made[place : place + rng.randint(1, 32)]
            case _:
                made = made[: rng.randrange(len(made))]
        if len(made) < 9:
            break
    return bytes(made)


def numbers_changed(content: bytes, rng: random.Random) -> bytes:
    """Damage that stays JSON: numbers, names and types of a safetensors header."""
    length = int.from_bytes(content[:8], "little")
    header = content[8 : 8 + length].decode()
    for _ in range(rng.randint(1, 3)):
        old = rng.choice(["2, 8", "[0, 32]", "[32, 48]", "[4]", "BF16", "F32", "model.b", "[]"])
        new = rng.choice(
            [
                str(rng.choice(EXTREMES)), f"[{rng.choice(EXTREMES)}]", "-1", "1e3", "null", "true",
                "[0, 48]", "[32, 32]", "F64", "model.a", '"', "{}", "[[[[]]]]", "\\u0000", "NaN",
            ]
        )  # fmt: skip
        header = header.replace(old, new, 1)
    encoded = header.encode()
    return struct.pack("<Q", len(encoded)) + encoded + content[8 + length :]


def read_gguf(content: bytes) -> None:
    header = gguf_format.parse_header(memoryview(content), file_bytes=len(content))
    end = 0
    for tensor in header.tensors:
        assert tensor.offset >= end
        end = tensor.offset + tensor.size_bytes
        assert header.data_start + end <= len(content)
    assert len({tensor.name for tensor in header.tensors}) == len(header.tensors)
    for entry in header.metadata.values():
        if entry.kind is ValueKind.ARRAY:
            assert len(entry.items) <= len(content)
        else:
            assert entry.scalar is not None


def read_safetensors(content: bytes) -> None:
    length = safetensors_format.header_bytes(content[:8], file_bytes=len(content))
    header = safetensors_format.parse_header(content[8 : 8 + length], file_bytes=len(content))
    end = 8 + length
    for span in sorted(header.tensors.values(), key=lambda span: (span.start, span.end)):
        assert span.start == end
        end = span.end
    assert end == len(content)


def refusal(action: Callable[[], object]) -> FaultCode | None:
    """The code of the fault that an action ends in; None when it succeeds."""
    try:
        action()
    except Fault as fault:
        return fault.code
    return None


def survives(
    read: Callable[[bytes], None], make: Callable[[random.Random], bytes], seed: int
) -> Counter[FaultCode | None]:
    """How often files were refused, by code, and accepted; anything else is a failure."""
    rng = random.Random(seed)
    outcomes: Counter[FaultCode | None] = Counter()
    for number in range(COUNT // 2):
        content = make(rng)
        if number % MEMORY_EVERY:
            outcomes[refusal(partial(read, content))] += 1
            continue
        tracemalloc.start()
        outcomes[refusal(partial(read, content))] += 1
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak <= len(content) + SPARE_BYTES, content
    return outcomes


def require_mostly_refused(outcomes: Counter[FaultCode | None]) -> None:
    assert outcomes.keys() <= {None, FaultCode.MODEL_WEIGHTS_INVALID}
    assert outcomes[FaultCode.MODEL_WEIGHTS_INVALID] > outcomes[None]


@pytest.mark.parametrize("seed", [1, 2])
def test_damaged_gguf_headers(seed: int) -> None:
    whole = a_gguf()
    read_gguf(whole)
    header_bytes = gguf_format.parse_header(whole, file_bytes=len(whole)).data_start
    require_mostly_refused(survives(read_gguf, lambda rng: damaged(whole, header_bytes, rng), seed))


@pytest.mark.parametrize("seed", [3, 4])
def test_damaged_safetensors_headers(seed: int) -> None:
    whole = a_safetensors()
    read_safetensors(whole)
    header_bytes = 8 + int.from_bytes(whole[:8], "little")

    def make(rng: random.Random) -> bytes:
        if rng.random() < 0.5:
            return numbers_changed(whole, rng)
        return damaged(whole, header_bytes, rng)

    require_mostly_refused(survives(read_safetensors, make, seed))


def test_damaged_files_are_refused_when_they_are_mapped(tmp_path: Path) -> None:
    """The same through the file readers, whose views may not reach behind the map."""
    rng = random.Random(9)
    path = tmp_path / "file"

    def read_mapped_gguf() -> None:
        with GgufFile(path) as file:
            for info in file.header.tensors:
                file.raw(info, first_row=0, row_count=info.row_count)

    def read_mapped_safetensors() -> None:
        with SafetensorsFile(path) as file:
            for name in file.tensors:
                file.array(name)

    for whole, read in (
        (a_gguf(), read_mapped_gguf),
        (a_safetensors(), read_mapped_safetensors),
    ):
        for _ in range(2000):
            path.write_bytes(damaged(whole, 600, rng))
            assert refusal(read) in {None, FaultCode.MODEL_WEIGHTS_INVALID}


A_CONFIG = """{"peft_type": "LORA", "r": 8, "lora_alpha": 16, "use_rslora": false,
 "use_dora": false, "bias": "none", "rank_pattern": {}, "alpha_pattern": {"(q|k)_proj$": 4},
 "target_modules": ["q_proj"], "target_parameters": null, "modules_to_save": null,
 "init_lora_weights": true, "layer_replication": null, "fan_in_fan_out": false}"""
A_STEM = "base_model.model.model.layers.0.self_attn.q_proj"
A_PAIR = {f"{A_STEM}.lora_A.weight": (8, 32), f"{A_STEM}.lora_B.weight": (64, 8)}


def settings_changed(rng: random.Random) -> str:
    """Damage that mostly stays JSON: values, keys and patterns of an adapter's settings."""
    text = A_CONFIG
    for _ in range(rng.randint(1, 3)):
        old = rng.choice(["null", "false", "true", "8", "16", "4", "{}", '"none"', '["q_proj"]',
                          "(q|k)_proj$", "target_modules", "bias", "LORA"])  # fmt: skip
        new = rng.choice(
            ["null", '"false"', "1e999", "NaN", "-1", "1" + "0" * 400, "[]", "{}", "[[[1]]]",
             '{"(": 1}', '{"(a+)+b": 2}', '{"((.*)*)*x": 2}', '{"[q": 1}', '"\\u0000"', "(a|",
             "a{1,99}{2}", "r", "\\\\", "0.5", "true", "[1, null]", "{" * 50]
        )  # fmt: skip
        text = text.replace(old, new, 1)
    return damaged(text.encode(), 400, rng).decode("latin-1") if rng.random() < 0.2 else text


def test_damaged_settings_of_an_adapter_are_refused_with_a_code(tmp_path: Path) -> None:
    rng = random.Random(11)
    path = tmp_path / "adapter_config.json"
    outcomes: Counter[FaultCode | None] = Counter()
    for _ in range(COUNT // 50):
        path.write_text(settings_changed(rng), encoding="utf-8")
        outcomes[refusal(lambda: read_adapter(read_json(path, unique_keys=True), A_PAIR))] += 1
    assert outcomes.keys() == {
        None, FaultCode.MODEL_WEIGHTS_INVALID, FaultCode.EXPORT_ADAPTER_UNSUPPORTED
    }  # fmt: skip
