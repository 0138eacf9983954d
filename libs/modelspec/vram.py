"""Device memory that LoRA training needs, with its parts, so that a refusal can name them.

The estimate is for the worst batch: every example as long as the longest allowed. It grows with
batch, rank and length, never shrinks.
"""

import enum
from dataclasses import dataclass, replace

from modelspec.lora import LoraSpec, adapter_parameter_count
from modelspec.shape import Layout, ModelShape

# The trainer computes logits for at most this many labelled places at a time.
LOGIT_CHUNK_TOKENS = 1024
# CUDA context, cuBLAS workspaces and memory that the allocator reserves; the CPU figure is Python
# with torch and transformers loaded.
GPU_BASE_BYTES = 1_100 << 20
CPU_BASE_BYTES = 700 << 20
# Fragmentation, and memory that the formula does not cover.
MARGIN_PERCENT = 10
# nf4 keeps 4 bits a weight and one 8-bit scale for 64 weights, with the scales' own scales.
NF4_BITS_PER_PARAM = 4.127


class OptimizerState(enum.IntEnum):
    """Bytes of optimizer state for each trained parameter: two moments."""

    ADAMW = 8
    ADAMW_8BIT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingLoad:
    """The settings that determine the memory besides model and adapter.

    Attributes:
        sequences_per_example: 2 for objectives that compare two continuations, otherwise 1.
        compute_bytes: bytes of an activation: 2 in 16-bit arithmetic, 4 in float32.
    """

    micro_batch_size: int
    sequence_tokens: int
    is_gpu: bool
    compute_bytes: int = 2
    gradient_checkpointing: bool = True
    packing: bool = True
    load_in_4bit: bool = False
    optimizer: OptimizerState = OptimizerState.ADAMW
    sequences_per_example: int = 1

    @property
    def token_count(self) -> int:
        """Tokens of the worst micro-batch."""
        return self.micro_batch_size * self.sequence_tokens * self.sequences_per_example


@dataclass(frozen=True, slots=True, kw_only=True)
class VramEstimate:
    """Device memory by what it is for, in bytes."""

    weights_bytes: int
    adapter_bytes: int
    optimizer_bytes: int
    activation_bytes: int
    logits_bytes: int
    base_bytes: int

    @property
    def total_bytes(self) -> int:
        """All parts and the margin."""
        parts = (
            self.weights_bytes
            + self.adapter_bytes
            + self.optimizer_bytes
            + self.activation_bytes
            + self.logits_bytes
            + self.base_bytes
        )
        return parts + parts * MARGIN_PERCENT // 100


def estimate_vram(shape: ModelShape, lora: LoraSpec, load: TrainingLoad) -> VramEstimate:
    """Peak device memory of a training step.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN if a target is not a module of this architecture.
    Source: activations after Korthikanti et al. 2022, arXiv:2205.05198, section 4, without the
        attention matrix (computed in blocks) and with a gated feed-forward.
    """
    trained = adapter_parameter_count(lora, shape)
    return VramEstimate(
        weights_bytes=weights_bytes(shape, load),
        # Weights and gradients in float32.
        adapter_bytes=trained * 8,
        optimizer_bytes=trained * load.optimizer,
        activation_bytes=_activation_bytes(shape, lora, load),
        # Logits in the compute type, their float32 copy and its gradient.
        logits_bytes=min(load.token_count, LOGIT_CHUNK_TOKENS)
        * shape.vocabulary_size
        * (load.compute_bytes + 8),
        base_bytes=GPU_BASE_BYTES if load.is_gpu else CPU_BASE_BYTES,
    )


def weights_bytes(shape: ModelShape, load: TrainingLoad) -> int:
    """Frozen base weights; in 4 bits only the matrices of the layers are small."""
    total = shape.parameter_count()
    if not load.load_in_4bit:
        return total * load.compute_bytes
    small = sum(
        module.in_features * module.out_features * module.count
        for module in shape.linear_modules().values()
    )
    return int(small * NF4_BITS_PER_PARAM / 8) + (total - small) * load.compute_bytes


def largest_micro_batch(
    shape: ModelShape, lora: LoraSpec, load: TrainingLoad, *, memory_bytes: int
) -> int:
    """The largest power of two of examples that fits, at most those of the load; 0 when none."""
    size = 1 << (load.micro_batch_size.bit_length() - 1)
    while size:
        smaller = replace(load, micro_batch_size=size)
        if estimate_vram(shape, lora, smaller).total_bytes <= memory_bytes:
            return size
        size //= 2
    return 0


def _activation_bytes(shape: ModelShape, lora: LoraSpec, load: TrainingLoad) -> int:
    layer = _layer_numbers_per_token(shape, lora) * load.compute_bytes * load.token_count
    kept = shape.hidden_size * load.compute_bytes * load.token_count
    if load.gradient_checkpointing:
        # Each layer keeps its input; one layer at a time is computed again and differentiated.
        stored = shape.layer_count * kept + 2 * layer
    else:
        stored = shape.layer_count * layer + layer
    mask = load.token_count**2 if load.packing else 0
    return stored + mask


def _layer_numbers_per_token(shape: ModelShape, lora: LoraSpec) -> int:
    """Numbers that one layer keeps of one token for its backward pass."""
    attention = 2 * shape.query_size + 2 * shape.key_size
    forward = 3 * shape.feed_forward_size * shape.experts_per_token
    if shape.architecture.layout is Layout.EXPERTS:
        # The token is copied to each of its experts.
        forward += shape.hidden_size * shape.experts_per_token
    adapters = lora.rank * len(shape.linear_modules())
    return 5 * shape.hidden_size + attention + forward + adapters
