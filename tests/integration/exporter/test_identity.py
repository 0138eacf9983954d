"""The file against llama.cpp's own tools, and the merged numbers against exact ones.

Bytes are compared where they are determined: tensors that no adapter touches, and the quantisation
of merged numbers. The merged numbers themselves are compared with float64; PEFT's, whose order of
summation is the BLAS's, may lie one unit in the last place away.
"""

import ctypes
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import llama_cpp
import pytest
import torch

from exporter.domain.adapter import read_adapter
from exporter.domain.quantization import Quantization
from exporter.engine import writer
from exporter.engine.base import BaseModel, prepare_base
from exporter.engine.export import CONFIG_NAME, WEIGHTS_NAME, Engine
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.merge_plan import merge_plan
from exporter.engine.weights import GgufFile, SafetensorsFile, read_json
from tests.integration.exporter.making import (
    ANVIL,
    convert_classically,
    matrices_of,
    merge_classically,
    require_peft_s,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
KEY = "identity"


@pytest.fixture(scope="module")
def base(engine: Engine) -> BaseModel:
    return prepare_base(ANVIL, engine.cache, KEY, vendor=engine.vendor)


@pytest.fixture(scope="module")
def adapter(adapter_of: Callable[..., Path]) -> Path:
    return adapter_of(b_std=0.3, rank_pattern={"layers.1.mlp.up_proj": 4}, use_rslora=True)


@pytest.fixture(scope="module")
def unquantized(
    base: BaseModel, adapter: Path, engine: Engine, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The merge as it is, in the base's own type: what every mix is quantised from."""
    target = tmp_path_factory.mktemp("merged") / "merged.gguf"
    one_pass(engine, base, adapter, Quantization.BF16, target)
    return target


@pytest.mark.parametrize("mix", list(Quantization))
def test_every_tensor_is_quantised_as_llama_quantises_it(
    mix: Quantization,
    base: BaseModel,
    adapter: Path,
    unquantized: Path,
    engine: Engine,
    tmp_path: Path,
) -> None:
    """001-28: also with rank-stabilised scaling and ranks of their own for some modules."""
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    one_pass(engine, base, adapter, mix, ours)
    quantize_with_llama(unquantized, theirs, mix)
    with GgufFile(ours) as mine, GgufFile(theirs) as reference:
        assert [info.name for info in mine.header.tensors] == [
            info.name for info in reference.header.tensors
        ]
        assert mine.header.number("general.file_type") == reference.header.number(
            "general.file_type"
        )
    assert differing(ours, theirs) == []


def test_the_merge_is_peft_s_but_for_single_last_bits(
    adapter: Path, unquantized: Path, engine: Engine, tmp_path: Path
) -> None:
    """The shapes, names, ranks and scales are those of the classical chain."""
    merge_classically(ANVIL, adapter, tmp_path, dtype=torch.bfloat16)
    convert_classically(tmp_path, tmp_path / "m.gguf", vendor=engine.vendor, outtype="bf16")
    require_peft_s(matrices_of(unquantized), matrices_of(tmp_path / "m.gguf"))


def test_without_the_kernel_the_file_is_the_same(
    base: BaseModel, adapter: Path, engine: Engine, tmp_path: Path
) -> None:
    slow = Kernel.absent()
    files = [tmp_path / "fast.gguf", tmp_path / "slow.gguf"]
    for target, kernel in zip(files, (engine.kernel, slow), strict=True):
        one_pass(engine, base, adapter, Quantization.Q4_K_M, target, kernel=kernel)
    assert files[0].read_bytes() == files[1].read_bytes()


def differing(ours: Path, theirs: Path) -> list[str]:
    """Tensors of one file that another has not, or has in another type or with other bytes."""
    with GgufFile(ours) as mine, GgufFile(theirs) as reference:
        assert mine.by_name.keys() == reference.by_name.keys()
        different = []
        for info in reference.header.tensors:
            found = mine.by_name[info.name]
            rows = {"first_row": 0, "row_count": info.row_count}
            if found.type is not info.type or bytes(mine.raw(found, **rows)) != bytes(
                reference.raw(info, **rows)
            ):
                different.append(info.name)
        return different


def one_pass(
    engine: Engine,
    base: BaseModel,
    adapter: Path,
    mix: Quantization,
    target: Path,
    *,
    kernel: Kernel | None = None,
) -> None:
    """Merges and quantises, without template and proof."""
    kernel = kernel or engine.kernel
    with GgufFile(base.gguf) as gguf, SafetensorsFile(adapter / WEIGHTS_NAME) as weights:
        shapes = {name: span.shape for name, span in weights.tensors.items()}
        read = read_adapter(read_json(adapter / CONFIG_NAME), shapes)
        tensors = merge_plan(gguf, base.placements(), read, weights, merge=kernel.merge)
        header = replace(gguf.header, tensors=tuple(one.info for one in tensors.values()))
        plan = writer.plan_file(header, mix)
        writer.write_file(
            plan,
            tensors,
            target,
            encode=kernel.encode,
            thread_count=2,
            on_elements=lambda _count: None,
        )


def quantize_with_llama(source: Path, target: Path, mix: Quantization) -> None:
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = mix.file_type
    parameters.nthread = 2
    result = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    assert result == 0
