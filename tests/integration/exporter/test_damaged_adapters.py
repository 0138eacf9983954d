"""Adapters that came damaged or for something else: a code, and nothing to be published."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft.tuners.lora.config import BdLoraConfig, KasaConfig, MontecloraConfig
from safetensors.torch import load_file, save_file

from exporter.domain.adapter import read_adapter
from exporter.engine.base import prepare_base
from exporter.engine.export import Engine
from exporter.engine.merge_plan import merge_plan
from exporter.engine.weights import GgufFile, SafetensorsFile
from exporter.pipe import BaseNeededError
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.making import ANVIL, export_bundle, make_adapter

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


def settings(change: Callable[[str], str]) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        path = folder / CONFIG
        text = path.read_text()
        path.write_text(change(text))
        assert path.read_text() != text

    return damage


def replaced(old: str, new: str) -> Callable[[Path], None]:
    return settings(lambda text: text.replace(old, new))


def with_tensor(name: str, like: str) -> Callable[[Path], None]:
    def damage(folder: Path) -> None:
        tensors = load_file(folder / WEIGHTS)
        tensors[name] = torch.zeros_like(tensors[like])
        save_file(tensors, folder / WEIGHTS, metadata={"format": "pt"})

    return damage


Q_PROJ = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.mark.parametrize(
    ("damage", "told"),
    [
        (replaced('"r": 8', '"r": 8, "r": 8'), "unique keys"),
        (replaced('"r": 8', '"r": 4'), "rank 8"),
        (replaced('"r": 8', '"r": 1' + "0" * 400), "r holds"),
        (replaced('"r": 8', '"r": true'), "r holds true"),
        (replaced('"lora_alpha": 16', '"lora_alpha": NaN'), "lora_alpha"),
        (replaced('"lora_alpha": 16', '"lora_alpha": 1' + "0" * 400), "lora_alpha"),
        (replaced('"lora_alpha": 16', '"lora_alpha": 1' + "0" * 5000), CONFIG),
        (replaced('"use_rslora": false', '"use_rslora": "false"'), "use_rslora"),
        (replaced('"alpha_pattern": {}', '"alpha_pattern": ["q_proj"]'), "alpha_pattern"),
        (replaced('"alpha_pattern": {}', '"alpha_pattern": {"q_proj(": 4}'), "'q_proj('"),
        (replaced('"rank_pattern": {}', '"rank_pattern": {"q_proj": 4}'), "q_proj"),
        (with_tensor(f"{Q_PROJ}.weight", f"{Q_PROJ}.lora_A.weight"), "q_proj.weight twice"),
        (
            with_tensor(
                f"{Q_PROJ}.lora_A.weight".removeprefix("base_model.model."),
                f"{Q_PROJ}.lora_A.weight",
            ),
            "q_proj twice",
        ),
    ],
)
def test_settings_and_names_that_do_not_fit_are_damage(
    damage: Callable[[Path], None],
    told: str,
    engine: Engine,
    adapter_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    adapter = shutil.copytree(adapter_of(b_std=0.3), tmp_path / "adapter")
    damage(adapter)
    with pytest.raises(Fault) as caught:
        export_bundle(engine, adapter, tmp_path)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert told in caught.value.message


@pytest.mark.parametrize(
    ("field", "lora"),
    [
        ("init_lora_weights", {"init_lora_weights": "pissa"}),
        ("init_lora_weights", {"init_lora_weights": "pissa_niter_4"}),
        ("init_lora_weights", {"init_lora_weights": "olora"}),
        ("layer_replication", {"layer_replication": [[0, 2], [1, 4]]}),
        ("alora_invocation_tokens", {"alora_invocation_tokens": [1, 2]}),
        ("use_qalora", {"use_qalora": True}),
        ("bias", {"bias": "all"}),
        ("lora_bias", {"lora_bias": True}),
        ("trainable_token_indices", {"trainable_token_indices": [1, 2]}),
        ("kasa_config", {"kasa_config": KasaConfig()}),
        ("monteclora_config", {"monteclora_config": MontecloraConfig()}),
        (
            "use_bdlora",
            {"use_bdlora": BdLoraConfig(target_modules_bd_a=["q_proj"], match_strict=False)},
        ),
        ("use_dora", {"use_dora": True, "target_modules": ["embed_tokens", "q_proj"]}),
    ],
)
def test_an_adapter_of_another_method_is_refused_by_the_name_of_its_setting(
    field: str, lora: dict[str, Any], engine: Engine, tmp_path: Path
) -> None:
    adapter = tmp_path / "adapter"
    make_adapter(ANVIL, adapter, b_std=0.3, **lora)
    with pytest.raises(Fault) as caught:
        export_bundle(engine, adapter, tmp_path)
    assert caught.value.code is FaultCode.EXPORT_ADAPTER_UNSUPPORTED
    assert caught.value.metadata["field"] == field
    assert field in caught.value.message
    assert not (tmp_path / "bundle.zip").exists()


def test_two_names_for_one_tensor_of_the_gguf_are_damage(
    engine: Engine, adapter_of: Callable[..., Path]
) -> None:
    """Memory and checkpoint call a mixture's modules by two names, and both find their place."""
    folder = adapter_of(b_std=0.3)
    base = prepare_base(ANVIL, engine.cache, "identity", vendor=engine.vendor)
    placements = dict(base.placements())
    names = [f"model.layers.{layer}.mlp.up_proj.weight" for layer in (0, 1)]
    placements[names[1]] = placements[names[0]]
    with GgufFile(base.gguf) as gguf, SafetensorsFile(folder / WEIGHTS) as weights:
        shapes = {name: span.shape for name, span in weights.tensors.items()}
        adapter = read_adapter(json.loads((folder / CONFIG).read_text()), shapes)
        with pytest.raises(Fault) as caught:
            merge_plan(gguf, placements, adapter, weights, merge=engine.kernel.merge)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert "twice" in caught.value.message


