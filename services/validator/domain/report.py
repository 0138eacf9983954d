"""The answer: all checks in order, the verdict, the price, and the snapshot of the spec."""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass

from modelspec.catalog import Catalog
from validator.domain import data, fit, model, parts, ranges, settings
from validator.domain.case import Case, examine
from validator.domain.facts import Facts
from validator.domain.finding import CheckOutcome, Finding, Severity
from validator.domain.fit import Needs
from validator.domain.spec import Export, Lora, Spec, Training


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckItem:
    """One line of the checklist."""

    check: str
    passed: bool
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Quote:
    """The price, in millionths of a credit."""

    expected_minutes: int
    maximum_minutes: int
    rate_micros_per_minute: int
    export_rate_micros_per_minute: int
    gpu_tier: str
    refundable: bool

    @property
    def expected_micros(self) -> int:
        """Expected charge."""
        return self.expected_minutes * self.rate_micros_per_minute

    @property
    def maximum_micros(self) -> int:
        """Highest charge, which is held at submission."""
        return self.maximum_minutes * self.rate_micros_per_minute


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The spec with all defaults; later edits of catalog, plan or datasets do not change it."""

    model_id: str
    model_revision: str
    verified: bool
    refund_waived: bool
    dataset_versions: tuple[str, ...]
    plan: str
    verdict: Severity | None
    estimated_vram_bytes: int
    estimated_artifact_bytes: int
    estimated_steps: int
    estimated_seconds: float
    timeout_seconds: int
    training: Training
    lora: Lora
    export: Export
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Report:
    """The whole answer.

    Attributes:
        verdict: weight of the worst finding, None when there is none.
        findings: worst first, otherwise in the order of the checklist.
        quote: None when the price could not be estimated.
        snapshot: None when the verdict is red.
    """

    verdict: Severity | None
    findings: tuple[Finding, ...]
    checklist: tuple[CheckItem, ...]
    quote: Quote | None
    snapshot: Snapshot | None


CHECKS: tuple[tuple[str, Callable[[Case], CheckOutcome]], ...] = (
    ("all required parts are there", parts.check_parts),
    ("rights are attested", parts.check_attestations),
    ("GPU tier exists and is in the plan", parts.check_tier),
    ("values are in range", ranges.check_ranges),
    ("settings go together", settings.check_settings),
    ("base model exists", model.check_existence),
    ("base model is verified or its refund waived", model.check_vouching),
    ("architecture is supported", model.check_architecture),
    ("tokenizer and chat template exist", model.check_tokenizer),
    ("weights are safetensors", model.check_weights),
    ("target modules exist", model.check_targets),
    ("datasets exist", data.check_datasets),
    ("dataset formats fit the method", data.check_formats),
    ("there is something to learn", data.check_labels),
    ("model can be exported to GGUF", model.check_convertibility),
)
ESTIMATES: tuple[tuple[str, Callable[[Case, Needs | None], CheckOutcome]], ...] = (
    ("hardware fits the model", fit.check_memory),
    ("artifacts fit the quota", fit.check_quota),
    ("timeout is longer than the estimate", fit.check_timeout),
    ("cost is estimated", fit.check_cost),
)


def report(spec: Spec, facts: Facts, catalog: Catalog) -> Report:
    """Examines a submission."""
    case = examine(spec, facts, catalog)
    needs = fit.estimate(case)
    outcomes = [(name, check(case)) for name, check in CHECKS]
    outcomes += [(name, check(case, needs)) for name, check in ESTIMATES]
    findings = sorted(
        (finding for _, found in outcomes for finding in found.findings),
        key=lambda finding: -finding.severity,
    )
    verdict = findings[0].severity if findings else None
    quote = None if needs is None else _quote(case, needs, verdict)
    sound = needs is not None and verdict is not Severity.RED
    return Report(
        verdict=verdict,
        findings=tuple(findings),
        checklist=tuple(
            CheckItem(check=name, passed=found.passed, detail=found.detail)
            for name, found in outcomes
        ),
        quote=quote,
        snapshot=_snapshot(case, needs, verdict) if sound and needs is not None else None,
    )


def fingerprint(case: Case) -> str:
    """SHA-256 of model, data and settings; equal configurations have equal ones."""
    assert case.model is not None
    document = {
        "model": [case.model.model_id, case.model.revision],
        "datasets": [dataset.version_name for dataset in case.facts.found_datasets()],
        "tier": case.spec.gpu_tier,
        "training": asdict(case.training),
        "lora": asdict(case.lora),
        "export": asdict(case.export),
    }
    text = json.dumps(document, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _quote(case: Case, needs: Needs, verdict: Severity | None) -> Quote:
    assert case.tier is not None
    assert case.model is not None
    vouched = verdict is None or verdict is Severity.INFO
    return Quote(
        expected_minutes=needs.expected_minutes,
        maximum_minutes=needs.maximum_minutes,
        rate_micros_per_minute=case.tier.rate_micros_per_minute,
        export_rate_micros_per_minute=case.catalog.export_rate_micros_per_minute,
        gpu_tier=case.tier.tier,
        refundable=case.model.verified and vouched,
    )


def _snapshot(case: Case, needs: Needs, verdict: Severity | None) -> Snapshot:
    assert case.model is not None
    attestations = case.spec.attestations
    waived = case.model.refund_waived or bool(attestations and attestations.refund_waived)
    return Snapshot(
        model_id=case.model.model_id,
        model_revision=case.model.revision,
        verified=case.model.verified,
        refund_waived=waived,
        dataset_versions=tuple(each.version_name for each in case.facts.found_datasets()),
        plan=case.facts.plan.plan,
        verdict=verdict,
        estimated_vram_bytes=needs.vram.total_bytes,
        estimated_artifact_bytes=needs.artifact_bytes,
        estimated_steps=needs.step_count,
        estimated_seconds=needs.seconds,
        timeout_seconds=needs.timeout_seconds,
        training=case.training,
        lora=case.lora,
        export=case.export,
        fingerprint=fingerprint(case),
    )
