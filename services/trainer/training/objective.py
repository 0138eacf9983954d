"""The loss of a micro-batch, computed only where something is learned.

Shapes: T tokens of the row, N trained tokens, E size of the hidden state, V vocabulary.
"""

from typing import Any

import torch
from torch.nn import functional

from trainer.training.batches import MicroBatch

# Rows of logits that are in memory at once. 1024 x 150 000 x 4 bytes are 0.6 GB.
CHUNK_TOKENS = 1024
# What some architectures do to their logits after the head.
LOGIT_BENDING_FIELDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


def summed_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Cross-entropy summed over the trained tokens; divided by the step's count by the caller."""
    # In float64: a sum in float32 depends on how a step is cut, in the last digits.
    return token_losses(model, batch).sum(dtype=torch.float64)


def token_losses(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Cross-entropy of each trained token, (N,), in the order of the sequences."""
    causal = model.get_base_model() if hasattr(model, "get_base_model") else model
    if _has_plain_head(causal):
        hidden_TE = _backbone(causal)(
            input_ids=batch.ids_BT,
            position_ids=batch.positions_BT,
            use_cache=False,
            **_layout(batch),
        ).last_hidden_state.flatten(0, 1)
        head = causal.get_output_embeddings()
        losses: torch.Tensor = FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
            hidden_TE[batch.at_N], head.weight, batch.targets_N
        )
        return losses
    logits_TV = model(
        input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False, **_layout(batch)
    ).logits.flatten(0, 1)
    return functional.cross_entropy(
        logits_TV[batch.at_N].float(), batch.targets_N, reduction="none"
    )


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
        for hidden, targets in zip(
            hidden_NE.split(CHUNK_TOKENS), targets_N.split(CHUNK_TOKENS), strict=True
        ):
            logits = functional.linear(hidden, weight_VE).float()
            logprobs = logits.log_softmax(-1)
            losses.append(functional.nll_loss(logprobs, targets, reduction="none"))
            if ctx.needs_input_grad[0]:
                slope = logprobs.exp_()
                slope[torch.arange(len(targets), device=slope.device), targets] -= 1
                gradients.append((slope.to(weight_VE.dtype) @ weight_VE).to(hidden.dtype))
        ctx.save_for_backward(torch.cat(gradients) if gradients else hidden_NE[:0])
        return torch.cat(losses)

    @staticmethod
    def backward(ctx: Any, *upstream: Any) -> Any:
        """The gradient of the hidden states, each scaled by what comes from above."""
        (gradient_NE,) = ctx.saved_tensors
        return gradient_NE * upstream[0][:, None].to(gradient_NE.dtype), None, None


def _has_plain_head(causal: Any) -> bool:
    """Whether the logits are nothing but a frozen matrix times the hidden state."""
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    return (
        type(head) is torch.nn.Linear
        and getattr(head, "bias", None) is None
        and not head.weight.requires_grad
        and _backbone(causal) is not causal
        and not any(getattr(config, name, None) for name in LOGIT_BENDING_FIELDS)
    )


def _backbone(causal: Any) -> Any:
    return causal.base_model


def _layout(batch: MicroBatch) -> dict[str, Any]:
    return {"segment_lengths": batch.segment_lengths} if batch.segment_lengths else {}