def test_a_missing_adapter_is_told_before_the_base_is_looked_at(
    engine: Engine, tmp_path: Path
) -> None:
    """003-04"""
    with pytest.raises(Fault) as caught:
        export_bundle(engine, tmp_path, tmp_path, checkpoint=tmp_path / "nowhere", key="nobody")
    assert caught.value.code is FaultCode.EXPORT_ADAPTER_MISSING


@pytest.mark.parametrize(
    ("damage", "code"),
    [
        (
            replaced('"use_qalora": false', '"use_qalora": true'),
            FaultCode.EXPORT_ADAPTER_UNSUPPORTED,
        ),
        (
            with_tensor(f"{Q_PROJ}.lora_C.weight", f"{Q_PROJ}.lora_A.weight"),
            FaultCode.EXPORT_ADAPTER_UNSUPPORTED,
        ),
        (config_cut, FaultCode.MODEL_WEIGHTS_INVALID),
        (emptied, FaultCode.MODEL_WEIGHTS_INVALID),
        (replaced('"r": 8', '"r": 4'), FaultCode.MODEL_WEIGHTS_INVALID),
    ],
)
def test_an_adapter_is_refused_before_its_base_is_asked_for(
    damage: Callable[[Path], None],
    code: FaultCode,
    engine: Engine,
    adapter_of: Callable[..., Path],
    tmp_path: Path,
) -> None:
    """A sound one, of a base that nobody has converted, asks for the files of the base."""
    adapter = shutil.copytree(adapter_of(b_std=0.3), tmp_path / "adapter")
    with pytest.raises(BaseNeededError):
        export_bundle(engine, adapter, tmp_path, checkpoint=None, key="nobody")
    damage(adapter)
    with pytest.raises(Fault) as caught:
        export_bundle(engine, adapter, tmp_path, checkpoint=None, key="nobody")
    assert caught.value.code is code


def test_one_module_with_a_rank_of_its_own_is_no_damage(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = shutil.copytree(
        adapter_of(b_std=0.3, rank_pattern={"layers.1.mlp.up_proj": 4}), tmp_path / "adapter"
    )
    config: dict[str, Any] = json.loads((adapter / CONFIG).read_text())
    assert config["rank_pattern"]
    assert export_bundle(engine, adapter, tmp_path).proof.proven
