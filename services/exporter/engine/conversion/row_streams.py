"""Large tensors of a base model copied from checkpoint to GGUF in slabs, none of them ever whole.

llama.cpp's converter evaluates each tensor whole, in float32 between: gigabytes for the embedding
of a large model. So a second instance of its model class is led through the same calls with
numbered rows (`domain.row_moves`). Where those come out as nothing but moved rows, the weights'
rows are copied to the same places; everything else stays with the converter.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import TensorType
from exporter.domain.row_moves import WIDTH, RowRuns, numbered, read_moves
from exporter.engine.disk import write_at
from exporter.engine.weights import as_bits

# Slabs that are copied side by side.
WRITERS: Final = 2
# Numbers of a slab.
ELEMENTS_AT_ONCE: Final = 1 << 22
_READ_AS: Final = {"BF16": np.uint16, "F16": np.float16, "F32": np.float32}
_WRITTEN: Final = ("BF16", "F16", "F32")


class Stored(Protocol):
    """A tensor in a file: `gguf.utility.LocalTensor`."""

    dtype: str
    shape: Sequence[int]

    def mmap_bytes(self) -> NDArray[np.uint8]: ...


class Shadow:
    """An instance of a converter's model class that gets numbered rows for weights."""

    def __init__(self, model: Any, *, as_tensor: Callable[[NDArray[Any]], Any]) -> None:
        """Args: as_tensor: makes the converter's kind of tensor, `torch.from_numpy`."""
        self._model = model
        self._as_tensor = as_tensor
        self._next_row = 1
        self._first_rows: list[int] = []
        self._stored: list[Stored | None] = []
        self._moves: dict[str, RowRuns] = {}

    def follow(self, name: str, shape: Sequence[int], block: int | None) -> None:
        """Does with a stand-in what `modify_tensors` does with the tensor of this name."""
        if len(shape) < 2:
            stand_in = np.arange(prod(shape), dtype=np.float64).reshape(shape)
        else:
            row_count = prod(shape[:-1])
            stand_in = numbered(row_count, first=self._next_row).reshape(*shape[:-1], WIDTH)
            self._first_rows.append(self._next_row)
            self._stored.append(_in_file(self._model.model_tensors.get(name)))
            self._next_row += row_count
        try:
            targets = list(self._model.modify_tensors(self._as_tensor(stand_in), name, block))
        except Exception:  # noqa: BLE001 - whatever a conversion raises that needs the true width
            # Its tensors stay with the converter.
            return
        for target, tensor in targets:
            if moves := read_moves(np.asarray(tensor)):
                self._moves[target] = moves

    def replace(self, tensors: Mapping[str, Any]) -> int:
        """Puts streams in the place of tensors whose rows only moved; returns how many.

        Args:
            tensors: the GGUF writer's `TensorInfo` by name.
        """
        streams = {name: self._stream(name, info) for name, info in tensors.items()}
        for name, stream in streams.items():
            if stream:
                tensors[name].tensor = stream
        return sum(stream is not None for stream in streams.values())

    def _stream(self, name: str, info: Any) -> "RowStream | None":
        moves = self._moves.get(name)
        if moves is None or info.dtype.name not in _WRITTEN:
            return None
        first_rows = np.array(self._first_rows)
        used = np.unique(_owners(first_rows, moves.sources(0, moves.row_count)))
        stream = RowStream(
            moves=moves,
            first_rows=first_rows,
            stored={owner: tensor for owner in used.tolist() if (tensor := self._stored[owner])},
            column_count=int(info.shape[-1]),
            written=TensorType[info.dtype.name],
        )
        is_whole = (
            stream.nbytes == info.nbytes
            and len(stream.stored) == len(used)
            and all(
                tensor.dtype in _READ_AS and tuple(tensor.shape[-1:]) == (stream.column_count,)
                for tensor in stream.stored.values()
            )
        )
        return stream if is_whole else None


@dataclass(frozen=True, slots=True, kw_only=True)
class RowStream:
    """Takes the place of an array in the GGUF writer, which asks for its size and to be written.

    `first_rows` are the numbers of each source's first row, ascending; `stored` holds the sources
    that are used, by their place in `first_rows`.
    """

    moves: RowRuns
    first_rows: NDArray[np.int64]
    stored: Mapping[int, Stored]
    column_count: int
    written: TensorType

    @property
    def nbytes(self) -> int:
        return self.moves.row_count * self.written.row_bytes(self.column_count)

    def tofile(self, out: Any) -> None:
        """Writes all rows to a binary file at its position, slab by slab, two at a time."""
        sources = {
            owner: tensor.mmap_bytes().view(_READ_AS[tensor.dtype]).reshape(-1, self.column_count)
            for owner, tensor in self.stored.items()
        }
        at_once = max(1, ELEMENTS_AT_ONCE // self.column_count)
        row_bytes = self.written.row_bytes(self.column_count)
        out.flush()
        start, file = out.tell(), out.fileno()

        def write(first: int) -> None:
            numbers = self.moves.sources(first, min(first + at_once, self.moves.row_count))
            place = start + first * row_bytes
            for owner, rows in self._by_owner(numbers):
                part = _taken(sources[owner], rows)
                bits = as_bits(part, self.stored[owner].dtype, self.written)
                write_at(file, np.ascontiguousarray(bits).data, place)
                place += len(rows) * row_bytes

        with ThreadPoolExecutor(WRITERS) as pool:
            for _ in pool.map(write, range(0, self.moves.row_count, at_once)):
                pass
        out.seek(start + self.nbytes)

    def _by_owner(self, numbers: NDArray[np.int64]) -> Iterator[tuple[int, NDArray[np.int64]]]:
        """Consecutive rows of one source each, as rows of that source."""
        owners = _owners(self.first_rows, numbers)
        for part in np.split(np.arange(len(owners)), np.flatnonzero(np.diff(owners)) + 1):
            owner = int(owners[part[0]])
            yield owner, numbers[part] - self.first_rows[owner]


def _owners(first_rows: NDArray[np.int64], numbers: NDArray[np.int64]) -> NDArray[np.intp]:
    owners: NDArray[np.intp] = np.searchsorted(first_rows, numbers, side="right") - 1
    return owners


def _taken(source: NDArray[Any], rows: NDArray[np.int64]) -> NDArray[Any]:
    """Rows of a source, without a copy where they follow each other."""
    first, last = int(rows[0]), int(rows[-1])
    if last - first + 1 == len(rows) and bool(np.all(np.diff(rows) == 1)):
        return source[first : last + 1]
    return source[rows]


def _in_file(generate: Callable[[], Any] | None) -> Stored | None:
    """The tensor in its file, where the converter takes it from there as it is."""
    arguments: Sequence[Any] = getattr(generate(), "_args", ()) if generate else ()
    is_stored = len(arguments) == 1 and hasattr(arguments[0], "mmap_bytes")
    stored: Stored | None = arguments[0] if is_stored else None
    return stored
