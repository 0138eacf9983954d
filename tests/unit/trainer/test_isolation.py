"""The measurement of whether packed examples see each other, on models that do and do not."""

from typing import Any

import pytest
import torch

from tests.support.training import FP32, a_plan, a_tiny_model, attached
from trainer.training.attention import SEGMENTED
from trainer.training.isolation import is_proven, keeps_examples_apart, require_working


def adapted(attention: str) -> Any:
    return attached(a_tiny_model(attention=attention), a_plan()).train()


def leaking() -> Any:
    """A model that takes no notice of where an example ends."""
    model = adapted(SEGMENTED)

    def forget(_: Any, args: Any, named: dict[str, Any]) -> Any:
        named.pop("segment_lengths", None)
        named["position_ids"] = torch.arange(named["input_ids"].shape[1])[None]
        return args, named

    model.get_base_model().model.register_forward_pre_hook(forget, with_kwargs=True)
    return model


@pytest.mark.parametrize("attention", [SEGMENTED, "sdpa", "eager"])
def test_attention_by_segments_and_by_positions_keep_examples_apart(attention: str) -> None:
    model = adapted(attention)
    assert keeps_examples_apart(model, FP32)
    assert is_proven(model) is (attention == SEGMENTED)
    assert model.training


def test_a_model_that_mixes_examples_is_found_out() -> None:
    model = leaking()
    assert not keeps_examples_apart(model, FP32)
    assert model.training


def test_a_rail_that_mixes_examples_or_cannot_step_is_no_rail() -> None:
    """002-24: what Unsloth's kernels do to a row is tried before anything is trained by them."""
    model = adapted("sdpa")
    require_working(model, FP32, packing=True)
    assert all(parameter.grad is None for parameter in model.parameters())
    with pytest.raises(RuntimeError, match="see each other"):
        require_working(leaking(), FP32, packing=True)
    require_working(leaking(), FP32, packing=False)


def test_a_rail_through_which_no_gradient_comes_is_no_rail() -> None:
    """002-21: it would train for hours and leave the adapter as it was."""
    model = adapted("sdpa")
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            parameter.register_hook(torch.zeros_like)
    with pytest.raises(RuntimeError, match="no gradient"):
        require_working(model, FP32, packing=False)
