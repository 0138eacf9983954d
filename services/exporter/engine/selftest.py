"""What must hold before any work is taken: imports, symbols, and a tiny conversion from end to end.

Missing sentencepiece or protobuf make conversions of some tokenizers fail without a word, so that
they are looked for first.
"""

import importlib
import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import Quantization, TensorType
from exporter.engine import ggml, writer
from exporter.engine.base import prepare_base
from exporter.engine.conversion.process import missing_part
from exporter.engine.disk import forget_leftovers
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.llama_model import LlamaModel
from exporter.engine.merge import MergedTensor
from exporter.engine.weights import GgufFile
from lexicon.faults import Fault, FaultCode

_NEEDED: Final = ("sentencepiece", "google.protobuf", "llama_cpp", "tokenizers")
# A matrix of independent normal numbers loses about 7 % in Q4_K; far more means a broken library.
_NORMAL_ERROR_Q4_K: Final = 0.12


def check_parts(vendor: Path) -> None:
    """Imports and symbols; fast.

    Raises:
        Fault: RUNTIME_GGUF_EXPORT_FAILED naming what is missing.
    """
    for name in _NEEDED:
        try:
            importlib.import_module(name)
        except ImportError as error:
            raise Fault(
                FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
                f"The Python package {name} does not load: {error}.",
            ) from error
    if missing := missing_part(vendor):
        raise Fault(
            FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
            f"llama.cpp's converter is not in {vendor}: {missing} is missing.",
        )
    rows = np.random.default_rng(0).standard_normal((4, 512), np.float32)
    encoded = ggml.encode(rows, TensorType.Q4_K)
    decoded = ggml.decode(encoded, TensorType.Q4_K, column_count=512)
    loss = float(np.sqrt(np.square(decoded - rows).mean() / np.square(rows).mean()))
    if not loss < _NORMAL_ERROR_Q4_K:
        raise Fault(
            FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
            f"llama.cpp's library quantises wrongly: relative error {loss:.3f}.",
        )


def check_conversion(cache: Path, vendor: Path, *, llama_version: str) -> None:
    """Converts, quantises and loads a tiny model once per version; a mark in the cache remembers.

    Raises:
        Fault: what the export of a model would raise.
    """
    mark = cache / f"selftest-{llama_version}.passed"
    if mark.is_file():
        return
    cache.mkdir(parents=True, exist_ok=True)
    forget_leftovers(cache, "selftest-*/")
    folder = Path(tempfile.mkdtemp(dir=cache, prefix="selftest-"))
    try:
        checkpoint = folder / "model"
        _write_tiny_model(checkpoint)
        base = prepare_base(checkpoint, folder, "base", vendor=vendor)
        target, slow = folder / "model.gguf", Kernel.absent()
        with GgufFile(base.gguf) as gguf:
            tensors = {
                i.name: MergedTensor(base=gguf, info=i, changes={}, merge=slow.merge)
                for i in gguf.header.tensors
            }
            plan = writer.plan_file(gguf.header, Quantization.Q4_K_M)
            writer.write_file(
                plan,
                tensors,
                target,
                encode=slow.encode,
                thread_count=1,
                on_elements=lambda _count: None,
            )
        with LlamaModel(target, thread_count=1) as model:
            tokens = model.tokenize("abc")
            rows = [row for _, row in model.logits(tokens, [len(tokens) - 1])]
            if tokens != [256, 99] or not np.isfinite(rows[0]).all():
                raise Fault(
                    FaultCode.RUNTIME_GGUF_EXPORT_FAILED, "A tiny conversion gave a wrong model."
                )
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    mark.touch()


def _write_tiny_model(folder: Path) -> None:
    """A Llama of one layer over single bytes."""
    folder.mkdir()
    hidden, feed, vocabulary = 256, 256, 257
    (folder / "config.json").write_text(
        json.dumps(
            {
                "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
                "intermediate_size": feed, "num_hidden_layers": 1, "num_attention_heads": 4,
                "num_key_value_heads": 2, "head_dim": 64, "vocab_size": vocabulary,
                "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "hidden_act": "silu",
                "tie_word_embeddings": True, "dtype": "bfloat16", "rope_theta": 10000.0,
            }
        ),
        encoding="utf-8",
    )  # fmt: skip
    (folder / "tokenizer.json").write_text(json.dumps(_byte_tokenizer()), encoding="utf-8")
    (folder / "tokenizer_config.json").write_text(
        json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}), encoding="utf-8"
    )
    layer = "model.layers.0."
    shapes = {
        "model.embed_tokens.weight": (vocabulary, hidden),
        "model.norm.weight": (hidden,),
        layer + "input_layernorm.weight": (hidden,),
        layer + "post_attention_layernorm.weight": (hidden,),
        layer + "self_attn.q_proj.weight": (256, hidden),
        layer + "self_attn.k_proj.weight": (128, hidden),
        layer + "self_attn.v_proj.weight": (128, hidden),
        layer + "self_attn.o_proj.weight": (hidden, 256),
        layer + "mlp.gate_proj.weight": (feed, hidden),
        layer + "mlp.up_proj.weight": (feed, hidden),
        layer + "mlp.down_proj.weight": (hidden, feed),
    }
    rng = np.random.default_rng(0)
    arrays = {
        name: rng.standard_normal(shape, np.float32).astype(np.float16) * np.float16(0.05)
        for name, shape in shapes.items()
    }
    _write_safetensors(folder / "model.safetensors", arrays)


def _byte_tokenizer() -> dict[str, Any]:
    """The 256 bytes as GPT-2 spells them and one merge, the fewest that llama.cpp loads."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    spelled = {byte: chr(byte) for byte in printable}
    hidden = (byte for byte in range(256) if byte not in spelled)
    spelled.update({byte: chr(256 + index) for index, byte in enumerate(hidden)})
    vocabulary = {text: byte for byte, text in sorted(spelled.items())} | {"ab": 256}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [],
        "normalizer": None,
        "pre_tokenizer": {
            "type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True
        },
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True
        },
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False,
            "ignore_merges": False, "vocab": vocabulary, "merges": ["a b"],
        },
    }  # fmt: skip


def _write_safetensors(path: Path, arrays: Mapping[str, NDArray[np.float16]]) -> None:
    header: dict[str, Any] = {}
    offset = 0
    for name, array in arrays.items():
        header[name] = {
            "dtype": "F16",
            "shape": list(array.shape),
            "data_offsets": [offset, offset + array.nbytes],
        }
        offset += array.nbytes
    encoded = json.dumps(header).encode()
    with path.open("wb") as out:
        out.write(len(encoded).to_bytes(8, "little") + encoded)
        for array in arrays.values():
            out.write(array.tobytes())
