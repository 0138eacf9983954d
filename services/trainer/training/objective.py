"""What is minimised: the interface of all objectives, and supervised fine-tuning.

The loss of a step is a sum over its examples, divided by numbers that the whole step shares; so it
does not depend on how the step is cut into micro-batches.
Shapes: T tokens of the row, N trained tokens, E size of the hidden state, V vocabulary.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch.nn import functional

from trainer.training.batches import Example, Layout, MicroBatch

# Rows of logits that are in memory at once. 1024 x 150 000 x 4 bytes are 0.6 GB.
CHUNK_TOKENS = 1024
# What some architectures do to their logits after the head.
LOGIT_BENDING_FIELDS = ("final_logit_softcapping", "logit_scale", "logits_scaling")


@dataclass(frozen=True, slots=True, kw_only=True)
class Shared:
    """Numbers of a whole step that every micro-batch of it needs.

    Attributes:
        example_count: examples of the step.
        trained_count: trained tokens of the step; of the chosen rows alone for ORPO.
        divergence: KTO's estimate of how far the policy is from the reference, in nats.
    """

    example_count: int
    trained_count: int
    divergence: float = 0.0


class Objective(Protocol):
    """What a method minimises."""

    def prepare(self, model: Any, examples: Sequence[Example], layout: Layout) -> Shared:
        """What the micro-batches of a step share."""

    def loss(
        self, model: Any, examples: Sequence[Example], shared: Shared, layout: Layout
    ) -> torch.Tensor:
        """The share of the step's loss that these examples have."""


class Supervised:
    """Cross-entropy of the trained tokens, summed, divided by all trained tokens of the step."""

    def prepare(self, model: Any, examples: Sequence[Example], layout: Layout) -> Shared:
        """Count."""
        trained_count = sum(example.trained_count for example in examples)
        return Shared(example_count=len(examples), trained_count=max(1, trained_count))

    def loss(
        self, model: Any, examples: Sequence[Example], shared: Shared, layout: Layout
    ) -> torch.Tensor:
        """The share of these examples."""
        rows = [row for example in examples for row in example.rows]
        return summed_loss(model, layout.batch(rows)) / shared.trained_count


def summed_loss(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Cross-entropy summed over the trained tokens of a micro-batch."""
    causal = _causal(model)
    if has_plain_head(causal):
        loss: torch.Tensor = FrozenHeadLoss.apply(  # type: ignore[no-untyped-call]
            label_states(causal, batch), causal.get_output_embeddings().weight, batch.targets_N
        )
        return loss
    return functional.cross_entropy(label_logits(model, batch), batch.targets_N, reduction="sum")


def label_states(causal: Any, batch: MicroBatch) -> torch.Tensor:
    """Hidden states (N, E) before the head, where the next token is trained on."""
    hidden_BTE = causal.base_model(
        input_ids=batch.ids_BT,
        position_ids=batch.positions_BT,
        use_cache=False,
        **_segments(batch),
    ).last_hidden_state
    states: torch.Tensor = hidden_BTE.flatten(0, 1)[batch.at_N]
    return states


def label_logits(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Logits (N, V) in float32, where the next token is trained on."""
    causal = _causal(model)
    if has_plain_head(causal):
        return causal.get_output_embeddings()(label_states(causal, batch)).float()  # type: ignore[no-any-return]
    logits_BTV = model(
        input_ids=batch.ids_BT, position_ids=batch.positions_BT, use_cache=False, **_segments(batch)
    ).logits
    logits: torch.Tensor = logits_BTV.flatten(0, 1)[batch.at_N].float()
    return logits


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


def has_plain_head(causal: Any) -> bool:
    """Whether the logits are nothing but a frozen matrix times the hidden state."""
    head, config = causal.get_output_embeddings(), causal.config.get_text_config()
    return (
        type(head) is torch.nn.Linear
        and getattr(head, "bias", None) is None
        and not head.weight.requires_grad
        and causal.base_model is not causal
        and not any(getattr(config, name, None) for name in LOGIT_BENDING_FIELDS)
    )


def _causal(model: Any) -> Any:
    return model.get_base_model() if hasattr(model, "get_base_model") else model


def _segments(batch: MicroBatch) -> dict[str, Any]:
    return {"segment_lengths": batch.segment_lengths} if batch.segment_lengths else {}
