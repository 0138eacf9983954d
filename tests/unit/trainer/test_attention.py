"""Attention by segment equals attention one example at a time, wherever it is used."""

from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from tests.support.training import TINY_VOCABULARY, some_rows
from trainer.training.attention import PROVEN_MODEL_TYPES, SEGMENTED, implementation_for
from trainer.training.batches import packed
from trainer.training.token_loss import FrozenHeadLoss, summed_loss

ROWS = some_rows(6, longest=30)
CPU = torch.device("cpu")
SMALL = {
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 128,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
EXTRA: dict[str, dict[str, Any]] = {
    # A window shorter than the longest example, so that it matters.
    "mistral": {"sliding_window": 8},
    "gemma3_text": {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
    "mixtral": {"num_local_experts": 2, "num_experts_per_tok": 1},
    "qwen3_moe": {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 16},
    "smollm3": {"no_rope_layers": [1, 0]},
}


def a_model(model_type: str, attention: str) -> Any:
    config = AutoConfig.for_model(model_type, **SMALL, **EXTRA.get(model_type, {}))
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config)
    model.set_attn_implementation(attention)
    # Only the inside is trained, as with an adapter; the head and the embeddings stand still.
    model.requires_grad_(True)
    model.get_output_embeddings().requires_grad_(False)
    model.get_input_embeddings().requires_grad_(False)
    return model


def gradients(model: Any) -> dict[str, torch.Tensor]:
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("model_type", sorted(PROVEN_MODEL_TYPES))
def test_packed_loss_and_gradients_equal_one_example_at_a_time(model_type: str) -> None:
    ours, theirs = a_model(model_type, SEGMENTED), a_model(model_type, "eager")
    loss = summed_loss(ours, packed(ROWS, CPU))
    loss.backward()
    expected = torch.stack([summed_loss(theirs, packed([row], CPU)) for row in ROWS]).sum()
    expected.backward()
    assert loss.item() == pytest.approx(expected.item(), rel=1e-6)
    found, wanted = gradients(ours), gradients(theirs)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-4)


def test_models_that_bend_their_scores_use_the_written_out_form() -> None:
    assert implementation_for(AutoConfig.for_model("gemma2")) == "eager"


def test_unproven_models_use_the_block_mask() -> None:
    assert implementation_for(AutoConfig.for_model("olmo2")) == "sdpa"


def test_loss_behind_a_frozen_head_equals_autograd() -> None:
    torch.manual_seed(0)
    hidden = torch.randn(2500, 16, requires_grad=True)
    head, targets = torch.randn(50, 16), torch.randint(50, (2500,))
    ours = FrozenHeadLoss.apply(hidden, head, targets).sum()  # type: ignore[no-untyped-call]
    (3 * ours).backward()
    found, hidden.grad = hidden.grad, None
    theirs = torch.nn.functional.cross_entropy(hidden @ head.T, targets, reduction="sum")
    (3 * theirs).backward()
    assert ours.item() == pytest.approx(theirs.item(), rel=1e-6)
    torch.testing.assert_close(found, hidden.grad, rtol=1e-5, atol=1e-5)
