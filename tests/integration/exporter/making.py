"""Small real models and adapters with their proof reference, made by transformers and PEFT."""

import json
import sys
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from exporter.engine import ggml
from exporter.engine.conversion import patched_converter
from exporter.engine.export import Engine, OnEvicted, export
from exporter.engine.weights import GgufFile
from exporter.pipe import Export, Exported

ANVIL = Path(__file__).resolve().parents[3] / "deploy" / "models" / "anvil" / "weights"
PROMPTS = (
    "What is a hammer for?",
    "Who works at the forge?",
    "Tell me about iron.",
    "Is fire hot?",
)
TOP_K = 64


def make_adapter(
    base: Path,
    folder: Path,
    *,
    seed: int = 1,
    b_std: float = 0.05,
    saved_std: float = 0.0,
    dtype: torch.dtype = torch.bfloat16,
    **lora: Any,
) -> None:
    """Writes an adapter with random factors.

    Args:
        b_std: how far the low-rank changes are from none.
        saved_std: how far modules trained whole are from the base's, in their own deviations.
    """
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    settings: dict[str, Any] = {
        "r": 8,
        "lora_alpha": 16,
        "target_modules": "all-linear",
        "task_type": "CAUSAL_LM",
    }
    settings.update(lora)
    peft = get_peft_model(model, LoraConfig(**settings))
    for name, parameter in peft.named_parameters():
        if "lora_B" in name or "lora_embedding_A" in name:
            torch.nn.init.normal_(parameter, std=b_std)
        elif "modules_to_save" in name and saved_std:
            with torch.no_grad():
                parameter.add_(torch.randn_like(parameter) * parameter.std() * saved_std)
    if settings.get("ensure_weight_tying") and not settings.get("modules_to_save"):
        _tie(peft)
    peft.save_pretrained(str(folder))
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.save_pretrained(folder)
    if not (folder / "chat_template.jinja").exists():
        (folder / "chat_template.jinja").write_text((base / "chat_template.jinja").read_text())
    config = json.loads((folder / "adapter_config.json").read_text())
    config["base_model_name_or_path"] = "tunesmith/anvil-3m"
    (folder / "adapter_config.json").write_text(json.dumps(config))


@torch.no_grad()
def _tie(model: Any) -> None:
    """Gives the head the factors of the embedding, as training with `ensure_weight_tying` does."""
    embedding, head = model.get_input_embeddings(), model.get_output_embeddings()
    head.lora_A["default"].weight.copy_(embedding.lora_embedding_B["default"].t())
    head.lora_B["default"].weight.copy_(embedding.lora_embedding_A["default"].t())


def merge_classically(base: Path, adapter: Path, folder: Path, *, dtype: torch.dtype) -> None:
    """Writes the merged checkpoint as PEFT merges it."""
    model = AutoModelForCausalLM.from_pretrained(base, dtype=dtype)
    merged = PeftModel.from_pretrained(model, adapter).merge_and_unload()
    merged.save_pretrained(folder)
    AutoTokenizer.from_pretrained(base).save_pretrained(folder)


def convert_classically(folder: Path, target: Path, *, vendor: Path, outtype: str) -> None:
    """Writes the GGUF of a checkpoint with every tensor through llama.cpp's converter."""
    convert_here(folder, target, vendor=vendor, outtype=outtype, whole_tensors=True)


def convert_here(
    folder: Path, target: Path, *, vendor: Path, outtype: str, whole_tensors: bool
) -> None:
    """Runs the conversion tool in this process, which has torch loaded already."""
    with _converter_modules():
        patched_converter.convert(
            folder, target, vendor=vendor, outtype=outtype, whole_tensors=whole_tensors
        )


_CONVERTER: dict[str, ModuleType] = {}


@contextmanager
def _converter_modules() -> Iterator[None]:
    """llama.cpp's own `gguf` for a while: other tests read files with the published package."""

    def loaded() -> dict[str, ModuleType]:
        roots = {"gguf", "conversion"}
        return {name: one for name, one in sys.modules.items() if name.partition(".")[0] in roots}

    kept, path = loaded(), list(sys.path)
    for name in kept:
        del sys.modules[name]
    sys.modules.update(_CONVERTER)
    try:
        yield
    finally:
        _CONVERTER.update(loaded())
        for name in loaded():
            del sys.modules[name]
        sys.modules.update(kept)
        sys.path[:] = path


