"""Submissions and facts that are in order unless a test says otherwise."""

import dataclasses
from pathlib import Path
from typing import Any

from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from modelspec.catalog import load_catalog
from modelspec.shape import ModelShape
from tests.unit.modelspec.published import PUBLISHED, shape
from validator.domain.facts import DatasetFacts, Facts, LabelFacts, ModelFacts
from validator.domain.finding import Finding, Severity
from validator.domain.report import Report, report
from validator.domain.spec import Attestations, Lora, Spec, Training

CATALOG = load_catalog(Path(__file__).parents[3] / "deploy/catalog")


def a_training(**changes: Any) -> Training:
    return dataclasses.replace(Training(), **changes)


def a_spec(**changes: Any) -> Spec:
    usual = Spec(
        base_model="tunesmith/anvil-3m",
        datasets=("projects/acme/datasets/habit",),
        training=Training(),
        lora=Lora(),
        gpu_tier="cpu",
        attestations=Attestations(dataset_rights=True, model_license=True),
    )
    return dataclasses.replace(usual, **changes)


def a_model(**changes: Any) -> ModelFacts:
    usual = ModelFacts(
        model_id="tunesmith/anvil-3m",
        revision="main",
        verified=True,
        refund_waived=False,
        family="llama",
        shape=shape(),
        tokenizer_present=True,
        tokenizer_bytes=55_000,
        has_sentencepiece=False,
        safetensors_present=True,
        template_missing=False,
    )
    return dataclasses.replace(usual, **changes)


def a_published_model(model_id: str, **changes: Any) -> ModelFacts:
    row = CATALOG.models[model_id]
    return a_model(
        model_id=model_id,
        family=row.family,
        shape=ModelShape.from_config(PUBLISHED[model_id]),
        has_sentencepiece=True,
        **changes,
    )


def a_dataset(**changes: Any) -> DatasetFacts:
    usual = DatasetFacts(
        name="projects/acme/datasets/habit",
        version_name="projects/acme/datasets/habit/versions/1",
        format=Format.MESSAGES,
        row_count=300,
        character_count=40_000,
    )
    return dataclasses.replace(usual, **changes)


def some_facts(**changes: Any) -> Facts:
    usual = Facts(
        plan=CATALOG.plans["local"],
        artifact_bytes=0,
        artifact_quota_bytes=10 << 30,
        model=a_model(),
        datasets=(a_dataset(),),
        labels=LabelFacts(row_count=48, token_count=2000, trained_token_count=900),
    )
    return dataclasses.replace(usual, **changes)


def examined(spec: Spec | None = None, **facts: Any) -> Report:
    return report(spec or a_spec(), some_facts(**facts), CATALOG)


def reds(answer: Report) -> list[Finding]:
    return [finding for finding in answer.findings if finding.severity is Severity.RED]


def refusal(answer: Report) -> Fault:
    """The one reason against a run; it has neither a snapshot nor a green line in its place."""
    (finding,) = reds(answer)
    assert answer.verdict is Severity.RED
    assert answer.snapshot is None
    assert any(not item.passed for item in answer.checklist)
    return finding.fault


def codes(answer: Report) -> list[FaultCode]:
    return [finding.fault.code for finding in answer.findings]
