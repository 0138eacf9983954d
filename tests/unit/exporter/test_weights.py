"""A checkpoint's files as a stranger may have laid them out."""

import json
from pathlib import Path
from typing import Any

import pytest

from exporter.engine.weights import Checkpoint
from lexicon.faults import Fault, FaultCode


@pytest.mark.parametrize(
    "weight_map",
    [["a", "b"], "model.safetensors", {"w": 1}, {"w": ["a"], "v": "b"}, {"w": "../a.safetensors"}],
)
def test_an_index_that_names_no_files_is_refused(weight_map: Any, tmp_path: Path) -> None:
    """004-10"""
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": weight_map}))
    with pytest.raises(Fault) as caught:
        Checkpoint(tmp_path)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
