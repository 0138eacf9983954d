"""Attention over a packed row, segment by segment: no example sees another, and no work is wasted.

A block mask over the whole row costs T x T; a causal pass over each segment costs the sum of the
squares, which for a row of many short examples is a small part of it.

Shapes: H heads, T tokens of the row, D size of a head.
"""

from typing import Any

import torch
from torch.nn import functional
from transformers import AttentionInterface

SEGMENTED = "tunesmith_segments"
# Architectures whose attention is proven equal to theirs by a test. Others get the block mask of
# transformers, which it draws by itself from positions that restart at 0.
PROVEN_MODEL_TYPES = frozenset(
    {
        "gemma", "gemma3_text", "llama", "mistral", "mixtral", "phi3", "qwen2", "qwen3",
        "qwen3_moe", "smollm3",
    }
)  # fmt: skip
# These bend the attention's scores, which only the written-out form of transformers does.
SCORE_BENDING_FIELDS = ("attn_logit_softcapping",)


def implementation_for(config: Any) -> str:
    """Which attention a model trains with."""
    text = config.get_text_config()
    if any(getattr(text, name, None) for name in SCORE_BENDING_FIELDS):
        return "eager"
    return SEGMENTED if text.model_type in PROVEN_MODEL_TYPES else "sdpa"


def segmented_attention(
    module: torch.nn.Module,
    query_1HTD: torch.Tensor,
    key_1HTD: torch.Tensor,
    value_1HTD: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    scaling: float,
    dropout: float = 0.0,
    segment_lengths: tuple[int, ...] | None = None,
    sliding_window: int | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Causal attention within each segment of the row; in the signature of transformers.

    Args:
        segment_lengths: tokens of each example, summing to T; None for one example a row.
        sliding_window: how many tokens back a token sees, itself included; None for all.
    Returns:
        The attended values, (1, T, H, D).
    """
    assert attention_mask is None, "segments and a mask exclude each other"
    lengths = list(segment_lengths or (query_1HTD.shape[2],))
    parts = [
        _causal(query, key, value, scaling=scaling, dropout=dropout, window=sliding_window)
        for query, key, value in zip(
            query_1HTD.split(lengths, dim=2),
            key_1HTD.split(lengths, dim=2),
            value_1HTD.split(lengths, dim=2),
            strict=True,
        )
    ]
    return torch.cat(parts, dim=2).transpose(1, 2).contiguous(), None


def _causal(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    *,
    scaling: float,
    dropout: float,
    window: int | None,
) -> torch.Tensor:
    length = query.shape[2]
    mask = None
    if window is not None and length > window:
        back = torch.arange(length, device=query.device)
        distance = back[:, None] - back[None, :]
        mask = (distance >= 0) & (distance < window)
    groups = query.shape[1] // key.shape[1]
    shares_heads = groups > 1 and mask is None and query.device.type == "cpu"
    if groups > 1 and not shares_heads:
        # Elsewhere the quick kernels do not all know heads that share keys; the slow one does.
        key, value = (part.repeat_interleave(groups, dim=1) for part in (key, value))
    return functional.scaled_dot_product_attention(
        query,
        key,
        value,
        attn_mask=mask,
        is_causal=mask is None,
        scale=scaling,
        dropout_p=dropout,
        enable_gqa=shares_heads,
    )


AttentionInterface.register(SEGMENTED, segmented_attention)
