"""The classical chain: merge_and_unload, convert_hf_to_gguf, llama_model_quantize.

`python -m tests.bench.classic_export VENDOR THREADS` reads jobs from its standard input, one a
line: the folders of base, adapter and work, by tabs. It leaves `merged.gguf` and `quantised.gguf`
in the work folder and answers with the seconds of each step as JSON. What can be loaded ahead is
loaded before the first answer, which is an empty line.
"""

import ctypes
import json
import shutil
import sys
import time
from pathlib import Path

import llama_cpp
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.domain.quantization import Quantization
from exporter.engine.conversion import patched_converter


def main() -> None:
    """Serve until the input ends."""
    vendor, threads = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(threads)
    answers = sys.stdout
    # Libraries print what they like.
    sys.stdout = sys.stderr
    print(file=answers, flush=True)
    for line in sys.stdin:
        base, adapter, folder = (Path(part) for part in line.rstrip("\n").split("\t"))
        seconds = _chain(base, adapter, folder, vendor=vendor, threads=threads)
        print(json.dumps(seconds), file=answers, flush=True)


def _chain(
    base: Path, adapter: Path, folder: Path, *, vendor: Path, threads: int
) -> dict[str, float]:
    """Does it the way everybody does; seconds of each step."""
    marks = [time.monotonic()]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    _merge(base, adapter, folder / "merged")
    marks.append(time.monotonic())
    patched_converter.convert(
        folder / "merged", folder / "merged.gguf", vendor=vendor, outtype="bf16", whole_tensors=True
    )
    marks.append(time.monotonic())
    quantise(folder / "merged.gguf", folder / "quantised.gguf", threads=threads)
    marks.append(time.monotonic())
    steps = zip(("merge", "convert", "quantise"), marks, marks[1:], strict=False)
    return {name: round(end - begin, 3) for name, begin, end in steps}


def _merge(base: Path, adapter: Path, target: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload()
    merged.save_pretrained(target)
    AutoTokenizer.from_pretrained(base).save_pretrained(target)


def quantise(source: Path, target: Path, *, threads: int) -> None:
    """Q4_K_M by llama.cpp."""
    parameters = llama_cpp.llama_model_quantize_default_params()
    parameters.ftype = Quantization.Q4_K_M.file_type
    parameters.nthread = threads
    result = llama_cpp.llama_model_quantize(
        str(source).encode(), str(target).encode(), ctypes.byref(parameters)
    )
    assert result == 0


if __name__ == "__main__":
    main()
