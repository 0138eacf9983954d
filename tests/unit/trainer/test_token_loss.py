"""The loss equals that of all logits at once, behind every kind of head, with fewer of them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional
from transformers import AutoConfig, AutoModelForCausalLM

from modelspec.vram import LOGIT_CHUNK_TOKENS
from tests.support.training import TINY_VOCABULARY, some_rows
from trainer.training import token_loss
from trainer.training.batches import MicroBatch, packed, padded

ROWS = some_rows(120, longest=26)
CPU = torch.device("cpu")
SMALL = {
    "vocab_size": TINY_VOCABULARY,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
# Each does something else with its head: a cap, a factor, a divisor, a bias.
HEADS: dict[str, dict[str, Any]] = {
    "llama": {},
    "gemma2": {"final_logit_softcapping": 2.0, "head_dim": 8},
    "cohere": {"logit_scale": 0.25},
    "granite": {"logits_scaling": 3.0},
    "phi": {},
    "nanochat": {"final_logit_softcapping": 2.0},
}


def a_model(model_type: str, *, trained_head: bool) -> Any:
    config = AutoConfig.for_model(model_type, **SMALL, **HEADS[model_type])
    torch.manual_seed(0)
    model: Any = AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model.requires_grad_(True)
    model.get_output_embeddings().requires_grad_(trained_head)
    if not trained_head:
        model.get_input_embeddings().requires_grad_(False)
    return model.train()


def all_logits(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Every logit of the row, slow and obvious."""
    logits = model(input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False).logits
    return functional.cross_entropy(
        logits.flatten(0, 1)[batch.at_N].float(), batch.targets_N, reduction="none"
    )


def gradients(model: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(
    ("model_type", "trained_head"),
    [*((model_type, False) for model_type in sorted(HEADS)), ("llama", True), ("gemma2", True)],
)
def test_losses_and_gradients_equal_those_of_all_logits(
    model_type: str, trained_head: bool
) -> None:
    model = a_model(model_type, trained_head=trained_head)
    batch = packed(ROWS, CPU)
    assert len(batch.at_N) > LOGIT_CHUNK_TOKENS
    # What attention sees does not matter here: the row is one sequence to both.
    batch = replace(batch, segment_lengths=None)
    ours, theirs = token_loss.token_losses(model, batch), all_logits(model, batch)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    found, wanted = gradients(model, ours.sum()), gradients(model, theirs.sum())
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = max(1.0, gradient.abs().max().item())
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-5 * scale)


class LogitSizes(torch.overrides.TorchFunctionMode):
    """Notes the most rows that any tensor as wide as the vocabulary has."""

    rows_max = 0

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        wide = isinstance(result, torch.Tensor) and result.shape[-1:] == (TINY_VOCABULARY,)
        if wide:
            self.rows_max = max(self.rows_max, result.numel() // TINY_VOCABULARY)
        return result


@pytest.mark.parametrize("model_type", ["cohere", "gemma2", "granite", "llama"])
def test_no_more_logits_than_a_chunk_are_there_at_once(model_type: str) -> None:
    model = a_model(model_type, trained_head=False)
    batch = padded(ROWS, CPU)
    assert len(batch.at_N) > LOGIT_CHUNK_TOKENS
    with LogitSizes() as sizes:
        token_loss.token_losses(model, batch)
    assert 0 < sizes.rows_max <= LOGIT_CHUNK_TOKENS


def test_mode_is_what_it_was_after_the_first_look_at_a_model() -> None:
    """002-21"""
    model = a_model("llama", trained_head=False)
    token_loss.token_losses(model, packed(ROWS[:2], CPU))
    assert all(module.training for module in model.modules())


def test_a_backbone_that_sees_what_follows_is_not_taken_for_the_model() -> None:
    """Kernels may mask the future in the whole model's forward pass alone."""
    model = a_model("llama", trained_head=False)
    alone = {"is": True}

    def bare(module: Any, args: Any, named: dict[str, Any]) -> Any:
        count = named["input_ids"].shape[1]
        if alone["is"]:
            named["attention_mask"] = torch.zeros(1, 1, count, count)
        return args, named

    def whole(module: Any, args: Any, named: dict[str, Any]) -> None:
        alone["is"] = False

    model.base_model.register_forward_pre_hook(bare, with_kwargs=True)
    model.register_forward_pre_hook(whole, with_kwargs=True)
    model.register_forward_hook(lambda *_: alone.update({"is": True}))
    (batch,) = [packed(ROWS[:1], CPU)]
    losses = token_loss.token_losses(model, replace(batch, segment_lengths=None))
    assert torch.allclose(losses, all_logits(model, batch), atol=1e-5)
