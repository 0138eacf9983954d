"""What our rail asks of Unsloth is what the installed Unsloth offers; needs the package, no GPU."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

# In a process of its own: it has to be imported before transformers, and changes it.
PROGRAM = """
import unsloth, inspect
from unsloth import FastLanguageModel
from trainer.training import unsloth_rail
from trainer.training.libraries import TorchLibrary

load = inspect.signature(FastLanguageModel.from_pretrained)
load.bind(
    model_name="x", max_seq_length=1, dtype=None, load_in_4bit=False, device_map={"": 0},
    use_exact_model_name=True, fix_tokenizer=False, trust_remote_code=False,
    local_files_only=True, use_gradient_checkpointing="unsloth",
)
known = set(load.parameters)
assert {"use_exact_model_name", "fix_tokenizer", "use_gradient_checkpointing"} <= known, known
attach = inspect.signature(FastLanguageModel.get_peft_model)
attach.bind(
    object(), r=8, target_modules="all-linear", lora_alpha=16.0, lora_dropout=0.0,
    use_rslora=False, use_dora=False, use_gradient_checkpointing="unsloth", random_state=1,
)
inspect.signature(FastLanguageModel.for_training).bind(object(), use_gradient_checkpointing=True)
inspect.signature(FastLanguageModel.for_inference).bind(object())
from unsloth.models.llama import LlamaModel_fast_forward
forward = inspect.signature(LlamaModel_fast_forward)
forward.bind(
    object(), input_ids=None, position_ids=None, use_cache=False, packed_seq_lengths=None
)
from unsloth.utils.packing import get_packed_info_from_kwargs
import torch
found = get_packed_info_from_kwargs(
    {unsloth_rail.PACKED_LENGTHS: torch.tensor([5, 7], dtype=torch.int32)}, torch.device("cpu")
)
assert found[1].tolist() == [0, 5, 12], found
print("THE RAIL FITS")
"""


@pytest.mark.timeout(300)
@pytest.mark.skipif(
    importlib.util.find_spec("unsloth") is None, reason="Unsloth is for nodes with a GPU"
)
def test_every_name_and_argument_of_the_rail_is_unsloths(tmp_path: Path) -> None:
    """002-25: a pinned Unsloth is known to be good by this, before it meets a run."""
    switches = {
        "UNSLOTH_ALLOW_CPU": "1",
        "UNSLOTH_DISABLE_STATISTICS": "1",
        "UNSLOTH_COMPILE_LOCATION": str(tmp_path),
        "HF_HUB_OFFLINE": "1",
    }
    said = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        cwd=tmp_path,
        env={**os.environ, **switches},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "THE RAIL FITS" in said.stdout, said.stderr[-2000:]
