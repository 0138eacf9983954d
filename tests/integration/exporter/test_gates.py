"""A bundle that does not behave like what was trained never leaves the exporter."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file

from exporter.domain.quantization import Quantization, TensorType
from exporter.engine import ggml
from exporter.engine.export import Engine
from exporter.engine.kernel.kernel import Kernel
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.making import ANVIL, export_bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]


class Damaged:
    """A kernel that shifts the bytes of every matrix."""

    def __init__(self, sound: Kernel) -> None:
        self.merge = sound.merge

    def encode(self, rows: NDArray[np.float32], kind: TensorType) -> NDArray[np.uint8]:
        encoded = ggml.encode(rows, kind)
        return np.roll(encoded, 1, axis=1) if len(rows) > 1 else encoded


@pytest.fixture
def adapter(adapter_of: Callable[..., Path], tmp_path: Path) -> Path:
    """A copy that a test may damage."""
    return shutil.copytree(adapter_of(b_std=0.3), tmp_path / "adapter")


def code_of(engine: Engine, adapter: Path, tmp_path: Path, **wishes: object) -> FaultCode:
    with pytest.raises(Fault) as caught:
        export_bundle(engine, adapter, tmp_path, **wishes)  # type: ignore[arg-type]
    assert not (tmp_path / "bundle.zip").exists()
    return caught.value.code


@pytest.mark.parametrize("mix", list(Quantization))
def test_a_sound_export_passes(
    mix: Quantization, engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    exported = export_bundle(engine, adapter, tmp_path, mix)
    assert exported.proof.proven
    assert exported.proof.adapter_mean_kl < exported.proof.base_mean_kl


@pytest.fixture(scope="module")
def other_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of the same shape whose layers do something else."""
    other = shutil.copytree(ANVIL, tmp_path_factory.mktemp("other") / "model")
    weights = load_file(other / "model.safetensors")
    for name, tensor in weights.items():
        if "down_proj" in name or "o_proj" in name:
            weights[name] = tensor.flip(0).contiguous()
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return other


@pytest.mark.parametrize("mix", list(Quantization))
def test_a_merge_without_effect_is_refused(
    mix: Quantization, engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] = 0
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert code_of(engine, adapter, tmp_path, mix=mix) is FaultCode.EXPORT_NOOP_MERGE


def test_a_merge_that_rounding_swallows_is_refused(
    engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    """A delta so small that no number of the base moves, whatever behaviour could show."""
    weights = load_file(adapter / "adapter_model.safetensors")
    small = {name: tensor * 1e-12 for name, tensor in weights.items()}
    save_file(small, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    assert code_of(engine, adapter, tmp_path, mix="Q2_K") is FaultCode.EXPORT_NOOP_MERGE


def test_a_merge_that_moves_a_single_row_is_no_empty_one(
    engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    """Words that were added to a vocabulary may be all that an adapter changes."""
    weights = load_file(adapter / "adapter_model.safetensors")
    for name, tensor in weights.items():
        if "lora_B" in name:
            kept = tensor[77].clone()
            tensor.zero_()
            if "layers.2.mlp.up_proj" in name:
                tensor[77] = kept
    save_file(weights, adapter / "adapter_model.safetensors", metadata={"format": "pt"})
    (adapter / "proof_reference.safetensors").unlink()
    assert not export_bundle(engine, adapter, tmp_path).proof.proven


@pytest.mark.parametrize("mix", list(Quantization))
def test_a_merge_into_another_base_is_refused(
    mix: Quantization, engine: Engine, adapter: Path, other_base: Path, tmp_path: Path
) -> None:
    found = code_of(engine, adapter, tmp_path, mix=mix, checkpoint=other_base, key="other")
    assert found is FaultCode.EXPORT_WRONG_BASE


@pytest.fixture(scope="module")
def noisy_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as another revision of it would have it."""
    other = shutil.copytree(ANVIL, tmp_path_factory.mktemp("noisy") / "model")
    weights = load_file(other / "model.safetensors")
    rng = np.random.default_rng(0)
    for name, tensor in weights.items():
        if tensor.ndim > 1:
            noise = torch.from_numpy(rng.standard_normal(tensor.shape, np.float32))
            weights[name] = (tensor + 0.3 * tensor.float().std() * noise).to(tensor.dtype)
    save_file(weights, other / "model.safetensors", metadata={"format": "pt"})
    return other


@pytest.mark.parametrize("mix", ["F16", "Q4_K_M", "Q2_K"])
def test_another_revision_of_the_base_is_refused(
    mix: str, engine: Engine, adapter: Path, noisy_base: Path, tmp_path: Path
) -> None:
    found = code_of(engine, adapter, tmp_path, mix=mix, checkpoint=noisy_base, key="noisy")
    assert found is FaultCode.EXPORT_WRONG_BASE


@pytest.mark.parametrize("mix", ["BF16", "Q8_0", "Q2_K"])
def test_a_merge_with_another_factor_is_refused_and_blamed(
    mix: str, engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    """Four fifths of an adapter are near to it, and still not what was trained."""
    config = json.loads((adapter / "adapter_config.json").read_text())
    config["lora_alpha"] *= 0.8
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    assert code_of(engine, adapter, tmp_path, mix=mix) is FaultCode.EXPORT_MERGE_MISMATCH


@pytest.mark.parametrize("mix", list(Quantization))
def test_a_corrupted_quantisation_is_refused(
    mix: Quantization, engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    broken = replace(engine, kernel=Damaged(engine.kernel))  # type: ignore[arg-type]
    assert code_of(broken, adapter, tmp_path, mix=mix) is FaultCode.EXPORT_QUANTIZATION_BROKEN


@pytest.mark.parametrize("mix", list(Quantization))
def test_a_template_other_than_the_trained_one_is_refused(
    mix: Quantization, engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    source = (adapter / "chat_template.jinja").read_text()
    (adapter / "chat_template.jinja").write_text(source.replace("<|im_start|>", "<|turn|>"))
    assert code_of(engine, adapter, tmp_path, mix=mix) is FaultCode.EXPORT_TEMPLATE_MISMATCH


def test_an_adapter_without_a_reference_is_exported_and_says_so(
    engine: Engine, adapter: Path, tmp_path: Path
) -> None:
    (adapter / "proof_reference.safetensors").unlink()
    assert not export_bundle(engine, adapter, tmp_path).proof.proven
