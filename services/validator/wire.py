"""Protobuf to domain and back, without rules."""

import dataclasses
import enum
from collections.abc import Mapping
from datetime import timedelta
from typing import Any, TypeVar

from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message

from chassis.enums import by_number
from chassis.errors import fault_to_proto
from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from modelspec.catalog import CURRENCY, Catalog, Tier
from modelspec.recipe import Backend, Method, Optimizer, Precision, Schedule, TrainOn
from tunesmith.api.billing.v1 import billing_pb2
from tunesmith.api.dataset.v1 import dataset_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.model.v1 import model_pb2
from tunesmith.api.run.v1 import run_pb2, spec_pb2
from tunesmith.api.validation.v1 import validation_service_pb2
from validator.domain import report
from validator.domain.facts import DatasetFacts
from validator.domain.finding import Finding, Severity
from validator.domain.spec import (
    Attestations,
    Budget,
    Export,
    Lora,
    Mode,
    MultiRun,
    Preference,
    Preset,
    Spec,
    Temperature,
    Training,
    Validation,
)

Value = TypeVar("Value")

# Our values by the contract's numbers, by field of the training config.
_CHOICES: Mapping[str, Mapping[int, enum.StrEnum]] = {
    "backend": by_number(spec_pb2.Backend, Backend),
    "method": by_number(spec_pb2.Method, Method),
    "mode": by_number(spec_pb2.Mode, Mode),
    "optimizer": by_number(spec_pb2.Optimizer, Optimizer),
    "precision": by_number(spec_pb2.Precision, Precision),
    "preset": by_number(spec_pb2.Preset, Preset),
    "schedule": by_number(spec_pb2.Schedule, Schedule),
    "train_on": by_number(spec_pb2.TrainOn, TrainOn),
}
_NUMBERS: Mapping[str, Mapping[enum.StrEnum, int]] = {
    field: {choice: number for number, choice in choices.items()}
    for field, choices in _CHOICES.items()
}
# Tokens of hubs have some forty characters; signed ones of enterprises, some hundreds.
MAX_TOKEN_CHARACTERS = 1024
_PARTS: dict[str, type] = {
    "multi_run": MultiRun,
    "preference": Preference,
    "temperature": Temperature,
    "validation": Validation,
}


def hub_token_from_proto(text: str) -> str:
    """A token for the model hub; it is sent in a header, so other characters are refused.

    Raises:
        Fault: INPUT_FIELD_INVALID, without the given text in its message.
    """
    if len(text) > MAX_TOKEN_CHARACTERS or not all("!" <= each <= "~" for each in text):
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"hub_token may have at most {MAX_TOKEN_CHARACTERS} characters of ASCII without "
            "spaces.",
            field="hub_token",
        )
    return text


def spec_from_proto(proto: spec_pb2.RunSpec) -> Spec:
    """A submission.

    Raises:
        Fault: INPUT_FIELD_INVALID for a number that is no value of its enum.
    """
    return Spec(
        base_model=proto.base_model,
        datasets=tuple(proto.datasets),
        training=_training_from_proto(proto.training) if proto.HasField("training") else None,
        lora=_lora_from_proto(proto.lora) if proto.HasField("lora") else None,
        gpu_tier=proto.gpu_tier,
        attestations=(
            _plain(proto.attestations, Attestations) if proto.HasField("attestations") else None
        ),
        export=Export(
            gguf=proto.export.gguf if proto.export.HasField("gguf") else None,
            quantizations=tuple(proto.export.quantizations),
        ),
        budget=_budget_from_proto(proto.budget),
        sample_prompts=tuple(proto.sample_prompts),
    )


def training_to_proto(training: Training) -> spec_pb2.TrainingConfig:
    """A training config; fields that are None stay unset."""
    proto = spec_pb2.TrainingConfig()
    for name, value in _fields(training):
        if name in _CHOICES:
            setattr(proto, name, _NUMBERS[name][value])
        elif name in _PARTS:
            _set_plain(getattr(proto, name), value)
        else:
            setattr(proto, name, value)
    return proto


def lora_to_proto(lora: Lora) -> spec_pb2.LoraConfig:
    """An adapter; fields that are None stay unset."""
    proto = spec_pb2.LoraConfig(target_modules=lora.target_modules)
    for name, value in _fields(lora):
        if name != "target_modules":
            setattr(proto, name, value)
    return proto


def export_to_proto(export: Export) -> spec_pb2.ExportConfig:
    """An export."""
    return spec_pb2.ExportConfig(gguf=export.gguf, quantizations=export.quantizations)


def dataset_from_proto(name: str, version: dataset_pb2.DatasetVersion) -> DatasetFacts:
    """A dataset version.

    Args:
        name: as the spec has it.
    Raises:
        Fault: DATASET_FORMAT_UNKNOWN.
    """
    try:
        data_format = Format[dataset_pb2.Format.Name(version.format).removeprefix("FORMAT_")]
    except (KeyError, ValueError) as error:
        raise Fault(
            FaultCode.DATASET_FORMAT_UNKNOWN, f"Dataset {name} has no known format.", dataset=name
        ) from error
    return DatasetFacts(
        name=name,
        version_name=version.name,
        format=data_format,
        row_count=version.row_count,
        character_count=version.stats.character_count,
    )


