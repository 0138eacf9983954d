"""The vocabulary of a recipe: values of the training settings, and the default prompts.

Validator, trainer and corpus share it. The values appear in checkpoints, fingerprints, reports and
model cards: a member may be added but never renamed.
"""

import enum
from typing import Final


class Method(enum.StrEnum):
    """Training objective."""

    SFT = "sft"
    DPO = "dpo"
    ORPO = "orpo"
    KTO = "kto"
    SIMPO = "simpo"


class Backend(enum.StrEnum):
    """The software that a run trains with, as the user chose it."""

    AUTO = "auto"
    CUDA = "cuda"
    CPU = "cpu"
    MLX = "mlx"


class Schedule(enum.StrEnum):
    """Shape of the learning rate after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"


class Optimizer(enum.StrEnum):
    """Update rule."""

    ADAMW_TORCH = "adamw_torch"
    ADAMW_8BIT = "adamw_8bit"
    PAGED_ADAMW_8BIT = "paged_adamw_8bit"


class Precision(enum.StrEnum):
    """Numbers of the forward and backward pass."""

    AUTO = "auto"
    BF16 = "bf16"
    FP16 = "fp16"
    FP32 = "fp32"
    FP8 = "fp8"


class TrainOn(enum.StrEnum):
    """Which tokens carry a label."""

    RESPONSES = "responses"
    ALL = "all"


# Prompts of samples and of an export's proof when the submission names none.
DEFAULT_PROMPTS: Final = (
    "What can you help me with?",
    "Explain in two sentences why the sky is blue.",
    "Give me three tips for a good night's sleep.",
)