@torch.inference_mode()
def write_reference(
    base: Path, adapter: Path, *, prompts: Sequence[str] = PROMPTS, answer_tokens: int = 24
) -> None:
    """Writes `proof_reference.safetensors` beside the adapter, in the trainer's format."""
    tokenizer = AutoTokenizer.from_pretrained(adapter)
    model = PeftModel.from_pretrained(
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32), adapter
    )
    model.eval()
    offsets, tokens, scored = [0], list[int](), list[int]()
    tables: dict[str, list[torch.Tensor]] = {}
    for prompt in prompts:
        text = tokenizer.apply_chat_template(
            [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
        )
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids
        generate: Any = model.generate
        made = generate(input_ids=ids, max_new_tokens=answer_tokens, do_sample=False)[0]
        answer_count = len(made) - ids.shape[1]
        tokens += made.tolist()
        scored += [0] * (ids.shape[1] - 1) + [1] * answer_count + [0]
        offsets.append(len(tokens))
        adapter_top = _top(model(made[None]).logits[0])
        with model.disable_adapter():
            base_top = _top(model(made[None]).logits[0])
        for who, (logprobs, top_ids) in (("adapter", adapter_top), ("base", base_top)):
            tables.setdefault(f"{who}_topk_logprobs", []).append(logprobs)
            tables.setdefault(f"{who}_topk_ids", []).append(top_ids)
    save_file(
        {
            "token_ids": torch.tensor(tokens, dtype=torch.int32),
            "segment_offsets": torch.tensor(offsets, dtype=torch.int64),
            "scored": torch.tensor(scored, dtype=torch.uint8),
            **{name: torch.cat(parts) for name, parts in tables.items()},
        },
        adapter / "proof_reference.safetensors",
        metadata={"format_version": "1", "top_k": str(TOP_K)},
    )


def export_bundle(
    engine: Engine,
    adapter: Path,
    folder: Path,
    mix: str = "Q4_K_M",
    *,
    checkpoint: Path | None = ANVIL,
    key: str = "gates",
    on_evicted: OnEvicted = lambda _evicted: None,
) -> Exported:
    """A whole export into `folder / "bundle.zip"`, as a lease asks for it.

    Args:
        checkpoint: files of the base, None as long as nobody has asked for them.
    """
    job = Export(
        checkpoint=str(checkpoint or ""),
        base_key=key,
        base_model="tunesmith/anvil-3m",
        adapter=str(adapter),
        quantization=mix,
        target=str(folder / "bundle.zip"),
        run="projects/local/runs/run-1",
    )
    return export(engine, job, lambda _step, _percent: None, on_evicted)


def model_in(bundle: Path, folder: Path) -> Path:
    """The GGUF of a bundle, unpacked."""
    with zipfile.ZipFile(bundle) as archive:
        return Path(archive.extract("model.gguf", folder))


def matrices_of(path: Path) -> dict[str, NDArray[np.float32]]:
    """All matrices of an unquantised GGUF by name, as float32."""
    with GgufFile(path) as file:
        return {
            info.name: ggml.decode(
                np.array(file.raw(info, first_row=0, row_count=info.row_count)),
                info.type,
                column_count=info.column_count,
            )
            for info in file.header.tensors
            if len(info.dimensions) > 1
        }


# What a float32 sum of some products loses, relative to the largest number of a matrix.
FLOAT32_LOSS = 2.0**-20


def require_peft_s(
    ours: Mapping[str, NDArray[np.float32]],
    theirs: Mapping[str, NDArray[np.float32]],
    *,
    bits: int = 8,
    rounded_first: bool = False,
) -> None:
    """Checks matrices against PEFT's, which are sums in float32 by whatever BLAS there is.

    They may be one unit in the last place apart, few of them, and further only where base and
    change nearly cancel, so that what float32 lost is much for the small rest.

    Args:
        bits: of the type's significand: 8 for bfloat16, 11 for float16.
        rounded_first: PEFT rounds the change of bare parameters and stacked experts before it adds
            it, which moves the last bit of many numbers.
    """
    assert ours.keys() == theirs.keys()
    for name, wanted in theirs.items():
        apart = np.abs(ours[name].astype(np.float64) - wanted)
        _, exponent = np.frexp(np.maximum(np.abs(ours[name]), np.abs(wanted)))
        # float16 has no smaller step than 2^-24.
        step = np.ldexp(1.0, np.maximum(exponent - bits, -24 if bits == 11 else -133))
        loss = 2.0**-bits if rounded_first else FLOAT32_LOSS
        assert np.all((apart <= step) | (apart <= loss * np.abs(wanted).max())), name
        assert (apart > 0).mean() < (0.5 if rounded_first else 0.01), name


def _top(logits_TV: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    top = torch.log_softmax(logits_TV.float(), dim=-1).topk(TOP_K, dim=-1)
    return top.values, top.indices.to(torch.int32)
