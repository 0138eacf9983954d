"""A base model evaluated with other weights, none of which exist longer than they are used.

The unquantised merge of a model is as large as the model. To run it without writing it, llama.cpp
evaluates the base; before each operation that reads a matrix, the matrix is computed and put in the
place of the base's, and after the operation the base's own is put back.
Source: `ggml_backend_sched_set_eval_callback` of llama.cpp, which asks before a node is computed
and reports after it; `ggml_tensor` in ggml.h.
"""

import ctypes
import mmap
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Self

import llama_cpp
import numpy as np
from numpy.typing import NDArray

from exporter.domain.gguf_format import TensorInfo
from exporter.domain.quantization import TensorType
from exporter.engine import ggml
from exporter.engine.merge import MergedTensor
from exporter.engine.writer import OnRows
from lexicon.faults import Fault, FaultCode

# Numbers that are merged at once by a thread.
BLOCK_ELEMENTS: Final = 1 << 18
_OP_NONE: Final = 0
_MAX_SOURCES: Final = 10
_EMBEDDING, _HEAD = "token_embd.weight", "output.weight"


class _Tensor(ctypes.Structure):
    """`struct ggml_tensor` of the pinned llama.cpp."""

    _fields_ = (
        ("type", ctypes.c_int),
        ("buffer", ctypes.c_void_p),
        ("ne", ctypes.c_int64 * 4),
        ("nb", ctypes.c_size_t * 4),
        ("op", ctypes.c_int),
        ("op_params", ctypes.c_int32 * 16),
        ("flags", ctypes.c_int32),
        ("src", ctypes.c_void_p * _MAX_SOURCES),
        ("view_src", ctypes.c_void_p),
        ("view_offs", ctypes.c_size_t),
        ("data", ctypes.c_void_p),
        ("name", ctypes.c_char * 64),
        ("extra", ctypes.c_void_p),
        ("padding", ctypes.c_char * 8),
    )


# `struct ggml_object`, which precedes every tensor in a context.
_OBJECT_BYTES: Final = 32


