"""Lightened LoRA layers give what PEFT's own give, and step aside where they cannot."""

from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict

from tests.support.training import TINY_VOCABULARY, a_tiny_model, some_rows
from trainer.training import lora
from trainer.training.batches import packed
from trainer.training.token_loss import summed_loss

ROWS = some_rows(6)
CPU = torch.device("cpu")


def adapted(*, light: bool, bias: bool = False, **changes: Any) -> Any:
    """The tiny model with an adapter whose B is not zero, so that every gradient is there."""
    model = a_tiny_model()
    if bias:
        for module in model.model.layers.modules():
            if isinstance(module, torch.nn.Linear):
                module.bias = torch.nn.Parameter(
                    torch.linspace(-1, 1, module.out_features), requires_grad=False
                )
    torch.manual_seed(1)
    config = LoraConfig(r=4, lora_alpha=8, target_modules="all-linear", **changes)
    model = get_peft_model(model, config, autocast_adapter_dtype=False)
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.1)
    if light:
        assert lora.lighten(model) == 14
    return model.train()


def trained(model: Any) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of one packed micro-batch."""
    torch.manual_seed(2)
    loss = summed_loss(model, packed(ROWS, CPU))
    loss.backward()
    return loss.detach(), {n: p.grad for n, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("changes", [{}, {"use_rslora": True}])
def test_loss_and_gradients_are_those_of_peft(bias: bool, changes: dict[str, Any]) -> None:
    ours, found = trained(adapted(light=True, bias=bias, **changes))
    theirs, wanted = trained(adapted(light=False, bias=bias, **changes))
    torch.testing.assert_close(ours, theirs, rtol=1e-6, atol=0)
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        scale = gradient.abs().max().item()
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6 * scale)


@pytest.mark.parametrize("changes", [{"lora_dropout": 0.3}, {"use_dora": True}])
def test_dropout_and_dora_take_the_way_of_peft_bit_for_bit(changes: dict[str, Any]) -> None:
    ours, found = trained(adapted(light=True, **changes))
    theirs, wanted = trained(adapted(light=False, **changes))
    assert torch.equal(ours, theirs)
    assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_autocast_takes_the_way_of_peft_bit_for_bit() -> None:
    losses = []
    for light in (True, False):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            losses.append(summed_loss(adapted(light=light), packed(ROWS, CPU)))
    assert torch.equal(*losses)


def test_switched_off_adapter_leaves_the_base() -> None:
    model = adapted(light=True)
    batch = packed(ROWS, CPU)
    with torch.no_grad():
        with model.disable_adapter():
            off = summed_loss(model, batch)
        assert torch.equal(off, summed_loss(a_tiny_model(), batch))
        assert not torch.equal(off, summed_loss(model, batch))


def test_frozen_weights_get_no_gradient() -> None:
    _, gradients = trained(adapted(light=True))
    assert gradients
    assert all("lora_" in name for name in gradients)


def test_a_frozen_factor_gets_no_gradient() -> None:
    model = adapted(light=True)
    for name, parameter in model.named_parameters():
        if "lora_A" in name:
            parameter.requires_grad_(False)
    _, gradients = trained(model)
    _, wanted = trained(adapted(light=False))
    assert gradients.keys() == {name for name in wanted if "lora_B" in name}


def test_what_peft_saves_stays_what_it_is() -> None:
    ours = get_peft_model_state_dict(adapted(light=True))
    theirs = get_peft_model_state_dict(adapted(light=False))
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


def test_base_is_given_back_as_it_was() -> None:
    base = adapted(light=True).unload()
    assert all("forward" not in vars(module) for module in base.modules())
    ids = torch.arange(5)[None] % TINY_VOCABULARY
    assert torch.equal(base(ids).logits, a_tiny_model()(ids).logits)


class Quantised(torch.nn.Linear):
    """A layer that computes in its own way, as quantised ones do."""


def test_layers_of_another_kind_are_left_alone() -> None:
    model = torch.nn.Sequential(Quantised(4, 4), torch.nn.Linear(4, 4))
    adapted_model = get_peft_model(model, LoraConfig(r=2, target_modules=["0", "1"]))
    assert lora.lighten(adapted_model) == 1
