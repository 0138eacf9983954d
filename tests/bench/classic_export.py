"""The classical chain, as a process of its own: merge_and_unload, convert, llama_model_quantize.

`python -m tests.bench.classic_export BASE ADAPTER FOLDER VENDOR` leaves `quantised.gguf` in FOLDER
and prints the seconds of each step.
"""

import ctypes
import json
import subprocess
import sys
import time
from pathlib import Path

BEGIN = time.monotonic()


def main() -> None:
    """Do it the way everybody does."""
    base, adapter, folder, vendor = (Path(argument) for argument in sys.argv[1:5])
    seconds: dict[str, float] = {}
    merged = folder / "merged"
    _merge(base, adapter, merged)
    seconds["merge"] = time.monotonic() - BEGIN
    converted = folder / "merged.gguf"
    subprocess.run(
        [
            sys.executable, "-m", "exporter.engine.conversion_tool", "--vendor", vendor, "--model",
            merged, "--outfile", converted, "--outtype", "bf16", "--record", folder / "record.json",
            "--whole-tensors",
        ],
        check=True,
        capture_output=True,
    )  # fmt: skip
    seconds["convert"] = time.monotonic() - BEGIN - seconds["merge"]
    _quantize(converted, folder / "quantised.gguf")
    seconds["all"] = time.monotonic() - BEGIN
    seconds["quantize"] = seconds["all"] - seconds["merge"] - seconds["convert"]
    print(json.dumps(seconds))


def _merge(base: Path, adapter: Path, target: Path) -> None:
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)


def _quantize(source: Path, target: Path) -> None:
    import llama_cpp

    from exporter.domain.quantization import Quantization

    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = Quantization.Q4_K_M.file_type
    result = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    assert result == 0


if __name__ == "__main__":
    main()
