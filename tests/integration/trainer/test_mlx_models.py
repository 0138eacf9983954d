"""Models of many families in MLX and in transformers: the same words, with and without adapter."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import CONFIG_MAPPING, AutoModelForCausalLM

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Precision
from tests.support.mlx import an_mlx_plan, needs_mlx
from trainer.domain.plan import TrainPlan

pytestmark = [pytest.mark.integration, needs_mlx]

SHAPE: dict[str, Any] = {
    "vocab_size": 64,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
    # Far from zero, so that positions and masks matter.
    "initializer_range": 0.2,
}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,
}
# By name of the family: what differs from the shape above.
MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama tied": ("llama", {"tie_word_embeddings": True}),
    "llama with biases": ("llama", {"attention_bias": True, "mlp_bias": True}),
    "llama 3": ("llama", {"rope_parameters": LLAMA3}),
    "mistral": ("mistral", {"sliding_window": None}),
    "qwen 2": ("qwen2", {}),
    "qwen 3": ("qwen3", {"head_dim": 8}),
    "gemma": ("gemma", {"head_dim": 8}),
    "gemma 2": ("gemma2", {"head_dim": 8}),
    "gemma 3": (
        "gemma3_text",
        {"head_dim": 8, "sliding_window": 4, "num_hidden_layers": 7},
    ),
    "phi 3": ("phi3", {}),
    "olmo 2": ("olmo2", {}),
    "smollm 3": ("smollm3", {}),
    "stablelm": ("stablelm", {}),
    "granite": ("granite", {}),
}
IDS = np.arange(24) * 5 % 64


def a_folder(folder: Path, kind: str, changes: dict[str, Any]) -> TrainPlan:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[kind](**{**SHAPE, **changes}))
    model.save_pretrained(folder)
    return an_mlx_plan(folder)


def divergence(plan: TrainPlan) -> float:
    from trainer.training.mlx_backend import base, faithful

    expected_TV = faithful.reference_logprobs(plan.base, IDS, Precision.FP32)
    loaded = base.load_base(plan.base, plan.compute.precision)
    return faithful.require_faithful(loaded, plan.base, IDS, expected_TV)


@pytest.mark.parametrize("name", list(MODELS))
def test_mlx_computes_the_model_and_its_adapter_fits_peft(name: str, tmp_path: Path) -> None:
    """A17, 002-40: names, shapes, rotary positions and masks are those of the model's files."""
    import mlx.core as mx

    from trainer.training.mlx_backend.base import load_base
    from trainer.training.mlx_backend.model import attach

    plan = a_folder(tmp_path / "base", *MODELS[name])
    assert abs(divergence(plan)) < 1e-4
    one = attach(
        load_base(plan.base, plan.compute.precision),
        plan.base,
        plan.build.adapter,
        seed=plan.batches.seed,
    )
    rng = torch.Generator().manual_seed(3)
    one.put(
        {key: torch.randn(each.shape, generator=rng) * 0.2 for key, each in one.weights().items()}
    )
    one.eval()
    one.save(tmp_path / "adapter")
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", dtype=torch.float32)
    theirs = PeftModel.from_pretrained(base, str(tmp_path / "adapter")).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS)[None]).logits.numpy()
        with theirs.disable_adapter():
            without = theirs(torch.from_numpy(IDS)[None]).logits.numpy()
    np.testing.assert_allclose(np.array(one.module(mx.array(IDS)[None])), expected, atol=5e-3)
    assert np.abs(expected - without).max() > 0.5


@pytest.mark.parametrize(
    ("kind", "changes"),
    [
        # mlx-lm leaves the windows of these out.
        ("mistral", {"sliding_window": 4}),
        ("gemma2", {"head_dim": 8, "sliding_window": 4}),
        ("gpt2", {}),
    ],
)
def test_a_model_that_mlx_computes_otherwise_is_refused(
    kind: str, changes: dict[str, Any], tmp_path: Path
) -> None:
    """Nobody pays for an adapter that fits no other program."""
    plan = a_folder(tmp_path, kind, changes)
    with pytest.raises(Fault) as caught:
        divergence(plan)
    assert caught.value.code is FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED


def test_a_window_beyond_the_first_tokens_is_seen(tmp_path: Path) -> None:
    """A long row is probed as a whole where the model has a window."""
    from trainer.training.mlx_backend import base, faithful

    long_ids = np.arange(300) * 7 % 64
    plan = a_folder(tmp_path, "mistral", {"sliding_window": 200, "max_position_embeddings": 512})
    expected_TV = faithful.reference_logprobs(plan.base, long_ids, Precision.FP32)
    assert len(expected_TV) == len(long_ids)
    with pytest.raises(Fault):
        faithful.require_faithful(
            base.load_base(plan.base, plan.compute.precision), plan.base, long_ids, expected_TV
        )
