"""Whether the examples of a packed row see each other, measured on the very model of the run.

Most architectures know where an example ends, and tests prove it for those with attention of our
own. A state that runs along the row (Mamba and its kin), or a library's own kernels, may not.
"""

from typing import Any

import numpy as np
import torch

from trainer.training.attention import SEGMENTED
from trainer.training.batches import IGNORED_LABEL, Row, packed
from trainer.training.compute_precision import ComputePrecision
from trainer.training.token_loss import token_losses

FIRST_TOKENS, SECOND_TOKENS = 12, 20
# What narrow number formats may change, as a part of what the other example's words would change.
LEAK_SHARE_MAX = 0.1


def is_proven(adapted: Any) -> bool:
    """Whether the model's attention goes by segments of ours, which tests hold to be exact."""
    return bool(adapted.get_base_model().config._attn_implementation == SEGMENTED)


def keeps_examples_apart(adapted: Any, compute_precision: ComputePrecision) -> bool:
    """Whether an example's losses are the same alone and behind a stranger in one row.

    The measure is the loss of the same words when the stranger's words truly stand before them:
    what leaks must be a small part of that.
    """
    first, second = _strangers(adapted.get_base_model().config.get_text_config().vocab_size)
    ids = np.concatenate([first.ids, second.ids])
    labels = np.concatenate([np.full_like(first.ids, IGNORED_LABEL), second.labels])
    alone = _losses(adapted, (second,), compute_precision)
    behind = _losses(adapted, (first, second), compute_precision)[-len(alone) :]
    joined = _losses(adapted, (Row(ids=ids, labels=labels),), compute_precision)[-len(alone) :]
    leak, influence = (alone - behind).abs().mean(), (alone - joined).abs().mean()
    return bool(leak <= LEAK_SHARE_MAX * influence)


def require_working(adapted: Any, compute_precision: ComputePrecision, *, packing: bool) -> None:
    """Take one small step's forward and backward pass, where kernels fail that do not fit the card.

    Raises:
        RuntimeError: what a kernel raises, when the adapter gets no gradient, and when packed
            examples see each other.
    """
    _, row = _strangers(adapted.get_base_model().config.get_text_config().vocab_size)
    with compute_precision.context():
        loss = token_losses(adapted, packed((row,), compute_precision.device)).mean()
    loss.backward()
    reaches = any(p.grad is not None and bool(p.grad.any()) for p in adapted.parameters())
    adapted.zero_grad(set_to_none=True)
    if not reaches:
        raise RuntimeError("no gradient reaches the adapter")
    if packing and not keeps_examples_apart(adapted, compute_precision):
        raise RuntimeError("examples of a packed row see each other")


def _losses(
    adapted: Any, rows: tuple[Row, ...], compute_precision: ComputePrecision
) -> torch.Tensor:
    was_training = adapted.training
    adapted.eval()
    try:
        with torch.no_grad(), compute_precision.context():
            losses: torch.Tensor = token_losses(
                adapted, packed(rows, compute_precision.device)
            ).float()
    finally:
        adapted.train(was_training)
    return losses


def _strangers(vocabulary: int) -> tuple[Row, Row]:
    """Two examples of random words; nothing is trained in the first one's first token."""
    rng = np.random.default_rng(0)
    first, second = (
        rng.integers(0, vocabulary, count).astype(np.int32)
        for count in (FIRST_TOKENS, SECOND_TOKENS)
    )
    labels = second.copy()
    # The first word of an example has nothing before it to be predicted from.
    labels[0] = IGNORED_LABEL
    return Row(ids=first, labels=np.full_like(first, IGNORED_LABEL)), Row(ids=second, labels=labels)
