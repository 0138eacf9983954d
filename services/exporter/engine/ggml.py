"""Rows of numbers in ggml's storage types, through the pinned llama.cpp's own library.

This is the reference for every byte that is written: `kernel` may do the work faster where it has
proven equal. ctypes releases the GIL, so that rows can be encoded by several threads at once.
"""

import ctypes
from functools import cache
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType
from exporter.engine.weights import to_bfloat16_bits
from lexicon.faults import Fault, FaultCode

_LIBRARY_NAMES: Final = ("libggml-base.so", "libggml-base.dylib", "ggml-base.dll")
_DECODERS: Final = {
    TensorType.Q4_0: "dequantize_row_q4_0",
    TensorType.Q5_0: "dequantize_row_q5_0",
    TensorType.Q5_1: "dequantize_row_q5_1",
    TensorType.Q8_0: "dequantize_row_q8_0",
    TensorType.Q2_K: "dequantize_row_q2_K",
    TensorType.Q3_K: "dequantize_row_q3_K",
    TensorType.Q4_K: "dequantize_row_q4_K",
    TensorType.Q5_K: "dequantize_row_q5_K",
    TensorType.Q6_K: "dequantize_row_q6_K",
}


def encode(rows: NDArray[np.float32], tensor_type: TensorType) -> NDArray[np.uint8]:
    """Returns finite float32 rows in a storage type, (rows, bytes of a row)."""
    row_count = len(rows)
    match tensor_type:
        case TensorType.F32:
            return np.ascontiguousarray(rows).view(np.uint8).reshape(row_count, -1)
        case TensorType.F16:
            return to_float16(rows).view(np.uint8).reshape(row_count, -1)
        case TensorType.BF16:
            return to_bfloat16_bits(rows).view(np.uint8).reshape(row_count, -1)
        case _:
            return quantized(library(), rows, tensor_type)


def quantized(
    base: ctypes.CDLL, rows: NDArray[np.float32], tensor_type: TensorType
) -> NDArray[np.uint8]:
    """Returns finite float32 rows in a quantised type by a build of ggml."""
    row_count, column_count = rows.shape
    encoded = np.empty((row_count, tensor_type.row_bytes(column_count)), np.uint8)
    source = np.ascontiguousarray(rows)
    written = base.ggml_quantize_chunk(
        int(tensor_type), source.ctypes.data, encoded.ctypes.data, 0, row_count, column_count, None
    )
    assert written == encoded.nbytes
    return encoded


def decode(
    encoded: NDArray[np.uint8], tensor_type: TensorType, *, column_count: int
) -> NDArray[np.float32]:
    """Returns stored rows as float32, (rows, columns)."""
    match tensor_type:
        case TensorType.F32:
            return encoded.view(np.float32)
        case TensorType.F16:
            return encoded.view(np.float16).astype(np.float32)
        case TensorType.BF16:
            return (encoded.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
        case _:
            source = np.ascontiguousarray(encoded)
            rows = np.empty((source.shape[0], column_count), np.float32)
            decoder = getattr(library(), _DECODERS[tensor_type])
            decoder(source.ctypes.data, rows.ctypes.data, rows.size)
            return rows


def to_float16(rows: NDArray[np.float32]) -> NDArray[np.float16]:
    """Rounds to float16; what is too large becomes infinite, as in the reference."""
    with np.errstate(over="ignore"):
        return rows.astype(np.float16)


def operation_name(operation: int) -> str:
    """What ggml calls an operation of its graphs."""
    name: bytes = library().ggml_op_name(operation)
    return name.decode()


def tensor_overhead_bytes() -> int:
    """Bytes that ggml takes for a tensor beside its numbers."""
    return int(library().ggml_tensor_overhead())


@cache
def library() -> ctypes.CDLL:
    """The base library of llama-cpp-python's build.

    Raises:
        Fault: RUNTIME_GGUF_EXPORT_FAILED when it is absent or lacks a function.
    """
    import llama_cpp

    folder = Path(llama_cpp.__file__).parent / "lib"
    path = next((folder / name for name in _LIBRARY_NAMES if (folder / name).is_file()), None)
    if path is None:
        raise Fault(
            FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
            "llama-cpp-python carries no ggml library.",
            folder=str(folder),
        )
    return load_base(path)


def load_base(path: Path) -> ctypes.CDLL:
    """Loads a build of ggml's base library.

    Raises:
        Fault: RUNTIME_GGUF_EXPORT_FAILED when it lacks a function.
    """
    loaded = ctypes.CDLL(str(path))
    try:
        quantize = loaded.ggml_quantize_chunk
        decoders = [getattr(loaded, name) for name in _DECODERS.values()]
    except AttributeError as error:
        raise Fault(
            FaultCode.RUNTIME_GGUF_EXPORT_FAILED, f"llama.cpp's library lacks a function: {error}."
        ) from error
    loaded.ggml_op_name.restype = ctypes.c_char_p
    loaded.ggml_op_name.argtypes = [ctypes.c_int]
    loaded.ggml_tensor_overhead.restype = ctypes.c_size_t
    quantize.restype = ctypes.c_size_t
    quantize.argtypes = [
        ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64,
        ctypes.c_int64, ctypes.c_void_p,
    ]  # fmt: skip
    for decoder in decoders:
        decoder.restype = None
        decoder.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_int64]
    return loaded
