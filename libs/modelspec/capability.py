"""What a node can do beyond plain LoRA, in the words that nodes, tiers and the queue share."""

import enum


class Capability(enum.StrEnum):
    """Something that not every node can do; a run that needs it goes to a node that says it can."""

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
