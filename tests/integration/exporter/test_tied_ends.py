"""A base whose embedding is also its head: adapters that change one of the two.

That they compute what PEFT computes is in `test_verdicts`.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from exporter.domain.quantization import Quantization
from exporter.engine.export import Engine
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
from tests.integration.exporter.test_identity import differing, quantize_with_llama

pytestmark = [pytest.mark.integration, pytest.mark.timeout(300)]

EMBEDDING: dict[str, Any] = {"target_modules": ["embed_tokens", "q_proj"]}
TIED: dict[str, Any] = {"target_modules": ["embed_tokens"], "ensure_weight_tying": True}


@pytest.mark.parametrize("mix", ["Q4_K_M", "Q8_0"])
def test_an_untied_head_is_quantised_as_llama_quantises_one(
    mix: str, engine: Engine, adapter_of: Callable[..., Path], tmp_path: Path
) -> None:
    """The head that was a copy of the embedding gets the type of a head, not of an embedding."""
    adapter = adapter_of(b_std=0.1, saved_std=0.1, **EMBEDDING)
    unquantized, quantized = tmp_path / "unquantized.gguf", tmp_path / "quantized.gguf"
    for target, wanted in ((unquantized, "BF16"), (quantized, mix)):
        assert export_bundle(engine, adapter, tmp_path, wanted).proof.proven
        model_in(tmp_path / "bundle.zip", tmp_path).rename(target)
    quantize_with_llama(unquantized, tmp_path / "theirs.gguf", Quantization(mix))
    assert differing(quantized, tmp_path / "theirs.gguf") == []


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
    adapter = adapter_of(b_std=0.1, saved_std=0.1, **TIED)
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
