"""Capabilities of a node beyond plain LoRA: names shared by nodes, tiers and the queue."""

import enum


class Capability(enum.StrEnum):
    """A capability that not every node has; a run that needs it is leased to a node with it."""

    ADAMW_8BIT = "adamw-8bit"
    BF16 = "bf16"
    COMPILE = "compile"
    CPU = "cpu"
    CUDA = "cuda"
    FP16 = "fp16"
    FP8 = "fp8"
    FULL_FINE_TUNE = "full-fine-tune"
    MLX = "mlx"
    NF4 = "nf4"
    PEFT = "peft"
    UNSLOTH = "unsloth"
