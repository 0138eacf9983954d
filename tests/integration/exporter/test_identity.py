"""Every byte equals what llama.cpp itself makes of the merged checkpoint."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import llama_cpp
import pytest
import torch

from exporter.domain.adapter import read_adapter
from exporter.domain.quantization import Quantization
from exporter.engine import writer
from exporter.engine.base import BaseModel, prepare_base
from exporter.engine.export import CONFIG_NAME, WEIGHTS_NAME, Engine
from exporter.engine.merge_plan import merge_plan
from exporter.engine.weights import GgufFile, SafetensorsFile, read_json
from tests.integration.exporter.making import ANVIL, convert_classically, merge_classically

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]
KEY = "identity"


@pytest.fixture(scope="module")
def base(engine: Engine) -> BaseModel:
    return prepare_base(ANVIL, engine.cache, KEY, vendor=engine.vendor)


@pytest.fixture(scope="module")
def adapter(adapter_of: Callable[..., Path]) -> Path:
    return adapter_of(b_std=0.3, rank_pattern={"layers.1.mlp.up_proj": 4}, use_rslora=True)


@pytest.fixture(scope="module")
def classic(adapter: Path, engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """merge_and_unload, then the converter: the classical way to the same model."""
    merged = tmp_path_factory.mktemp("merged")
    merge_classically(ANVIL, adapter, merged, dtype=torch.bfloat16)
    convert_classically(merged, merged / "m.gguf", vendor=engine.vendor, outtype="bf16")
    return merged / "m.gguf"


@pytest.mark.parametrize("mix", list(Quantization))
def test_every_tensor_equals_the_classical_chain(
    mix: Quantization, base: BaseModel, adapter: Path, classic: Path, engine: Engine, tmp_path: Path
) -> None:
    """001-28: also with rank-stabilised scaling and ranks of their own for some modules."""
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    one_pass(engine, base, adapter, mix, ours)
    quantize_with_llama(classic, theirs, mix)
    with GgufFile(ours) as mine, GgufFile(theirs) as reference:
        assert [info.name for info in mine.header.tensors] == [
            info.name for info in reference.header.tensors
        ]
        for info in reference.header.tensors:
            found = mine.by_name[info.name]
            assert found.type is info.type, info.name
            rows = {"first_row": 0, "row_count": info.row_count}
            assert bytes(mine.raw(found, **rows)) == bytes(reference.raw(info, **rows)), info.name
        assert mine.header.number("general.file_type") == reference.header.number(
            "general.file_type"
        )


def one_pass(
    engine: Engine, base: BaseModel, adapter: Path, mix: Quantization, target: Path
) -> None:
    with GgufFile(base.gguf) as gguf, SafetensorsFile(adapter / WEIGHTS_NAME) as weights:
        shapes = {name: span.shape for name, span in weights.tensors.items()}
        read = read_adapter(read_json(adapter / CONFIG_NAME), shapes)
        tensors = merge_plan(gguf, base.placements(), read, weights, merge=engine.kernel.merge)
        plan = writer.plan_file(gguf.header, mix)
        writer.write_file(
            plan,
            tensors,
            target,
            encode=engine.kernel.encode,
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
