"""How a base comes into memory, and how it is told when it cannot."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from deploy.models.anvil.grammar import HOME
from lexicon.faults import Fault, FaultCode
from tests.support.training import FP32, a_plan
from trainer.training.rails import load_base


def test_cut_weights_are_found_before_training_and_no_folder_is_named(tmp_path: Path) -> None:
    """004-10, 000-35: a truncated safetensors file; no path of the node is told."""
    folder = tmp_path / "base"
    shutil.copytree(HOME / "weights", folder)
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    base = replace(a_plan().base, folder=str(folder))
    with pytest.raises(Fault) as caught:
        load_base(base, FP32)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert base.model_id in caught.value.message
    assert str(tmp_path) not in caught.value.message
