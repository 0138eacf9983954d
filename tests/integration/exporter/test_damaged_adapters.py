"""Adapters that came damaged or for something else: a code, and nothing to be published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.engine.export import Engine
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.making import export_bundle

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"


def cut(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(path.read_bytes()[:-1000])


def emptied(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"")


def of_zeros(folder: Path) -> None:
    path = folder / WEIGHTS
    path.write_bytes(bytes(path.stat().st_size))


def config_cut(folder: Path) -> None:
    path = folder / CONFIG
    path.write_text(path.read_text()[:40])


def config_of_another_kind(folder: Path) -> None:
    (folder / CONFIG).write_text("[]")


def without_config(folder: Path) -> None:
    (folder / CONFIG).unlink()


def without_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def reference_cut(folder: Path) -> None:
    path = folder / "proof_reference.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def reference_of_other_lengths(folder: Path) -> None:
    path = folder / "proof_reference.safetensors"
    tensors = load_file(path)
    tensors["scored"] = tensors["scored"][:-3].clone()
    save_file(tensors, path, metadata={"format_version": "1"})


def changed(change: Callable[[str, torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        made = {name: change(name, tensor).contiguous() for name, tensor in tensors.items()}
        save_file(made, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


def _other_rank(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor[:4] if "layers.1.mlp.up_proj.lora_A" in name else tensor


def _other_width(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return torch.cat([tensor, tensor], dim=1) if "q_proj.lora_A" in name else tensor


def _not_finite(name: str, tensor: torch.Tensor) -> torch.Tensor:
    if "layers.2.self_attn.o_proj.lora_B" in name:
        tensor[3, 3] = float("nan")
    return tensor


def _huge(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor * 1e30 if "layers.0" in name else tensor


def _turned(name: str, tensor: torch.Tensor) -> torch.Tensor:
    return tensor.T if "k_proj.lora_B" in name else tensor


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (cut, FaultCode.MODEL_WEIGHTS_INVALID),
        (emptied, FaultCode.MODEL_WEIGHTS_INVALID),
        (of_zeros, FaultCode.MODEL_WEIGHTS_INVALID),
        (config_cut, FaultCode.MODEL_WEIGHTS_INVALID),
        (config_of_another_kind, FaultCode.MODEL_WEIGHTS_INVALID),
        (without_config, FaultCode.EXPORT_ADAPTER_MISSING),
        (without_tokenizer, FaultCode.EXPORT_ADAPTER_MISSING),
        (reference_cut, FaultCode.MODEL_WEIGHTS_INVALID),
        (reference_of_other_lengths, FaultCode.MODEL_WEIGHTS_INVALID),
        (changed(_other_rank), FaultCode.MODEL_WEIGHTS_INVALID),
        (changed(_other_width), FaultCode.EXPORT_WRONG_BASE),
        (changed(_not_finite), FaultCode.MODEL_WEIGHTS_INVALID),
        (changed(_huge), FaultCode.MODEL_WEIGHTS_INVALID),
        (changed(_turned), FaultCode.MODEL_WEIGHTS_INVALID),
    ],
)
def test_a_damaged_adapter_ends_with_its_code(
    damage: Callable[[Path], None],
    code: FaultCode,
    engine: Engine,
    adapter_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """003-04: a missing one before any conversion; no bundle and no model file is left of any."""
    adapter = shutil.copytree(adapter_of(b_std=0.3), tmp_path / "adapter")
    damage(adapter)
    target = tmp_path / "out"
    target.mkdir()
    with pytest.raises(Fault) as caught:
        export_bundle(engine, adapter, target)
    assert caught.value.code is code
    assert not (target / "bundle.zip").exists()


def test_a_missing_adapter_is_told_before_the_base_is_looked_at(
    engine: Engine, tmp_path: Path
) -> None:
    """003-04"""
    with pytest.raises(Fault) as caught:
        export_bundle(engine, tmp_path, tmp_path, checkpoint=tmp_path / "nowhere", key="nobody")
    assert caught.value.code is FaultCode.EXPORT_ADAPTER_MISSING


def test_one_module_with_a_rank_of_its_own_is_no_damage(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = shutil.copytree(
        adapter_of(b_std=0.3, rank_pattern={"layers.1.mlp.up_proj": 4}), tmp_path / "adapter"
    )
    config: dict[str, Any] = json.loads((adapter / CONFIG).read_text())
    assert config["rank_pattern"]
    assert export_bundle(engine, adapter, tmp_path).proof.proven
