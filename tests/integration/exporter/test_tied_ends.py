"""A base whose embedding is also its head: adapters that change one of the two, or both.

PEFT changes the module that was targeted and leaves the other end alone; what its model computes is
what the GGUF must compute.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from exporter.engine.export import Engine
from exporter.engine.llama_model import LlamaModel
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.families import FAMILIES, make_base
from tests.integration.exporter.making import (
    ANVIL,
    export_bundle,
    make_adapter,
    matrices_of,
    model_in,
    write_reference,
)

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

TOKENS = [1, 17, 300, 42, 511, 9, 77, 640]
# Root mean square of differences; llama.cpp rounds activations to bfloat16 before each product.
LOGIT_BOUND = 0.03
WISHES: dict[str, dict[str, Any]] = {
    "lora on the embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "lora on the head": {"target_modules": ["lm_head", "q_proj"]},
    "lora on both, apart": {"target_modules": ["embed_tokens", "lm_head"]},
    "lora on both, tied": {"target_modules": ["embed_tokens"], "ensure_weight_tying": True},
    "embedding trained whole": {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
    "head trained whole": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "both trained whole, tied": {
        "modules_to_save": ["embed_tokens"], "ensure_weight_tying": True,
        "target_modules": ["q_proj"],
    },
}  # fmt: skip


@pytest.mark.parametrize("name", list(WISHES))
def test_a_tied_base_computes_what_peft_computes(
    name: str, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of(b_std=0.1, saved_std=0.1, **WISHES[name])
    exported = export_bundle(engine, adapter, tmp_path, "BF16")
    assert exported.proof.proven
    model = model_in(tmp_path / "bundle.zip", tmp_path)
    matrices = matrices_of(model)
    assert ("output.weight" in matrices) is not name.endswith(", tied")
    if "output.weight" in matrices:
        assert not np.array_equal(matrices["output.weight"], matrices["token_embd.weight"])
    wanted = logits_of_peft(adapter)
    with LlamaModel(model, thread_count=1) as opened:
        found = np.stack([row for _, row in opened.logits(TOKENS, range(len(TOKENS)))])
    assert float(np.sqrt(np.square(found - wanted).mean())) <= LOGIT_BOUND * wanted.std()


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0"])
def test_an_untied_head_is_quantised_as_llama_quantises_one(
    mix: str, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of(b_std=0.1, saved_std=0.1, **WISHES["lora on the embedding"])
    assert export_bundle(engine, adapter, tmp_path, mix).proof.proven


def test_an_embedding_that_was_saved_untrained_stays_tied(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """PEFT saves embeddings on demand, which changes nothing."""
    adapter = adapter_of(b_std=0.3)
    here = tmp_path / "adapter"
    here.mkdir()
    for path in adapter.iterdir():
        (here / path.name).write_bytes(path.read_bytes())
    weights = load_file(here / "adapter_model.safetensors")
    weights["base_model.model.model.embed_tokens.weight"] = load_file(ANVIL / "model.safetensors")[
        "model.embed_tokens.weight"
    ]
    save_file(weights, here / "adapter_model.safetensors", metadata={"format": "pt"})
    export_bundle(engine, here, tmp_path, "BF16")
    assert "output.weight" not in matrices_of(model_in(tmp_path / "bundle.zip", tmp_path))


@pytest.mark.parametrize("family", ["gemma2"])
def test_an_end_that_llama_cannot_part_is_refused_by_name(
    family: str, engine: Engine, tmp_path: Path
) -> None:
    base, adapter = tmp_path / "base", tmp_path / "adapter"
    make_base(FAMILIES[family], base)
    make_adapter(base, adapter, target_modules=["embed_tokens"], dtype=torch.float16)
    write_reference(base, adapter)
    with pytest.raises(Fault, match=r"one tensor for both") as caught:
        export_bundle(engine, adapter, tmp_path, checkpoint=base, key=f"tied-{family}")
    assert caught.value.code is FaultCode.EXPORT_TENSOR_UNMAPPED


def test_two_changes_of_one_end_are_refused(
    engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    adapter = adapter_of(b_std=0.1, saved_std=0.1, **WISHES["lora on both, tied"])
    here = tmp_path / "adapter"
    here.mkdir()
    for path in adapter.iterdir():
        (here / path.name).write_bytes(path.read_bytes())
    weights = load_file(here / "adapter_model.safetensors")
    prefix = "base_model.model."
    weights[f"{prefix}lm_head.lora_A.weight"] = (
        weights[f"{prefix}model.embed_tokens.lora_embedding_B"].t().contiguous() * 2
    )
    weights[f"{prefix}lm_head.lora_B.weight"] = (
        weights[f"{prefix}model.embed_tokens.lora_embedding_A"].t().contiguous()
    )
    save_file(weights, here / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(Fault) as caught:
        export_bundle(engine, here, tmp_path)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID


@torch.inference_mode()
def logits_of_peft(adapter: Path) -> np.ndarray[Any, Any]:
    base = AutoModelForCausalLM.from_pretrained(ANVIL, dtype=torch.float32)
    model: Any = PeftModel.from_pretrained(base, adapter).eval()
    wanted: np.ndarray[Any, Any] = model(torch.tensor([TOKENS])).logits[0].numpy()
    return wanted
