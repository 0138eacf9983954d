"""A base whose rows were streamed is, byte for byte, the file that llama.cpp's converter writes."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.engine.conversion.row_streams import ELEMENTS_AT_ONCE, Shadow
from tests.integration.exporter.families import FAMILIES, make_base
from tests.integration.exporter.making import ANVIL, convert_classically, convert_here

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


@pytest.fixture
def require_equal(
    vendor: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> Callable[[Path, str], str]:
    """Converts a checkpoint both ways, compares the files and returns what was said of streams."""

    def require(folder: Path, outtype: str) -> str:
        streamed, whole = tmp_path / "streamed.gguf", tmp_path / "whole.gguf"
        with caplog.at_level("INFO", logger="exporter"):
            convert_here(folder, streamed, vendor=vendor, outtype=outtype, whole_tensors=False)
        convert_classically(folder, whole, vendor=vendor, outtype=outtype)
        assert streamed.read_bytes() == whole.read_bytes()
        return next(line for line in caplog.messages if "streamed" in line)

    return require


def test_every_matrix_of_the_demo_model_is_streamed(require_equal: Callable[..., str]) -> None:
    log = require_equal(ANVIL, "bf16")
    matrices = [
        tensor for tensor in load_file(ANVIL / "model.safetensors").values() if tensor.ndim > 1
    ]
    assert f"{len(matrices)} of " in log


@pytest.mark.parametrize("outtype", ["f32", "f16"])
def test_weights_of_several_types_are_converted_on_the_way(
    outtype: str, require_equal: Callable[..., str], tmp_path: Path
) -> None:
    model = shutil.copytree(ANVIL, tmp_path / "model")
    weights = load_file(model / "model.safetensors")
    kinds = (torch.float16, torch.float32, torch.bfloat16)
    mixed = {name: part.to(kinds[turn % 3]) for turn, (name, part) in enumerate(weights.items())}
    save_file(mixed, model / "model.safetensors", metadata={"format": "pt"})
    require_equal(model, outtype)


@pytest.mark.parametrize("name", list(FAMILIES))
def test_every_family_s_file_is_the_converter_s(
    name: str, require_equal: Callable[..., str], tmp_path: Path
) -> None:
    """Its vocabulary included, which a process without torch reads ahead."""
    make_base(FAMILIES[name], tmp_path / "model")
    require_equal(tmp_path / "model", "f16")


def test_experts_are_stacked_from_their_rows(
    require_equal: Callable[..., str], tmp_path: Path
) -> None:
    """Three stacks a layer: of a mixture nothing but norms and routers is left to the converter."""
    make_base(FAMILIES["mixtral"], tmp_path / "model")
    log = require_equal(tmp_path / "model", "f16")
    layers, dense, stacks = 3, 4, 3
    assert f"{layers * (dense + stacks + 1) + 2} of " in log


def test_a_tensor_of_many_slabs_is_written_whole(tmp_path: Path) -> None:
    """A slab more and a slab less, in order and interleaved; the bits are those of the source."""
    columns = 1 << 11
    rows = 3 * ELEMENTS_AT_ONCE // columns + 2
    weights = torch.arange(rows * columns, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    weights = weights.reshape(rows, columns)
    bits = weights.view(torch.int16)
    for turn in (_as_they_are, _interleaved):
        shadow = Shadow(_Model(turn, weights), as_tensor=torch.from_numpy)
        shadow.follow("w", (rows, columns), None)
        info = _Info(shape=(rows, columns), nbytes=rows * columns * 2)
        assert shadow.replace({"t": info}) == 1
        with (tmp_path / "t").open("wb") as out:
            info.tensor.tofile(out)
        assert (tmp_path / "t").read_bytes() == turn(bits).numpy().tobytes()


def _as_they_are(rows: torch.Tensor) -> torch.Tensor:
    return rows


def _interleaved(rows: torch.Tensor) -> torch.Tensor:
    count, columns = rows.shape
    return rows.reshape(2, count // 2, columns).swapaxes(0, 1).reshape(count, columns)


class _Model:
    """A converter's model class that turns one tensor; its weights lie in a file of their own."""

    def __init__(self, turn: Any, weights: torch.Tensor) -> None:
        self._turn = turn
        self.model_tensors = {"w": lambda: _Lazy(_Stored(weights))}

    def modify_tensors(self, data: torch.Tensor, _name: str, _block: None) -> Any:
        return [("t", self._turn(data))]


class _Lazy:
    def __init__(self, stored: "_Stored") -> None:
        self._args = (stored,)


class _Stored:
    dtype = "BF16"

    def __init__(self, weights: torch.Tensor) -> None:
        self.shape = tuple(weights.shape)
        self.mmap_bytes = weights.view(torch.uint8).numpy().reshape(-1).view


class _Info:
    """A tensor of the GGUF writer."""

    def __init__(self, *, shape: tuple[int, ...], nbytes: int) -> None:
        self.shape, self.nbytes = shape, nbytes
        self.tensor: Any = None
        self.dtype = type("BF16", (), {"name": "BF16"})
