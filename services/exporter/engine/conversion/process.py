"""The process in which llama.cpp's converter runs: what it may see, and what its end means."""

import errno
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from exporter.engine.disk import is_full
from exporter.engine.weights import read_json
from lexicon.faults import Fault, FaultCode

CONVERSION_SECONDS: Final = 4 * 3600.0
# Of a failed converter's output, the end says why.
OUTPUT_CHARACTERS: Final = 4000

# How Python, which the converter is written in, reports a full disk; numpy's writer does not say.
_NO_SPACE: Final = f"[Errno {errno.ENOSPC}]"
_NEEDED: Final = ("conversion/__init__.py", "conversion/base.py", "gguf-py/gguf/__init__.py")
# What the converter may see: weights, settings and tokenizers, never code.
_VISIBLE: Final = re.compile(
    r".*\.(?:safetensors|json|jinja|txt)|tokenizer\.model|tekken\.json|README\.md"
)


def convert(
    source: Path, target: Path, *, vendor: Path, outtype: str
) -> Sequence[Mapping[str, Sequence[str]]]:
    """Writes a checkpoint's GGUF; returns which of its tensors became which of the file.

    Both streams of the process are kept for the fault. The target's folder is used for what is
    deleted afterwards.

    Args:
        vendor: folder with llama.cpp's `conversion` package and `gguf-py`.
        outtype: bf16, f16 or f32.
    Raises:
        Fault: MODEL_NOT_CONVERTIBLE with the converter's output, EXPORT_DISK_FULL.
    """
    view, record = target.with_name("view"), target.with_name("record.json")
    _make_view(source, view)
    command = [
        sys.executable, "-m", "exporter.engine.conversion", "--vendor", str(vendor),
        "--model", str(view), "--outfile", str(target), "--outtype", outtype,
        "--record", str(record),
    ]  # fmt: skip
    try:
        done = subprocess.run(
            command, env=_tool_environment(), capture_output=True, text=True, errors="replace",
            stdin=subprocess.DEVNULL, timeout=CONVERSION_SECONDS, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise Fault(
            FaultCode.MODEL_NOT_CONVERTIBLE,
            f"llama.cpp's converter did not end within {CONVERSION_SECONDS:.0f} s.",
        ) from None
    finally:
        shutil.rmtree(view, ignore_errors=True)
    if done.returncode != 0 and (_NO_SPACE in done.stderr or is_full(target.parent)):
        raise Fault(FaultCode.EXPORT_DISK_FULL)
    if done.returncode != 0:
        lines = (
            done.stderr.strip().splitlines() or done.stdout.strip().splitlines() or ["no output"]
        )
        raise Fault(
            FaultCode.MODEL_NOT_CONVERTIBLE,
            f"llama.cpp's converter refused the base model: {lines[-1][:300]}",
            exit_code=done.returncode,
            stdout=done.stdout[-OUTPUT_CHARACTERS:],
            stderr=done.stderr[-OUTPUT_CHARACTERS:],
        )
    groups: list[dict[str, list[str]]] = json.loads(record.read_text(encoding="utf-8"))
    record.unlink()
    return groups


def missing_part(vendor: Path) -> str | None:
    """The first file that the converter needs and the folder lacks."""
    return next((name for name in _NEEDED if not (vendor / name).is_file()), None)


def _make_view(source: Path, view: Path) -> None:
    """A folder of links to what the converter may read; settings that name code are cut out."""
    view.mkdir()
    for path in sorted(source.iterdir()):
        if not path.is_file() or not _VISIBLE.fullmatch(path.name):
            continue
        if path.name in {"config.json", "tokenizer_config.json"}:
            settings = read_json(path)
            settings.pop("auto_map", None)
            (view / path.name).write_text(json.dumps(settings), encoding="utf-8")
        else:
            (view / path.name).symlink_to(path.resolve())


def _tool_environment() -> dict[str, str]:
    """No secret and no network for the tool.

    It keeps its bytecode where it can: compiling torch and transformers takes ten seconds and more.
    """
    kept = (
        "PATH",
        "PYTHONPATH",
        "LD_LIBRARY_PATH",
        "HOME",
        "TMPDIR",
        "LANG",
        "LC_ALL",
        "SYSTEMROOT",
    )
    environment = {name: os.environ[name] for name in kept if name in os.environ}
    return environment | {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "PYTHONPATH": os.pathsep.join(entry for entry in sys.path if entry),
        "TOKENIZERS_PARALLELISM": "false",
        # torch's vector code differs between instruction sets in the last place of exponentials.
        "ATEN_CPU_CAPABILITY": "default",
    }
