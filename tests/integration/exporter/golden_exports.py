"""`python -m tests.integration.exporter.golden_exports`: digests of exports as JSON.

Base and adapters hold numbers that no mathematical library took part in, so that on every machine
the same goes in; what comes out must then be the same as well.
"""

import argparse
import hashlib
import json
import math
import shutil
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file

from deploy.local import llama_build
from exporter.domain.quantization import Quantization
from exporter.engine.export import Engine, export
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.weights import SafetensorsFile
from exporter.pipe import Export

ANVIL = Path(__file__).resolve().parents[3] / "deploy" / "models" / "anvil" / "weights"
LEVELS: dict[str, tuple[str, ...]] = {
    "baseline": (),
    "x86-64-v2": ("-march=x86-64-v2",),
    "x86-64-v3": ("-march=x86-64-v3",),
    "x86-64-v4": ("-march=x86-64-v4",),
}
# What of a bundle is the same everywhere; README and proof hold what this machine measured.
ENTRIES = ("model.gguf", "Modelfile", "install.sh", "install.bat")
RANK = 12


def main() -> None:
    """Export; print the digest of each file."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kernel", choices=(*LEVELS, "native", "none"), default="native")
    parser.add_argument("--cache", type=Path, help="converted bases and kernels, kept")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        cache = arguments.cache or Path(name) / "cache"
        kernel = kernel_of(cache, arguments.kernel)
        print(json.dumps(digests(Path(name), cache, kernel), indent=2))


def kernel_of(cache: Path, level: str) -> Kernel:
    """The kernel compiled for a level.

    Raises:
        AssertionError: it does not compile, or differs from the reference.
    """
    if level == "none":
        return Kernel.absent()
    architectures = None if level == "native" else [LEVELS[level]]
    kernel = Kernel.prepare(cache / "kernels", architectures=architectures)
    assert kernel.merges
    return kernel


def digests(folder: Path, cache: Path, kernel: Kernel) -> dict[str, str]:
    """SHA-256 of the files of every golden export."""
    engine = Engine(
        cache=cache,
        vendor=llama_build.vendor_folder(),
        thread_count=2,
        kernel=kernel,
        llama_version="golden",
    )
    bases = {"anvil": ANVIL, "anvil-rope": _base_with_scaled_rope(folder / "rope")}
    adapters = {
        "plain": write_adapter(folder / "plain", use_rslora=True),
        "dora": write_adapter(folder / "dora", use_dora=True),
        "embedding": write_adapter(folder / "embedding", with_embedding=True),
    }
    wanted = [("anvil", "plain", mix) for mix in Quantization]
    wanted += [
        ("anvil-rope", "dora", Quantization.BF16),
        ("anvil", "embedding", Quantization.Q4_K_M),
    ]
    found = {}
    for base, adapter, mix in wanted:
        target = folder / "bundle.zip"
        job = Export(
            checkpoint=str(bases[base]), base_key=base, base_model=f"golden/{base}",
            adapter=str(adapters[adapter]), quantization=mix, target=str(target),
            run="projects/golden/runs/golden",
        )  # fmt: skip
        export(engine, job, lambda _step, _percent: None)
        with zipfile.ZipFile(target) as archive:
            for entry in ENTRIES:
                digest = hashlib.sha256(archive.read(entry)).hexdigest()
                found[f"{base} {adapter} {mix} {entry}"] = digest
    return found


def write_adapter(folder: Path, *, with_embedding: bool = False, **settings: Any) -> Path:
    """Writes an adapter over all linear layers of the demo's base."""
    folder.mkdir()
    rng = np.random.default_rng(11)
    weights: dict[str, NDArray[np.float32]] = {}
    with SafetensorsFile(ANVIL / "model.safetensors") as base:
        for name, span in sorted(base.tensors.items()):
            module = f"base_model.model.{name.removesuffix('.weight')}"
            if name.endswith("_proj.weight"):
                rows, columns = span.shape
                weights[f"{module}.lora_A.weight"] = _numbers(rng, RANK, columns)
                weights[f"{module}.lora_B.weight"] = _numbers(rng, rows, RANK)
                if settings.get("use_dora"):
                    lengths = 1 + np.abs(_numbers(rng, rows))
                    weights[f"{module}.lora_magnitude_vector"] = lengths
            elif with_embedding and "embed_tokens" in name:
                rows, columns = span.shape
                weights[f"{module}.lora_embedding_A"] = _numbers(rng, RANK, rows)
                weights[f"{module}.lora_embedding_B"] = _numbers(rng, columns, RANK)
    save_file(weights, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    config = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": RANK, "lora_alpha": 8,
        "target_modules": "all-linear", **settings,
    }  # fmt: skip
    (folder / "adapter_config.json").write_text(json.dumps(config))
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        shutil.copyfile(ANVIL / name, folder / name)
    return folder


def _numbers(rng: np.random.Generator, *shape: int) -> NDArray[np.float32]:
    """Whole numbers over a power of two, about as large as trained factors."""
    whole = rng.integers(-1000, 1001, shape).astype(np.float32)
    return np.asarray(whole / np.float32(1 << (14 + round(math.log2(RANK)))), np.float32)


def _base_with_scaled_rope(folder: Path) -> Path:
    """The demo's base with rotary factors that the converter has to compute."""
    shutil.copytree(ANVIL, folder)
    config = json.loads((folder / "config.json").read_text())
    config.pop("rope_theta", None)
    config["rope_parameters"] = {
        "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
    }  # fmt: skip
    (folder / "config.json").write_text(json.dumps(config))
    return folder


if __name__ == "__main__":
    main()
