"""The words of a recipe: what the settings of a training may say, and what is asked by default.

Users, the validator and the trainer mean the same by them. The values appear in checkpoints,
fingerprints, reports and model cards: a member may be added, and none may be renamed.
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
    """What a run trains on, as the user chose it."""

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


# Asked for samples and for the proof of an export when the submission names no prompts.
DEFAULT_PROMPTS: Final = (
    "What can you help me with?",
    "Explain in two sentences why the sky is blue.",
    "Give me three tips for a good night's sleep.",
)