def response_to_proto(
    answer: report.Report,
    *,
    model: model_pb2.Model | None,
    datasets: list[dataset_pb2.DatasetVersion],
    elapsed_seconds: float,
) -> validation_service_pb2.ValidateRunResponse:
    """The answer with the spec that it is about."""
    response = validation_service_pb2.ValidateRunResponse(
        verdict=_severity(answer.verdict),
        findings=[_finding_to_proto(finding) for finding in answer.findings],
        checklist=[
            validation_service_pb2.CheckItem(
                check=item.check, passed=item.passed, detail=item.detail
            )
            for item in answer.checklist
        ],
        datasets=datasets,
        elapsed=_duration(elapsed_seconds),
    )
    if answer.quote is not None:
        response.quote.CopyFrom(_quote_to_proto(answer.quote))
    if answer.snapshot is not None:
        response.snapshot.CopyFrom(snapshot_to_proto(answer.snapshot))
    if model is not None:
        response.model.CopyFrom(model)
    return response


def snapshot_to_proto(snapshot: report.Snapshot) -> run_pb2.RunSnapshot:
    """The snapshot of the spec."""
    return run_pb2.RunSnapshot(
        model_id=snapshot.model_id,
        model_revision=snapshot.model_revision,
        verified=snapshot.verified,
        refund_waived=snapshot.refund_waived,
        dataset_versions=snapshot.dataset_versions,
        plan=snapshot.plan,
        verdict=_severity(snapshot.verdict),
        estimated_vram_bytes=snapshot.estimated_vram_bytes,
        estimated_artifact_bytes=snapshot.estimated_artifact_bytes,
        estimated_steps=snapshot.estimated_steps,
        estimated_duration=_duration(snapshot.estimated_seconds),
        timeout=_duration(snapshot.timeout_seconds),
        training=training_to_proto(snapshot.training),
        lora=lora_to_proto(snapshot.lora),
        export=export_to_proto(snapshot.export),
        fingerprint=snapshot.fingerprint,
    )


def tier_to_proto(tier: Tier, catalog: Catalog) -> validation_service_pb2.Tier:
    """A tier with its price and the plans that have it."""
    return validation_service_pb2.Tier(
        tier=tier.tier,
        hardware=tier.hardware,
        memory_bytes=tier.memory_bytes,
        rate_per_minute=_money(tier.rate_micros_per_minute),
        plans=catalog.plans_with(tier.tier),
    )


def _training_from_proto(proto: spec_pb2.TrainingConfig) -> Training:
    values: dict[str, Any] = {}
    for field in dataclasses.fields(Training):
        name = field.name
        if name in _CHOICES:
            values[name] = _choice(name, getattr(proto, name))
        elif proto.HasField(name):
            value = getattr(proto, name)
            values[name] = _plain(value, _PARTS[name]) if name in _PARTS else value
    return Training(**values)


def _lora_from_proto(proto: spec_pb2.LoraConfig) -> Lora:
    values = {
        field.name: getattr(proto, field.name)
        for field in dataclasses.fields(Lora)
        if field.name != "target_modules" and proto.HasField(field.name)
    }
    return Lora(target_modules=tuple(proto.target_modules), **values)


def _budget_from_proto(proto: spec_pb2.BudgetConfig) -> Budget:
    return Budget(
        max_amount_micros=(
            proto.max_amount_micros if proto.HasField("max_amount_micros") else None
        ),
        timeout_seconds=(
            proto.timeout.seconds + proto.timeout.nanos / 1e9 if proto.HasField("timeout") else None
        ),
    )


def _plain(proto: Message, kind: type[Value]) -> Value:
    """A message whose fields have our names; fields without presence always count."""
    assert dataclasses.is_dataclass(kind)
    values: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        descriptor = proto.DESCRIPTOR.fields_by_name[field.name]
        if not descriptor.has_presence or proto.HasField(field.name):
            values[field.name] = getattr(proto, field.name)
    made: Value = kind(**values)
    return made


def _set_plain(proto: Message, value: Any) -> None:
    proto.SetInParent()
    for name, item in _fields(value):
        setattr(proto, name, item)


def _fields(value: Any) -> list[tuple[str, Any]]:
    return [
        (field.name, item)
        for field in dataclasses.fields(value)
        if (item := getattr(value, field.name)) is not None
    ]


def _choice(field: str, number: int) -> enum.StrEnum | None:
    if number == 0:
        return None
    if number not in _CHOICES[field]:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"training.{field} has the unknown value {number}.",
            field=f"training.{field}",
        )
    return _CHOICES[field][number]


def _severity(severity: Severity | None) -> str:
    return f"SEVERITY_{severity.name}" if severity else "SEVERITY_UNSPECIFIED"


def _finding_to_proto(finding: Finding) -> fault_pb2.Finding:
    return fault_pb2.Finding(
        severity=_severity(finding.severity),
        fault=fault_to_proto(finding.fault),
        field=finding.field,
    )


def _quote_to_proto(quote: report.Quote) -> billing_pb2.Quote:
    return billing_pb2.Quote(
        expected=_money(quote.expected_micros),
        maximum=_money(quote.maximum_micros),
        expected_minutes=quote.expected_minutes,
        maximum_minutes=quote.maximum_minutes,
        rate_per_minute=_money(quote.rate_micros_per_minute),
        export_rate_per_minute=_money(quote.export_rate_micros_per_minute),
        gpu_tier=quote.gpu_tier,
        refundable=quote.refundable,
    )


def _money(amount_micros: int) -> billing_pb2.Money:
    return billing_pb2.Money(amount_micros=amount_micros, currency_code=CURRENCY)


def _duration(seconds: float) -> Duration:
    duration = Duration()
    duration.FromTimedelta(timedelta(seconds=seconds))
    return duration
