import datetime

from google.protobuf import duration_pb2 as _duration_pb2
from google.protobuf import timestamp_pb2 as _timestamp_pb2
from tunesmith.api.billing.v1 import billing_pb2 as _billing_pb2
from tunesmith.api.fault.v1 import fault_pb2 as _fault_pb2
from tunesmith.api.run.v1 import spec_pb2 as _spec_pb2
from google.protobuf.internal import containers as _containers
from google.protobuf.internal import enum_type_wrapper as _enum_type_wrapper
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class RunState(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    RUN_STATE_UNSPECIFIED: _ClassVar[RunState]
    RUN_STATE_QUEUED: _ClassVar[RunState]
    RUN_STATE_WAITING_FOR_GPU: _ClassVar[RunState]
    RUN_STATE_TRAINING: _ClassVar[RunState]
    RUN_STATE_RETRYING: _ClassVar[RunState]
    RUN_STATE_COMPLETED: _ClassVar[RunState]
    RUN_STATE_FAILED: _ClassVar[RunState]
    RUN_STATE_CANCELLED: _ClassVar[RunState]

class MergeOutcome(int, metaclass=_enum_type_wrapper.EnumTypeWrapper):
    __slots__ = ()
    MERGE_OUTCOME_UNSPECIFIED: _ClassVar[MergeOutcome]
    MERGE_OUTCOME_MERGED: _ClassVar[MergeOutcome]
    MERGE_OUTCOME_NOT_FINITE: _ClassVar[MergeOutcome]
    MERGE_OUTCOME_DRIFTED: _ClassVar[MergeOutcome]
    MERGE_OUTCOME_REGRESSED: _ClassVar[MergeOutcome]
    MERGE_OUTCOME_NOT_VALIDATED: _ClassVar[MergeOutcome]
RUN_STATE_UNSPECIFIED: RunState
RUN_STATE_QUEUED: RunState
RUN_STATE_WAITING_FOR_GPU: RunState
RUN_STATE_TRAINING: RunState
RUN_STATE_RETRYING: RunState
RUN_STATE_COMPLETED: RunState
RUN_STATE_FAILED: RunState
RUN_STATE_CANCELLED: RunState
MERGE_OUTCOME_UNSPECIFIED: MergeOutcome
MERGE_OUTCOME_MERGED: MergeOutcome
MERGE_OUTCOME_NOT_FINITE: MergeOutcome
MERGE_OUTCOME_DRIFTED: MergeOutcome
MERGE_OUTCOME_REGRESSED: MergeOutcome
MERGE_OUTCOME_NOT_VALIDATED: MergeOutcome

class Run(_message.Message):
    __slots__ = ("name", "state", "stage", "spec", "snapshot", "fault", "metrics", "clocks", "quote", "cost", "samples", "warnings", "attempts", "artifact", "tags", "display_name", "priority", "submit_time", "start_time", "end_time", "last_sequence", "source_run", "export_proofs", "cancel_request_time", "merges", "activity")
    NAME_FIELD_NUMBER: _ClassVar[int]
    STATE_FIELD_NUMBER: _ClassVar[int]
    STAGE_FIELD_NUMBER: _ClassVar[int]
    SPEC_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOT_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    METRICS_FIELD_NUMBER: _ClassVar[int]
    CLOCKS_FIELD_NUMBER: _ClassVar[int]
    QUOTE_FIELD_NUMBER: _ClassVar[int]
    COST_FIELD_NUMBER: _ClassVar[int]
    SAMPLES_FIELD_NUMBER: _ClassVar[int]
    WARNINGS_FIELD_NUMBER: _ClassVar[int]
    ATTEMPTS_FIELD_NUMBER: _ClassVar[int]
    ARTIFACT_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    DISPLAY_NAME_FIELD_NUMBER: _ClassVar[int]
    PRIORITY_FIELD_NUMBER: _ClassVar[int]
    SUBMIT_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    LAST_SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    SOURCE_RUN_FIELD_NUMBER: _ClassVar[int]
    EXPORT_PROOFS_FIELD_NUMBER: _ClassVar[int]
    CANCEL_REQUEST_TIME_FIELD_NUMBER: _ClassVar[int]
    MERGES_FIELD_NUMBER: _ClassVar[int]
    ACTIVITY_FIELD_NUMBER: _ClassVar[int]
    name: str
    state: RunState
    stage: _fault_pb2.Stage
    spec: _spec_pb2.RunSpec
    snapshot: RunSnapshot
    fault: _fault_pb2.Fault
    metrics: RunMetrics
    clocks: RunClocks
    quote: _billing_pb2.Quote
    cost: _billing_pb2.Money
    samples: _containers.RepeatedCompositeFieldContainer[Sample]
    warnings: _containers.RepeatedCompositeFieldContainer[RunWarning]
    attempts: _containers.RepeatedCompositeFieldContainer[Attempt]
    artifact: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    display_name: str
    priority: int
    submit_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    last_sequence: int
    source_run: str
    export_proofs: _containers.RepeatedCompositeFieldContainer[ExportProof]
    cancel_request_time: _timestamp_pb2.Timestamp
    merges: _containers.RepeatedCompositeFieldContainer[RunMerge]
    activity: Activity
    def __init__(self, name: _Optional[str] = ..., state: _Optional[_Union[RunState, str]] = ..., stage: _Optional[_Union[_fault_pb2.Stage, str]] = ..., spec: _Optional[_Union[_spec_pb2.RunSpec, _Mapping]] = ..., snapshot: _Optional[_Union[RunSnapshot, _Mapping]] = ..., fault: _Optional[_Union[_fault_pb2.Fault, _Mapping]] = ..., metrics: _Optional[_Union[RunMetrics, _Mapping]] = ..., clocks: _Optional[_Union[RunClocks, _Mapping]] = ..., quote: _Optional[_Union[_billing_pb2.Quote, _Mapping]] = ..., cost: _Optional[_Union[_billing_pb2.Money, _Mapping]] = ..., samples: _Optional[_Iterable[_Union[Sample, _Mapping]]] = ..., warnings: _Optional[_Iterable[_Union[RunWarning, _Mapping]]] = ..., attempts: _Optional[_Iterable[_Union[Attempt, _Mapping]]] = ..., artifact: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., display_name: _Optional[str] = ..., priority: _Optional[int] = ..., submit_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., last_sequence: _Optional[int] = ..., source_run: _Optional[str] = ..., export_proofs: _Optional[_Iterable[_Union[ExportProof, _Mapping]]] = ..., cancel_request_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., merges: _Optional[_Iterable[_Union[RunMerge, _Mapping]]] = ..., activity: _Optional[_Union[Activity, _Mapping]] = ...) -> None: ...

class Activity(_message.Message):
    __slots__ = ("text", "percent")
    TEXT_FIELD_NUMBER: _ClassVar[int]
    PERCENT_FIELD_NUMBER: _ClassVar[int]
    text: str
    percent: float
    def __init__(self, text: _Optional[str] = ..., percent: _Optional[float] = ...) -> None: ...

class RunSnapshot(_message.Message):
    __slots__ = ("model_id", "model_revision", "verified", "refund_waived", "dataset_versions", "plan", "verdict", "estimated_vram_bytes", "estimated_artifact_bytes", "estimated_steps", "estimated_duration", "timeout", "training", "lora", "export", "fingerprint")
    MODEL_ID_FIELD_NUMBER: _ClassVar[int]
    MODEL_REVISION_FIELD_NUMBER: _ClassVar[int]
    VERIFIED_FIELD_NUMBER: _ClassVar[int]
    REFUND_WAIVED_FIELD_NUMBER: _ClassVar[int]
    DATASET_VERSIONS_FIELD_NUMBER: _ClassVar[int]
    PLAN_FIELD_NUMBER: _ClassVar[int]
    VERDICT_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_VRAM_BYTES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_ARTIFACT_BYTES_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_STEPS_FIELD_NUMBER: _ClassVar[int]
    ESTIMATED_DURATION_FIELD_NUMBER: _ClassVar[int]
    TIMEOUT_FIELD_NUMBER: _ClassVar[int]
    TRAINING_FIELD_NUMBER: _ClassVar[int]
    LORA_FIELD_NUMBER: _ClassVar[int]
    EXPORT_FIELD_NUMBER: _ClassVar[int]
    FINGERPRINT_FIELD_NUMBER: _ClassVar[int]
    model_id: str
    model_revision: str
    verified: bool
    refund_waived: bool
    dataset_versions: _containers.RepeatedScalarFieldContainer[str]
    plan: str
    verdict: _fault_pb2.Severity
    estimated_vram_bytes: int
    estimated_artifact_bytes: int
    estimated_steps: int
    estimated_duration: _duration_pb2.Duration
    timeout: _duration_pb2.Duration
    training: _spec_pb2.TrainingConfig
    lora: _spec_pb2.LoraConfig
    export: _spec_pb2.ExportConfig
    fingerprint: str
    def __init__(self, model_id: _Optional[str] = ..., model_revision: _Optional[str] = ..., verified: _Optional[bool] = ..., refund_waived: _Optional[bool] = ..., dataset_versions: _Optional[_Iterable[str]] = ..., plan: _Optional[str] = ..., verdict: _Optional[_Union[_fault_pb2.Severity, str]] = ..., estimated_vram_bytes: _Optional[int] = ..., estimated_artifact_bytes: _Optional[int] = ..., estimated_steps: _Optional[int] = ..., estimated_duration: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., timeout: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., training: _Optional[_Union[_spec_pb2.TrainingConfig, _Mapping]] = ..., lora: _Optional[_Union[_spec_pb2.LoraConfig, _Mapping]] = ..., export: _Optional[_Union[_spec_pb2.ExportConfig, _Mapping]] = ..., fingerprint: _Optional[str] = ...) -> None: ...

class RunMetrics(_message.Message):
    __slots__ = ("step", "total_steps", "epoch", "total_epochs", "progress_percent", "loss", "learning_rate", "grad_norm", "tokens_per_second", "real_token_ratio", "memory_bytes", "remaining", "validation_loss", "micro_batch_size", "accumulation_steps", "trained_token_count", "preference_margin", "preference_accuracy")
    STEP_FIELD_NUMBER: _ClassVar[int]
    TOTAL_STEPS_FIELD_NUMBER: _ClassVar[int]
    EPOCH_FIELD_NUMBER: _ClassVar[int]
    TOTAL_EPOCHS_FIELD_NUMBER: _ClassVar[int]
    PROGRESS_PERCENT_FIELD_NUMBER: _ClassVar[int]
    LOSS_FIELD_NUMBER: _ClassVar[int]
    LEARNING_RATE_FIELD_NUMBER: _ClassVar[int]
    GRAD_NORM_FIELD_NUMBER: _ClassVar[int]
    TOKENS_PER_SECOND_FIELD_NUMBER: _ClassVar[int]
    REAL_TOKEN_RATIO_FIELD_NUMBER: _ClassVar[int]
    MEMORY_BYTES_FIELD_NUMBER: _ClassVar[int]
    REMAINING_FIELD_NUMBER: _ClassVar[int]
    VALIDATION_LOSS_FIELD_NUMBER: _ClassVar[int]
    MICRO_BATCH_SIZE_FIELD_NUMBER: _ClassVar[int]
    ACCUMULATION_STEPS_FIELD_NUMBER: _ClassVar[int]
    TRAINED_TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_MARGIN_FIELD_NUMBER: _ClassVar[int]
    PREFERENCE_ACCURACY_FIELD_NUMBER: _ClassVar[int]
    step: int
    total_steps: int
    epoch: int
    total_epochs: int
    progress_percent: float
    loss: float
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    real_token_ratio: float
    memory_bytes: int
    remaining: _duration_pb2.Duration
    validation_loss: float
    micro_batch_size: int
    accumulation_steps: int
    trained_token_count: int
    preference_margin: float
    preference_accuracy: float
    def __init__(self, step: _Optional[int] = ..., total_steps: _Optional[int] = ..., epoch: _Optional[int] = ..., total_epochs: _Optional[int] = ..., progress_percent: _Optional[float] = ..., loss: _Optional[float] = ..., learning_rate: _Optional[float] = ..., grad_norm: _Optional[float] = ..., tokens_per_second: _Optional[float] = ..., real_token_ratio: _Optional[float] = ..., memory_bytes: _Optional[int] = ..., remaining: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., validation_loss: _Optional[float] = ..., micro_batch_size: _Optional[int] = ..., accumulation_steps: _Optional[int] = ..., trained_token_count: _Optional[int] = ..., preference_margin: _Optional[float] = ..., preference_accuracy: _Optional[float] = ...) -> None: ...

class RunClocks(_message.Message):
    __slots__ = ("wall", "active", "billable", "wasted")
    WALL_FIELD_NUMBER: _ClassVar[int]
    ACTIVE_FIELD_NUMBER: _ClassVar[int]
    BILLABLE_FIELD_NUMBER: _ClassVar[int]
    WASTED_FIELD_NUMBER: _ClassVar[int]
    wall: _duration_pb2.Duration
    active: _duration_pb2.Duration
    billable: _duration_pb2.Duration
    wasted: _duration_pb2.Duration
    def __init__(self, wall: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., active: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., billable: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ..., wasted: _Optional[_Union[datetime.timedelta, _duration_pb2.Duration, _Mapping]] = ...) -> None: ...

class Sample(_message.Message):
    __slots__ = ("prompt", "completion", "base_completion", "flags", "step")
    PROMPT_FIELD_NUMBER: _ClassVar[int]
    COMPLETION_FIELD_NUMBER: _ClassVar[int]
    BASE_COMPLETION_FIELD_NUMBER: _ClassVar[int]
    FLAGS_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    prompt: str
    completion: str
    base_completion: str
    flags: _containers.RepeatedScalarFieldContainer[str]
    step: int
    def __init__(self, prompt: _Optional[str] = ..., completion: _Optional[str] = ..., base_completion: _Optional[str] = ..., flags: _Optional[_Iterable[str]] = ..., step: _Optional[int] = ...) -> None: ...

class RunMerge(_message.Message):
    __slots__ = ("number", "outcome", "step", "weight", "drift_cosine", "delta_norm", "loss_begin", "loss_end", "held_out_loss_before", "held_out_loss_after", "sha256")
    NUMBER_FIELD_NUMBER: _ClassVar[int]
    OUTCOME_FIELD_NUMBER: _ClassVar[int]
    STEP_FIELD_NUMBER: _ClassVar[int]
    WEIGHT_FIELD_NUMBER: _ClassVar[int]
    DRIFT_COSINE_FIELD_NUMBER: _ClassVar[int]
    DELTA_NORM_FIELD_NUMBER: _ClassVar[int]
    LOSS_BEGIN_FIELD_NUMBER: _ClassVar[int]
    LOSS_END_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_BEFORE_FIELD_NUMBER: _ClassVar[int]
    HELD_OUT_LOSS_AFTER_FIELD_NUMBER: _ClassVar[int]
    SHA256_FIELD_NUMBER: _ClassVar[int]
    number: int
    outcome: MergeOutcome
    step: int
    weight: float
    drift_cosine: float
    delta_norm: float
    loss_begin: float
    loss_end: float
    held_out_loss_before: float
    held_out_loss_after: float
    sha256: str
    def __init__(self, number: _Optional[int] = ..., outcome: _Optional[_Union[MergeOutcome, str]] = ..., step: _Optional[int] = ..., weight: _Optional[float] = ..., drift_cosine: _Optional[float] = ..., delta_norm: _Optional[float] = ..., loss_begin: _Optional[float] = ..., loss_end: _Optional[float] = ..., held_out_loss_before: _Optional[float] = ..., held_out_loss_after: _Optional[float] = ..., sha256: _Optional[str] = ...) -> None: ...

class RunWarning(_message.Message):
    __slots__ = ("code", "message", "time")
    CODE_FIELD_NUMBER: _ClassVar[int]
    MESSAGE_FIELD_NUMBER: _ClassVar[int]
    TIME_FIELD_NUMBER: _ClassVar[int]
    code: str
    message: str
    time: _timestamp_pb2.Timestamp
    def __init__(self, code: _Optional[str] = ..., message: _Optional[str] = ..., time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ...) -> None: ...

class Attempt(_message.Message):
    __slots__ = ("attempt", "node", "lease_time", "start_time", "end_time", "fault", "resumed_from_step", "fencing_epoch")
    ATTEMPT_FIELD_NUMBER: _ClassVar[int]
    NODE_FIELD_NUMBER: _ClassVar[int]
    LEASE_TIME_FIELD_NUMBER: _ClassVar[int]
    START_TIME_FIELD_NUMBER: _ClassVar[int]
    END_TIME_FIELD_NUMBER: _ClassVar[int]
    FAULT_FIELD_NUMBER: _ClassVar[int]
    RESUMED_FROM_STEP_FIELD_NUMBER: _ClassVar[int]
    FENCING_EPOCH_FIELD_NUMBER: _ClassVar[int]
    attempt: int
    node: str
    lease_time: _timestamp_pb2.Timestamp
    start_time: _timestamp_pb2.Timestamp
    end_time: _timestamp_pb2.Timestamp
    fault: _fault_pb2.Fault
    resumed_from_step: int
    fencing_epoch: int
    def __init__(self, attempt: _Optional[int] = ..., node: _Optional[str] = ..., lease_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., start_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., end_time: _Optional[_Union[datetime.datetime, _timestamp_pb2.Timestamp, _Mapping]] = ..., fault: _Optional[_Union[_fault_pb2.Fault, _Mapping]] = ..., resumed_from_step: _Optional[int] = ..., fencing_epoch: _Optional[int] = ...) -> None: ...

class ExportProof(_message.Message):
    __slots__ = ("quantization", "adapter_top1_agreement", "base_top1_agreement", "adapter_mean_kl", "base_mean_kl", "loss_delta", "token_count", "proven")
    QUANTIZATION_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    BASE_TOP1_AGREEMENT_FIELD_NUMBER: _ClassVar[int]
    ADAPTER_MEAN_KL_FIELD_NUMBER: _ClassVar[int]
    BASE_MEAN_KL_FIELD_NUMBER: _ClassVar[int]
    LOSS_DELTA_FIELD_NUMBER: _ClassVar[int]
    TOKEN_COUNT_FIELD_NUMBER: _ClassVar[int]
    PROVEN_FIELD_NUMBER: _ClassVar[int]
    quantization: str
    adapter_top1_agreement: float
    base_top1_agreement: float
    adapter_mean_kl: float
    base_mean_kl: float
    loss_delta: float
    token_count: int
    proven: bool
    def __init__(self, quantization: _Optional[str] = ..., adapter_top1_agreement: _Optional[float] = ..., base_top1_agreement: _Optional[float] = ..., adapter_mean_kl: _Optional[float] = ..., base_mean_kl: _Optional[float] = ..., loss_delta: _Optional[float] = ..., token_count: _Optional[int] = ..., proven: _Optional[bool] = ...) -> None: ...
