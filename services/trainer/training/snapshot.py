"""A checkpoint's tensors in memory, laid out as the file that they become.

The memory is made once and written to at once, so that taking a snapshot in the middle of a run is
one copy: it needs no new memory, meets no page for the first time, and builds no second copy on
its way to the disk. It is taken by another thread than training's, which goes on in the meantime:
see `ready` for what that asks of a GPU.

The file is safetensors: eight bytes with the size of the header, the header as JSON, the tensors.
"""

import json
from collections.abc import Mapping
from typing import Any, Protocol

import torch

Tensors = Mapping[str, torch.Tensor]
Kinds = Mapping[str, tuple[torch.dtype, torch.Size]]
# The names that safetensors has for what a checkpoint holds.
TYPE_NAMES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint8: "U8", torch.bool: "BOOL",
}  # fmt: skip
# safetensors wants its header filled up to a multiple of the widest number.
ALIGNMENT = 8


class QueuedWork(Protocol):
    """Work that was queued on a device; done once tensors have its numbers."""

    def synchronize(self) -> None: ...


def ready(live: Tensors) -> QueuedWork | None:
    """When the work is done that this thread has queued on the GPU of `live`; None on a CPU.

    Called by the thread that trains, before another one reads: that one's own queue knows nothing
    of this thread's. Waiting for it covers paged moments too, which a GPU changes in the host's
    memory.
    """
    device = _gpu_of(live)
    return None if device is None else torch.cuda.current_stream(device).record_event()


class Snapshot:
    """Room for the tensors of one checkpoint after another, always the same ones."""

    def __init__(self) -> None:
        self._live_kinds: Kinds = {}
        self._fixed_kinds: Kinds = {}
        self._room = torch.empty(0, dtype=torch.uint8)
        self._stream: torch.cuda.Stream | None = None
        self._places: list[torch.Tensor] = []
        self._fixed: list[torch.Tensor] = []
        self._header = b""

    def take(self, live: Tensors, fixed: Tensors) -> None:
        """Copy what training goes on to change, and keep hold of what nobody changes any more.

        `live` has been copied when this returns, from a GPU as well.

        Raises:
            MemoryError, RuntimeError: the room could not be made; nothing was taken.
        """
        live, fixed = _widest_first(live), _widest_first(fixed)
        live_kinds, fixed_kinds = _kinds(live), _kinds(fixed)
        if live_kinds != self._live_kinds:
            self._live_kinds = {}
            self._make_room(live)
        if (live_kinds, fixed_kinds) != (self._live_kinds, self._fixed_kinds):
            self._header = _header({**live_kinds, **fixed_kinds})
            self._live_kinds, self._fixed_kinds = live_kinds, fixed_kinds
        if self._places:
            # One call, for hundreds of small tensors, and Python's other threads run meanwhile.
            # From a GPU the copies queue up and are waited for once, in a queue of their own: in
            # training's they would stand behind the step that is being computed.
            sources = list(live.values())
            with torch.no_grad(), torch.cuda.stream(self._stream):
                torch._foreach_copy_(self._places, sources, non_blocking=self._stream is not None)
        if self._stream is not None:
            self._stream.synchronize()
        self._fixed = list(fixed.values())

    def parts(self) -> list[memoryview]:
        """The bytes of the file, one after another; valid until the next `take`."""
        tensors = [self._room, *(_bytes_of(tensor) for tensor in self._fixed)]
        return [memoryview(self._header), *(_view(tensor) for tensor in tensors)]

    def _make_room(self, live: Tensors) -> None:
        size = sum(tensor.nbytes for tensor in live.values())
        device = _gpu_of(live)
        self._stream = None if device is None else torch.cuda.Stream(device)
        # Zeros, not empty: each page is touched now and not while a step waits for it.
        self._room = torch.zeros(size, dtype=torch.uint8, pin_memory=device is not None)
        self._places, begin = [], 0
        for tensor in live.values():
            room = self._room[begin : begin + tensor.nbytes]
            self._places.append(room.view(tensor.dtype).view(tensor.shape))
            begin += tensor.nbytes


def _widest_first(tensors: Tensors) -> dict[str, torch.Tensor]:
    """In this order every tensor begins at a multiple of its numbers' width."""
    return dict(sorted(tensors.items(), key=lambda item: (-item[1].element_size(), item[0])))


def _gpu_of(tensors: Tensors) -> torch.device | None:
    return next((each.device for each in tensors.values() if each.is_cuda), None)


def _kinds(tensors: Tensors) -> Kinds:
    return {name: (tensor.dtype, tensor.shape) for name, tensor in tensors.items()}


def _header(kinds: Kinds) -> bytes:
    entries: dict[str, Any] = {}
    begin = 0
    for name, (dtype, shape) in kinds.items():
        end = begin + shape.numel() * dtype.itemsize
        entries[name] = {
            "dtype": TYPE_NAMES[dtype], "shape": list(shape), "data_offsets": [begin, end]
        }  # fmt: skip
        begin = end
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.detach().contiguous().view(-1).view(torch.uint8)


def _view(content: torch.Tensor) -> memoryview:
    array: Any = content.numpy()
    return memoryview(array)
