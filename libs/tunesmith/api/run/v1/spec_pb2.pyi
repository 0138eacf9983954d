import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class Method(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    METHOD_UNSPECIFIED: _ClassVar[Method]
    METHOD_SFT: _ClassVar[Method]
    METHOD_DPO: _ClassVar[Method]
    METHOD_ORPO: _ClassVar[Method]
    METHOD_KTO: _ClassVar[Method]
    METHOD_SIMPO: _ClassVar[Method]

class Mode(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MODE_UNSPECIFIED: _ClassVar[Mode]
    MODE_LORA: _ClassVar[Mode]
    MODE_FULL: _ClassVar[Mode]

class Backend(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    BACKEND_UNSPECIFIED: _ClassVar[Backend]
    BACKEND_AUTO: _ClassVar[Backend]
    BACKEND_CUDA: _ClassVar[Backend]
    BACKEND_CPU: _ClassVar[Backend]
    BACKEND_MLX: _ClassVar[Backend]

class Schedule(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    SCHEDULE_UNSPECIFIED: _ClassVar[Schedule]
    SCHEDULE_COSINE: _ClassVar[Schedule]
    SCHEDULE_LINEAR: _ClassVar[Schedule]
    SCHEDULE_CONSTANT: _ClassVar[Schedule]

class Optimizer(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    OPTIMIZER_UNSPECIFIED: _ClassVar[Optimizer]
    OPTIMIZER_ADAMW_TORCH: _ClassVar[Optimizer]
    OPTIMIZER_ADAMW_8BIT: _ClassVar[Optimizer]
    OPTIMIZER_PAGED_ADAMW_8BIT: _ClassVar[Optimizer]

class Precision(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRECISION_UNSPECIFIED: _ClassVar[Precision]
    PRECISION_AUTO: _ClassVar[Precision]
    PRECISION_BF16: _ClassVar[Precision]
    PRECISION_FP16: _ClassVar[Precision]
    PRECISION_FP32: _ClassVar[Precision]
    PRECISION_FP8: _ClassVar[Precision]

class TrainOn(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    TRAIN_ON_UNSPECIFIED: _ClassVar[TrainOn]
    TRAIN_ON_RESPONSES: _ClassVar[TrainOn]
    TRAIN_ON_ALL: _ClassVar[TrainOn]

class Preset(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    PRESET_UNSPECIFIED: _ClassVar[Preset]
    PRESET_SAFE: _ClassVar[Preset]
    PRESET_FAST: _ClassVar[Preset]
METHOD_UNSPECIFIED: Method
METHOD_SFT: Method
METHOD_DPO: Method
METHOD_ORPO: Method
METHOD_KTO: Method
METHOD_SIMPO: Method
MODE_UNSPECIFIED: Mode
MODE_LORA: Mode
MODE_FULL: Mode
BACKEND_UNSPECIFIED: Backend
BACKEND_AUTO: Backend
BACKEND_CUDA: Backend
BACKEND_CPU: Backend
BACKEND_MLX: Backend
SCHEDULE_UNSPECIFIED: Schedule
SCHEDULE_COSINE: Schedule
SCHEDULE_LINEAR: Schedule
SCHEDULE_CONSTANT: Schedule
OPTIMIZER_UNSPECIFIED: Optimizer
OPTIMIZER_ADAMW_TORCH: Optimizer
OPTIMIZER_ADAMW_8BIT: Optimizer
OPTIMIZER_PAGED_ADAMW_8BIT: Optimizer
PRECISION_UNSPECIFIED: Precision
PRECISION_AUTO: Precision
PRECISION_BF16: Precision
PRECISION_FP16: Precision
PRECISION_FP32: Precision
PRECISION_FP8: Precision
TRAIN_ON_UNSPECIFIED: TrainOn
TRAIN_ON_RESPONSES: TrainOn
TRAIN_ON_ALL: TrainOn
PRESET_UNSPECIFIED: Preset
PRESET_SAFE: Preset
PRESET_FAST: Preset

class RunSpec(_message.Message):
    __slots__ = ("base_model", "datasets", "training", "lora", "gpu_tier", "attestations", "export", "budget", "sample_prompts")
    BASE_MODEL_FIELD_NUMBER: _ClassVar[int]
    DATASETS_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    GPU_TIER_FIELD_NUMBER: _ClassVar[int]
    ATTESTATIONS_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    BUDGET_FIELD_NUMBER: _ClassVar[int]
    SAMPLE_PROMPTS_FIELD_NUMBER: _ClassVar[int]
    base_model: str
    datasets: _containers.RepeatedScalarFieldContainer[str]
    training: TrainingConfig
    lora: LoraConfig
    gpu_tier: str
    attestations: RightsAttestations
    export: ExportConfig
    budget: BudgetConfig
    sample_prompts: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, base_model: _Optional[str] = ..., datasets: _Optional[_Iterable[str]] = ..., training: _Optional[_Union[TrainingConfig, _Mapping]] = ..., lora: _Optional[_Union[LoraConfig, _Mapping]] = ..., gpu_tier: _Optional[str] = ..., attestations: _Optional[_Union[RightsAttestations, _Mapping]] = ..., export: _Optional[_Union[ExportConfig, _Mapping]] = ..., budget: _Optional[_Union[BudgetConfig, _Mapping]] = ..., sample_prompts: _Optional[_Iterable[str]] = ...) -> None: ...

class TrainingConfig(_message.Message):
    __slots__ = ("method", "mode", "backend", "epochs", "max_steps", "micro_batch_size", "accumulation_steps", "learning_rate", "schedule", "warmup_ratio", "weight_decay", "max_grad_norm", "max_sequence_tokens", "packing", "gradient_checkpointing", "optimizer", "precision", "seed", "oom_recovery", "unsloth_fallback", "load_in_4bit", "torch_compile", "train_on", "preset", "checkpoint_every_steps", "checkpoint_keep_count", "validation", "preference", "multi_run", "temperature")
    METHOD_FIELD_NUMBER: _ClassVar[int]
    MODE_FIELD_NUMBER: _ClassVar[int]
    BACKEND_FIELD_NUMBER: _ClassVar[int]
    EPOCHS_FIELD_NUMBER: _ClassVar[int]
    MAX_STEPS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    SCHEDULE_FIELD_NUMBER: _ClassVar[int]
    WARMUP_RATIO_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_DECAY_FIELD_NUMBER: _ClassVar[int]
    MAX_GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    MAX_SEQUENCE_TOKENS_FIELD_NUMBER: _ClassVar[int]
    PACKING_FIELD_NUMBER: _ClassVar[int]
    GRADIENT_CHECKPOINTING_FIELD_NUMBER: _ClassVar[int]
    OPTIMIZER_FIELD_NUMBER: _ClassVar[int]
    PRECISION_FIELD_NUMBER: _ClassVar[int]
    SEED_FIELD_NUMBER: _ClassVar[int]
    OOM_RECOVERY_FIELD_NUMBER: _ClassVar[int]
    UNSLOTH_FALLBACK_FIELD_NUMBER: _ClassVar[int]
    LOAD_IN_4BIT_FIELD_NUMBER: _ClassVar[int]
    TORCH_COMPILE_FIELD_NUMBER: _ClassVar[int]
    TRAIN_ON_FIELD_NUMBER: _ClassVar[int]
    PRESET_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    CHECKPOINT_KEEP_COUNT_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_FIELD_NUMBER: _ClassVar[int]
    MULTI_RUN_FIELD_NUMBER: _ClassVar[int]
    TEMPERATURE_FIELD_NUMBER: _ClassVar[int]
    method: Method
    mode: Mode
    backend: Backend
    epochs: int
    max_steps: int
    micro_batch_size: int
    accumulation_steps: int
    learning_rate: float
    schedule: Schedule
    warmup_ratio: float
    weight_decay: float
    max_grad_norm: float
    max_sequence_tokens: int
    packing: bool
    gradient_checkpointing: bool
    optimizer: Optimizer
    precision: Precision
    seed: int
    oom_recovery: bool
    unsloth_fallback: bool
    load_in_4bit: bool
    torch_compile: bool
    train_on: TrainOn
    preset: Preset
    checkpoint_every_steps: int
    checkpoint_keep_count: int
    validation: ValidationConfig
    preference: PreferenceConfig
    multi_run: MultiRunConfig
    temperature: TemperatureConfig
    def __init__(self, method: _Optional[_Union[Method, str]] = ..., mode: _Optional[_Union[Mode, str]] = ..., backend: _Optional[_Union[Backend, str]] = ..., epochs: _Optional[int] = ..., max_steps: _Optional[int] = ..., micro_batch_size: _Optional[int] = ..., accumulation_steps: _Optional[int] = ..., learning_rate: _Optional[float] = ..., schedule: _Optional[_Union[Schedule, str]] = ..., warmup_ratio: _Optional[float] = ..., weight_decay: _Optional[float] = ..., max_grad_norm: _Optional[float] = ..., max_sequence_tokens: _Optional[int] = ..., packing: _Optional[bool] = ..., gradient_checkpointing: _Optional[bool] = ..., optimizer: _Optional[_Union[Optimizer, str]] = ..., precision: _Optional[_Union[Precision, str]] = ..., seed: _Optional[int] = ..., oom_recovery: _Optional[bool] = ..., unsloth_fallback: _Optional[bool] = ..., load_in_4bit: _Optional[bool] = ..., torch_compile: _Optional[bool] = ..., train_on: _Optional[_Union[TrainOn, str]] = ..., preset: _Optional[_Union[Preset, str]] = ..., checkpoint_every_steps: _Optional[int] = ..., checkpoint_keep_count: _Optional[int] = ..., validation: _Optional[_Union[ValidationConfig, _Mapping]] = ..., preference: _Optional[_Union[PreferenceConfig, _Mapping]] = ..., multi_run: _Optional[_Union[MultiRunConfig, _Mapping]] = ..., temperature: _Optional[_Union[TemperatureConfig, _Mapping]] = ...) -> None: ...

class ValidationConfig(_message.Message):
    __slots__ = ("holdout_ratio", "dataset", "every_steps", "early_stop_patience", "early_stop_min_delta")
    HOLDOUT_RATIO_FIELD_NUMBER: _ClassVar[int]
    DATASET_FIELD_NUMBER: _ClassVar[int]
    EVERY_STEPS_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOP_PATIENCE_FIELD_NUMBER: _ClassVar[int]
    EARLY_STOP_MIN_DELTA_FIELD_NUMBER: _ClassVar[int]
    holdout_ratio: float
    dataset: str
    every_steps: int
    early_stop_patience: int
    early_stop_min_delta: float
    def __init__(self, holdout_ratio: _Optional[float] = ..., dataset: _Optional[str] = ..., every_steps: _Optional[int] = ..., early_stop_patience: _Optional[int] = ..., early_stop_min_delta: _Optional[float] = ...) -> None: ...

class PreferenceConfig(_message.Message):
    __slots__ = ("beta", "simpo_gamma", "desirable_weight", "undesirable_weight")
    BETA_FIELD_NUMBER: _ClassVar[int]
    SIMPO_GAMMA_FIELD_NUMBER: _ClassVar[int]
    DESIRABLE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    UNDESIRABLE_WEIGHT_FIELD_NUMBER: _ClassVar[int]
    beta: float
    simpo_gamma: float
    desirable_weight: float
    undesirable_weight: float
    def __init__(self, beta: _Optional[float] = ..., simpo_gamma: _Optional[float] = ..., desirable_weight: _Optional[float] = ..., undesirable_weight: _Optional[float] = ...) -> None: ...

class MultiRunConfig(_message.Message):
    __slots__ = ("run_count", "samples_per_run", "validate_every_run", "drift_minimum_cosine", "eval_maximum_regression", "in_order")
    RUN_COUNT_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_PER_RUN_FIELD_NUMBER: _ClassVar[int]
    VALIDATE_EVERY_RUN_FIELD_NUMBER: _ClassVar[int]
    DRIFT_MINIMUM_COSINE_FIELD_NUMBER: _ClassVar[int]
    EVAL_MAXIMUM_REGRESSION_FIELD_NUMBER: _ClassVar[int]
    IN_ORDER_FIELD_NUMBER: _ClassVar[int]
    run_count: int
    samples_per_run: int
    validate_every_run: bool
    drift_minimum_cosine: float
    eval_maximum_regression: float
    in_order: bool
    def __init__(self, run_count: _Optional[int] = ..., samples_per_run: _Optional[int] = ..., validate_every_run: _Optional[bool] = ..., drift_minimum_cosine: _Optional[float] = ..., eval_maximum_regression: _Optional[float] = ..., in_order: _Optional[bool] = ...) -> None: ...

class TemperatureConfig(_message.Message):
    __slots__ = ("warn_celsius", "pause_celsius", "abort_celsius")
    WARN_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    PAUSE_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    ABORT_CELSIUS_FIELD_NUMBER: _ClassVar[int]
    warn_celsius: float
    pause_celsius: float
    abort_celsius: float
    def __init__(self, warn_celsius: _Optional[float] = ..., pause_celsius: _Optional[float] = ..., abort_celsius: _Optional[float] = ...) -> None: ...

class LoraConfig(_message.Message):
    __slots__ = ("rank", "alpha", "dropout", "target_modules", "use_rslora", "use_dora")
    RANK_FIELD_NUMBER: _ClassVar[int]
    ALPHA_FIELD_NUMBER: _ClassVar[int]
    DROPOUT_FIELD_NUMBER: _ClassVar[int]
    TARGET_MODULES_FIELD_NUMBER: _ClassVar[int]
    USE_RSLORA_FIELD_NUMBER: _ClassVar[int]
    USE_DORA_FIELD_NUMBER: _ClassVar[int]
    rank: int
    alpha: float
    dropout: float
    target_modules: _containers.RepeatedScalarFieldContainer[str]
    use_rslora: bool
    use_dora: bool
    def __init__(self, rank: _Optional[int] = ..., alpha: _Optional[float] = ..., dropout: _Optional[float] = ..., target_modules: _Optional[_Iterable[str]] = ..., use_rslora: _Optional[bool] = ..., use_dora: _Optional[bool] = ...) -> None: ...

class RightsAttestations(_message.Message):
    __slots__ = ("dataset_rights", "model_license", "refund_waived")
    DATASET_RIGHTS_FIELD_NUMBER: _ClassVar[int]
    MODEL_LICENSE_FIELD_NUMBER: _ClassVar[int]
    REFUND_WAIVED_FIELD_NUMBER: _ClassVar[int]
    dataset_rights: bool
    model_license: bool
    refund_waived: bool
    def __init__(self, dataset_rights: _Optional[bool] = ..., model_license: _Optional[bool] = ..., refund_waived: _Optional[bool] = ...) -> None: ...

class ExportConfig(_message.Message):
    __slots__ = ("gguf", "quantizations")
    GGUF_FIELD_NUMBER: _ClassVar[int]
    QUANTIZATIONS_FIELD_NUMBER: _ClassVar[int]
    gguf: bool
    quantizations: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, gguf: _Optional[bool] = ..., quantizations: _Optional[_Iterable[str]] = ...) -> None: ...

class BudgetConfig(_message.Message):
    __slots__ = ("max_amount_micros", "timeout")
    MAX_AMOUNT_MICROS_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    max_amount_micros: int
    timeout: _duration_pb2.Duration
    def __init__(self, max_amount_micros: _Optional[int] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...