class WeightSwap:
    """The weights of a merge for the time of one evaluation; closes with its context."""

    def __init__(
        self,
        tensors: Mapping[str, MergedTensor],
        token_ids: Sequence[int],
        *,
        thread_count: int,
        on_rows: OnRows | None = None,
    ) -> None:
        """Prepares the swap; nothing is computed yet.

        Args:
            tensors: the file's tensors by name; those that the adapter touches are swapped.
            token_ids: all tokens of the evaluation, whose embeddings are needed.
            on_rows: called with all rows of each tensor that is merged whole, once, by several
                threads.
        Raises:
            Fault: RUNTIME_GGUF_EXPORT_FAILED when llama.cpp's tensors are not laid out as known.
        """
        require_known_layout()
        self._tensors = tensors
        self._tokens = np.unique(np.asarray(token_ids, np.int64))
        self._waiting = {name for name, tensor in tensors.items() if tensor.is_touched}
        self._thread_count = thread_count
        self._pool = ThreadPoolExecutor(thread_count)
        self._memory = np.empty(0, np.uint8)
        self._kept: tuple[_Tensor, int | None, NDArray[np.uint8]] | None = None
        self._error: BaseException | None = None
        self._on_rows = on_rows
        self._handed_on: set[str] = set()
        self.callback = llama_cpp.ggml_backend_sched_eval_callback(self._on_node)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._restore()
        self._pool.shutdown()

    def require_complete(self) -> None:
        """Checks after an evaluation that it ran with every changed weight.

        Raises:
            Fault: what met the computation of a weight; EXPORT_VERIFY_MISMATCH when a changed
                tensor was not used.
        """
        if self._error is not None:
            raise self._error
        if self._waiting:
            name = min(self._waiting)
            raise Fault(
                FaultCode.EXPORT_VERIFY_MISMATCH,
                f"The adapter changes {name}, which llama.cpp does not use.",
                tensor=name,
                count=len(self._waiting),
            )

    def _on_node(self, address: int, is_question: bool, _data: object) -> bool:
        """Swaps before a node is computed, and restores after it; no exception may leave."""
        try:
            if not is_question:
                self._restore()
                return self._error is None
            node = _Tensor.from_address(address)
            return self._error is None and any(
                self._swap(node, _Tensor.from_address(source))
                for source in node.src
                if source is not None
            )
        except BaseException as error:  # noqa: BLE001 - C calls this; it is raised after the call
            self._error = error
            return False

    def _swap(self, node: _Tensor, leaf: _Tensor) -> bool:
        """Puts the merged numbers of a weight in its place; False when the weight stays."""
        if leaf.op != _OP_NONE:
            return False
        name = leaf.name.decode("utf-8", "replace")
        reads_rows = ggml.operation_name(node.op) == "GET_ROWS"
        if name == _EMBEDDING and not reads_rows and _HEAD in self._tensors:
            # A tied base has one tensor, which the merge may part.
            name = _HEAD
        merged = self._tensors.get(name)
        if merged is None or not merged.is_touched:
            return False
        if tuple(leaf.ne) != _dimensions(merged.info) or leaf.type != int(merged.info.type):
            raise Fault(
                FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
                f"llama.cpp's {name} has another shape than the file's.",
            )
        assert self._kept is None, "a node reads one weight"
        rows = self._some_rows(merged, self._tokens) if reads_rows else self._rows(name, merged)
        # The rows stay alive as long as the node may read them.
        self._kept = leaf, leaf.data, rows
        leaf.data = rows.ctypes.data
        self._waiting.discard(name)
        return True

    def _restore(self) -> None:
        if self._kept is not None:
            leaf, data, _ = self._kept
            leaf.data = data
            self._kept = None

    def _some_rows(self, merged: MergedTensor, wanted: NDArray[np.int64]) -> NDArray[np.uint8]:
        """The merged rows that are read, as the base stores its own; the others are zeros."""
        info = merged.info
        # Pages that nobody writes to take no memory.
        pages = mmap.mmap(-1, info.size_bytes)
        rows = np.frombuffer(pages, np.uint8).reshape(info.row_count, -1)
        for row in wanted.tolist():
            rows[row] = ggml.encode(merged.rows(first=row, count=1), info.type)[0]
        return rows

    def _rows(self, name: str, merged: MergedTensor) -> NDArray[np.uint8]:
        """All merged rows, as the base stores its own."""
        info = merged.info
        if self._memory.size < info.size_bytes:
            self._memory = np.empty(info.size_bytes, np.uint8)
        rows = self._memory[: info.size_bytes].reshape(info.row_count, -1)
        # Small enough that all threads end at about the same time.
        share = -(-info.row_count // (2 * self._thread_count))
        at_once = max(1, min(BLOCK_ELEMENTS // info.column_count, share))
        on_rows = None if name in self._handed_on else self._on_rows
        self._handed_on.add(name)

        def fill(first: int) -> None:
            count = min(at_once, info.row_count - first)
            numbers = merged.rows(first=first, count=count)
            if info.type is TensorType.BF16:
                # Rounded already, so that the lower half of each number is zero.
                halves = numbers.view(np.uint16)[:, 1::2]
                rows[first : first + count].view(np.uint16)[:] = halves
            else:
                rows[first : first + count] = ggml.encode(numbers, info.type)
            if on_rows is not None:
                on_rows(name, first, numbers)

        list(self._pool.map(fill, range(0, info.row_count, at_once)))
        return rows


def require_known_layout() -> None:
    """Compares the size of llama.cpp's tensors with the one that is known.

    Raises:
        Fault: RUNTIME_GGUF_EXPORT_FAILED.
    """
    found = ggml.tensor_overhead_bytes() - _OBJECT_BYTES
    if found != ctypes.sizeof(_Tensor):
        raise Fault(
            FaultCode.RUNTIME_GGUF_EXPORT_FAILED,
            f"llama.cpp's tensors take {found} bytes, {ctypes.sizeof(_Tensor)} are known.",
        )


def _dimensions(info: TensorInfo) -> tuple[int, ...]:
    return (*info.dimensions, 1, 1, 1)[:4]
