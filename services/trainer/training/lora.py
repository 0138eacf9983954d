"""LoRA layers that compute what PEFT's compute, without a scaled copy of every activation.

PEFT writes `base(x) + B(A(x)) * scale`: two more tensors as large as the layer's output in the
forward pass, and their gradients in the backward pass. Here the low-rank part is added into the
output where it lies, and the backward pass is written out.

Shapes: T tokens, I inputs and O outputs of the layer, R rank of the adapter.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear
from torch.autograd.function import once_differentiable
from torch.nn import functional


class LoraProduct(torch.autograd.Function):
    """y = x Wᵀ + bias + scale (x Aᵀ) Bᵀ; W and bias are frozen and get no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x_TI: torch.Tensor,
        weight_OI: torch.Tensor,
        bias_O: torch.Tensor | None,
        a_RI: torch.Tensor,
        b_OR: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        """The layer's output, (T, O)."""
        low_TR = x_TI @ a_RI.T
        y_TO = functional.linear(x_TI, weight_OI, bias_O)
        y_TO.addmm_(low_TR, b_OR.T, alpha=scale)
        ctx.save_for_backward(x_TI, weight_OI, a_RI, b_OR, low_TR)
        ctx.scale = scale
        return y_TO

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, *upstream: Any) -> Any:
        """Gradients of x, A and B, each only where it is wanted."""
        (dy_TO,) = upstream
        x_TI, weight_OI, a_RI, b_OR, low_TR = ctx.saved_tensors
        wants_x, _, _, wants_a, wants_b, _ = ctx.needs_input_grad
        # As small as the rank, so it costs nothing where neither x nor A wants it.
        dlow_TR = (dy_TO @ b_OR).mul_(ctx.scale)
        dx_TI = (dy_TO @ weight_OI).addmm_(dlow_TR, a_RI) if wants_x else None
        da_RI = dlow_TR.T @ x_TI if wants_a else None
        db_OR = (dy_TO.T @ low_TR).mul_(ctx.scale) if wants_b else None
        return dx_TI, None, None, da_RI, db_OR, None


def lighten(adapted: torch.nn.Module) -> int:
    """Let the adapter's plain linear layers compute by `LoraProduct`; how many do.

    Names and weights stay PEFT's, and so does what it saves. A layer falls back to PEFT's own
    computation by itself whenever it is not plain: see `_is_plain`. Layers of other kinds, such as
    quantised ones, are left alone.
    """
    layers = [m for m in adapted.modules() if type(m) is Linear and _has_plain_base(m)]
    for layer in layers:
        # On the instance: the class and its other layers stay PEFT's.
        layer.forward = partial(_forward, layer, layer.forward)  # type: ignore[method-assign]
    return len(layers)


def _forward(
    layer: Linear, own: Callable[..., torch.Tensor], x: torch.Tensor, *args: Any, **named: Any
) -> torch.Tensor:
    if args or named or not _is_plain(layer, x):
        return own(x, *args, **named)
    (name,) = layer.active_adapters
    base: Any = layer.get_base_layer()
    y_TO: torch.Tensor = LoraProduct.apply(  # type: ignore[no-untyped-call]
        x.reshape(-1, x.shape[-1]),
        base.weight,
        base.bias,
        layer.lora_A[name].weight,
        layer.lora_B[name].weight,
        layer.scaling[name],
    )
    return y_TO.view(*x.shape[:-1], y_TO.shape[-1])


def _has_plain_base(layer: Linear) -> bool:
    base: Any = layer.get_base_layer()
    return type(base) is torch.nn.Linear and not any(p.requires_grad for p in base.parameters())


def _is_plain(layer: Linear, x: torch.Tensor) -> bool:
    """Whether the layer adds one adapter, in x's own numbers, without dropout, DoRA or bias."""
    if layer.disable_adapters or layer.merged or len(layer.active_adapters) != 1:
        return False
    (name,) = layer.active_adapters
    if name not in layer.lora_A or name in layer.lora_variant or layer.lora_bias[name]:
        return False
    a, b, base = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.get_base_layer()
    return (
        _drops_nothing(layer.lora_dropout[name])
        and not torch.is_autocast_enabled(x.device.type)
        and x.dtype == base.weight.dtype == a.dtype == b.dtype
    )


def _drops_nothing(dropout: torch.nn.Module) -> bool:
    return isinstance(dropout, torch.nn.Identity) or not dropout.training
