"""Number formats of GGUF: storage types of a tensor and the mixes of them that users ask for.

Source: ggml.h (`ggml_type`), llama.h (`llama_ftype`), ggml-common.h (block layouts) of llama.cpp.
"""

import enum
from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from lexicon.faults import Fault, FaultCode


class TensorType(enum.IntEnum):
    """How the numbers of one tensor are stored; the value is ggml's own."""

    F32 = 0
    F16 = 1
    Q4_0 = 2
    Q5_0 = 6
    Q5_1 = 7
    Q8_0 = 8
    Q2_K = 10
    Q3_K = 11
    Q4_K = 12
    Q5_K = 13
    Q6_K = 14
    BF16 = 30

    @property
    def block_elements(self) -> int:
        """Numbers that share one block; a row must be a multiple of it."""
        return _BLOCKS[self][0]

    @property
    def block_bytes(self) -> int:
        """Size of one block."""
        return _BLOCKS[self][1]

    @property
    def is_quantized(self) -> bool:
        return self.block_elements > 1

    def row_bytes(self, column_count: int) -> int:
        """Size of a row; `column_count` must be a multiple of `block_elements`."""
        assert column_count % self.block_elements == 0
        return column_count // self.block_elements * self.block_bytes


# Elements and bytes of a block. K-quants: 256 numbers with packed sub-block scales.
_BLOCKS: Final[Mapping[TensorType, tuple[int, int]]] = MappingProxyType(
    {
        TensorType.F32: (1, 4),
        TensorType.F16: (1, 2),
        TensorType.BF16: (1, 2),
        TensorType.Q4_0: (32, 18),
        TensorType.Q5_0: (32, 22),
        TensorType.Q5_1: (32, 24),
        TensorType.Q8_0: (32, 34),
        TensorType.Q2_K: (256, 84),
        TensorType.Q3_K: (256, 110),
        TensorType.Q4_K: (256, 144),
        TensorType.Q5_K: (256, 176),
        TensorType.Q6_K: (256, 210),
    }
)


class Quantization(enum.StrEnum):
    """A mix of tensor types as users name it; Q4_K_M is the platform's default."""

    F16 = "F16"
    BF16 = "BF16"
    Q8_0 = "Q8_0"
    Q6_K = "Q6_K"
    Q5_K_M = "Q5_K_M"
    Q4_K_M = "Q4_K_M"
    Q4_0 = "Q4_0"
    Q3_K_M = "Q3_K_M"
    Q2_K = "Q2_K"

    @property
    def file_type(self) -> int:
        """The mix's number in `general.file_type`."""
        return _MIXES[self][0]

    @property
    def default_type(self) -> TensorType:
        """The type of every tensor that has no rule of its own."""
        return _MIXES[self][1]


_MIXES: Final[Mapping[Quantization, tuple[int, TensorType]]] = MappingProxyType(
    {
        Quantization.F16: (1, TensorType.F16),
        Quantization.Q4_0: (2, TensorType.Q4_0),
        Quantization.Q8_0: (7, TensorType.Q8_0),
        Quantization.Q2_K: (10, TensorType.Q2_K),
        Quantization.Q3_K_M: (12, TensorType.Q3_K),
        Quantization.Q4_K_M: (15, TensorType.Q4_K),
        Quantization.Q5_K_M: (17, TensorType.Q5_K),
        Quantization.Q6_K: (18, TensorType.Q6_K),
        Quantization.BF16: (32, TensorType.BF16),
    }
)

# The version of the quantised layouts, written into every file as llama.cpp does.
QUANTIZATION_VERSION: Final = 2


def parse_quantization(text: str) -> Quantization:
    """Returns the mix of that name.

    Raises:
        Fault: CONFIG_QUANTIZATION_UNKNOWN.
    """
    try:
        return Quantization(text)
    except ValueError:
        known = ", ".join(Quantization)
        raise Fault(
            FaultCode.CONFIG_QUANTIZATION_UNKNOWN,
            f"Unknown quantization: {text[:40]}. Known: {known}.",
            quantization=text[:40],
        ) from None
