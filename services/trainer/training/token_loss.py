"""The loss of a micro-batch, computed only where something is learned.

Shapes: T tokens of the row, N trained tokens, E size of the hidden state, V vocabulary.
"""

import inspect
from collections.abc import Iterator
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch.nn import functional
from torch.utils.checkpoint import checkpoint as recomputed

from modelspec.vram import LOGIT_CHUNK_TOKENS
from trainer.training.batches import MicroBatch

# By these `_bent` knows what follows the head.
LOGIT_BENDING_FIELDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")
# How near to the largest logit two ways to compute the same one are, in float32 and in 16 bits.
EXACT, ROUNDED = 1e-5, 1e-2
PROBE_TOKENS = 4
# Models whose logits were found to be what we take them for, or not.
_KNOWN: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()


def summed_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Cross-entropy summed over the trained tokens; divided by the step's count by the caller."""
    # In float64: a sum in float32 depends on how a step is cut, in the last digits.
    return token_losses(model, batch).sum(dtype=torch.float64)


def token_losses(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Cross-entropy of each trained token, (N,), in the order of the sequences."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    inputs = {
        "input_ids": batch.ids_BT,
        "position_ids": batch.positions_BT,
        "use_cache": False,
        **_layout(batch),
    }
    if not _is_known(causal):
        return _losses_of_unknown(model, inputs, batch)
    hidden_NE = _backbone(causal)(**inputs).last_hidden_state.flatten(0, 1)[batch.at_N]
    if _has_plain_head(causal):
        losses: torch.Tensor = FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden_NE, causal.get_output_embeddings().weight, batch.targets_N
        )
        return losses
    return _losses_behind(causal, hidden_NE, batch.targets_N)


class FrozenHeadLoss(torch.autograd.Function):
    """Cross-entropy of each token behind a frozen linear head, chunk by chunk.

    The head gets no gradient, and a token's loss depends on its own hidden state alone: so the
    gradient of the hidden states, (softmax - onehot) @ W, is computed while the logits of a chunk
    are there, and the logits of the whole batch never are.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden_NE: torch.Tensor, weight_VE: torch.Tensor, targets_N: torch.Tensor
    ) -> torch.Tensor:
        """The losses, (N,); `hidden_NE` is differentiable, the head is not."""
        losses: list[torch.Tensor] = []
        gradients = []
        for hidden, targets in _chunks(hidden_NE, targets_N):
            logits = functional.linear(hidden, weight_VE).float()
            largest = logits.amax(-1, keepdim=True)
            chosen = logits.gather(1, targets[:, None])
            # In place from here on: there is never a second tensor as large as the logits.
            total = logits.sub_(largest).exp_().sum(-1, keepdim=True)
            losses.append((total.log() + largest - chosen)[:, 0])
            if ctx.needs_input_grad[0]:
                slope = logits.div_(total)
                slope.scatter_add_(1, targets[:, None], torch.full_like(chosen, -1.0))
                gradients.append((slope.to(weight_VE.dtype) @ weight_VE).to(hidden.dtype))
        ctx.save_for_backward(torch.cat(gradients) if gradients else hidden_NE[:0])
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        """The gradient of the hidden states, each scaled by what comes from above."""
        (gradient_NE,) = ctx.saved_tensors
        return gradient_NE * upstream[0][:, None].to(gradient_NE.dtype), None, None


def _losses_behind(causal: Any, hidden_NE: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    """Cross-entropy behind any head, chunk by chunk; the backward pass computes logits again."""

    def losses_of(hidden: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        logits = causal.get_output_embeddings()(hidden)
        return _cross_entropy(_bent(logits, causal.config.get_text_config()), targets)

    return torch.cat(
        [
            recomputed(losses_of, hidden, targets, use_reentrant=False)
            for hidden, targets in _chunks(hidden_NE, targets_N)
        ]
    )


def _bent(logits_NV: torch.Tensor, config: Any) -> torch.Tensor:
    """What some architectures do to their logits after the head: Cohere, Granite, Gemma 2."""
    if factor := getattr(config, "logit_scale", None):
        logits_NV = logits_NV * factor
    if divisor := getattr(config, "logits_scaling", None):
        logits_NV = logits_NV / divisor
    if cap := getattr(config, "final_logit_softcapping", None):
        logits_NV = torch.tanh(logits_NV / cap) * cap
    return logits_NV


def _cross_entropy(logits_NV: torch.Tensor, targets_N: torch.Tensor) -> torch.Tensor:
    return functional.cross_entropy(logits_NV.float(), targets_N, reduction="none")


def _chunks(
    hidden_NE: torch.Tensor, targets_N: torch.Tensor
) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    return zip(
        hidden_NE.split(LOGIT_CHUNK_TOKENS), targets_N.split(LOGIT_CHUNK_TOKENS), strict=True
    )


def _losses_of_unknown(model: Any, inputs: dict[str, Any], batch: MicroBatch) -> torch.Tensor:
    """Cross-entropy by the model's own logits, at the labels alone where the model can do so."""
    forward = (model.get_base_model() if hasattr(model, "get_base_model") else model).forward
    if len(batch.ids_BT) == 1 and "logits_to_keep" in inspect.signature(forward).parameters:
        logits_NV = model(**inputs, logits_to_keep=batch.at_N).logits[0]
    else:
        logits_NV = model(**inputs).logits.flatten(0, 1)[batch.at_N]
    return _cross_entropy(logits_NV, batch.targets_N)


def _is_known(causal: Any) -> bool:
    """Whether the logits are what we take them for: found out once, by a few tokens."""
    if causal not in _KNOWN:
        _KNOWN[causal] = _backbone(causal) is not causal and _agrees(causal)
    return _KNOWN[causal]


def _agrees(causal: Any) -> bool:
    was_training = causal.training
    # Different tokens: of the same ones each would look the same without any causal mask, and the
    # first of a vocabulary is often padding, whose embedding is zero.
    ids_BT = torch.arange(PROBE_TOKENS, device=causal.device)[None]
    causal.eval()
    try:
        with torch.no_grad():
            theirs = causal(input_ids=ids_BT, use_cache=False).logits.float()
            hidden = _backbone(causal)(input_ids=ids_BT, use_cache=False).last_hidden_state
            logits = causal.get_output_embeddings()(hidden)
            ours = _bent(logits, causal.config.get_text_config()).float()
    finally:
        causal.train(was_training)
    tolerance = EXACT if logits.dtype == torch.float32 else ROUNDED
    largest = theirs.abs().max().item()
    return ours.shape == theirs.shape and torch.allclose(
        ours, theirs, rtol=0, atol=tolerance * largest
    )


def _has_plain_head(causal: Any) -> bool:
    """Whether the logits are nothing but a frozen matrix times the hidden state."""
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    return (
        type(head) is torch.nn.Linear
        and getattr(head, "bias", None) is None
        and not head.weight.requires_grad
        and not any(getattr(config, name, None) for name in LOGIT_BENDING_FIELDS)
    )


def _backbone(causal: Any) -> Any:
    return causal.base_model


def _layout(batch: MicroBatch) -> dict[str, Any]:
    return {"segment_lengths": batch.segment_lengths} if batch.segment_lengths else {}
