"""The answer as a whole: order, price, snapshot, fingerprint."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.shapes import Format
from modelspec.recipe import Method, Optimizer, Precision
from tests.unit.modelspec.published import shape
from tests.unit.validator.build import (
    CATALOG,
    a_dataset,
    a_model,
    a_published_model,
    a_spec,
    a_training,
    examined,
    some_facts,
)
from validator.domain.filling import fill_export, fill_lora, fill_training, holdout_ratio
from validator.domain.finding import Severity
from validator.domain.report import report
from validator.domain.spec import Attestations, Budget, Export, Lora, MultiRun, Preset, Validation


def test_findings_come_worst_first() -> None:
    answer = examined(
        a_spec(
            lora=Lora(rank=0, alpha=1.0),
            attestations=Attestations(dataset_rights=True, model_license=True, refund_waived=True),
        ),
        model=a_model(verified=False, template_missing=True),
    )
    weights = [finding.severity for finding in answer.findings]
    assert weights == [Severity.RED, Severity.AMBER, Severity.INFO]
    assert answer.verdict is Severity.RED


def test_the_checklist_has_every_check_whatever_is_missing() -> None:
    """003-23"""
    whole = [item.check for item in examined().checklist]
    empty = examined(model=None, datasets=(), labels=None)
    assert [item.check for item in empty.checklist] == whole
    assert len(whole) == len(set(whole))
    assert all(item.detail for item in empty.checklist)


def test_the_price_is_known_before_anything_starts() -> None:
    """003-27"""
    quote = examined(a_spec(gpu_tier="t4")).quote
    assert quote is not None
    assert quote.rate_micros_per_minute == 50_000
    assert quote.maximum_micros == quote.maximum_minutes * 50_000
    assert quote.export_rate_micros_per_minute == 0
    assert 0 <= quote.expected_minutes <= quote.maximum_minutes


def test_the_default_timeout_is_the_estimate_with_thirty_percent() -> None:
    """003-24"""
    snapshot = examined().snapshot
    assert snapshot is not None
    assert snapshot.timeout_seconds >= snapshot.estimated_seconds * 1.3
    assert snapshot.timeout_seconds < snapshot.estimated_seconds * 1.3 + 1


@given(
    steps=st.integers(1, 100_000),
    budget=st.one_of(st.none(), st.integers(50_000, 10**9)),
    timeout=st.one_of(st.none(), st.floats(1, 10**6)),
)
def test_what_is_held_covers_the_timeout_and_never_exceeds_the_budget(
    steps: int, budget: int | None, timeout: float | None
) -> None:
    answer = examined(
        a_spec(
            gpu_tier="t4",
            training=a_training(max_steps=steps),
            budget=Budget(max_amount_micros=budget, timeout_seconds=timeout),
        )
    )
    assert answer.quote is not None
    assert answer.snapshot is not None
    assert answer.quote.expected_minutes <= answer.quote.maximum_minutes
    assert answer.quote.maximum_minutes >= 1
    if budget is not None:
        assert answer.quote.maximum_micros <= budget
    else:
        assert answer.quote.maximum_minutes * 60 >= answer.snapshot.timeout_seconds


def test_the_snapshot_says_what_the_spec_meant() -> None:
    """A16, 001-17"""
    snapshot = examined().snapshot
    assert snapshot is not None
    assert snapshot.dataset_versions == ("projects/acme/datasets/habit/versions/1",)
    assert snapshot.verified
    assert snapshot.plan == "local"
    assert snapshot.lora == Lora(
        rank=16,
        alpha=32.0,
        dropout=0.0,
        target_modules=("all-linear",),
        use_rslora=False,
        use_dora=False,
    )
    assert snapshot.export == Export(gguf=True, quantizations=("Q4_K_M",))
    gaps = {
        field.name
        for field in dataclasses.fields(snapshot.training)
        if getattr(snapshot.training, field.name) is None
    }
    assert gaps == {"validation", "preference", "multi_run"}


def test_safe_defaults_are_those_that_most_likely_succeed() -> None:
    """003-08, 003-09"""
    filled = fill_training(a_training(), tier=CATALOG.tiers["t4"], shape=shape())
    assert filled.torch_compile is False
    assert filled.optimizer is Optimizer.ADAMW_TORCH
    assert filled.precision is Precision.AUTO
    assert filled.preset is Preset.SAFE


@pytest.mark.parametrize("tier", sorted(CATALOG.tiers))
def test_an_empty_config_takes_the_choice_that_succeeds_on_every_tier(tier: str) -> None:
    """003-07: what heals and falls back is on; what is fast and fails on some card is off."""
    gpu = CATALOG.tiers[tier].is_gpu
    filled = fill_training(a_training(), tier=CATALOG.tiers[tier], shape=shape())
    assert filled.preset is Preset.SAFE
    assert (filled.torch_compile, filled.optimizer) == (False, Optimizer.ADAMW_TORCH)
    assert (filled.oom_recovery, filled.unsloth_fallback) == (True, True)
    assert filled.gradient_checkpointing is gpu
    spec = a_spec(gpu_tier=tier, training=a_training())
    assert not examined(spec, plan=CATALOG.plans["local"]).findings


def test_the_fast_preset_compiles_only_where_that_is_proven() -> None:
    """003-08, 003-11"""
    fast = a_training(preset=Preset.FAST)
    assert fill_training(fast, tier=CATALOG.tiers["h100"], shape=shape()).torch_compile
    assert not fill_training(fast, tier=CATALOG.tiers["a10g"], shape=shape()).torch_compile


@pytest.mark.parametrize(("tier", "checkpointing"), [("cpu", False), ("t4", True)])
def test_defaults_follow_the_tier(tier: str, checkpointing: bool) -> None:
    filled = fill_training(a_training(), tier=CATALOG.tiers[tier], shape=shape())
    assert filled.gradient_checkpointing is checkpointing


def test_the_longest_sequence_defaults_to_the_context_when_that_is_short() -> None:
    def filled(context: int) -> int | None:
        model = shape(max_position_embeddings=context)
        return fill_training(a_training(), tier=None, shape=model).max_sequence_tokens

    assert filled(512) == 512
    assert filled(131_072) == 2048


def test_what_is_given_is_never_overwritten() -> None:
    given_ = a_training(
        micro_batch_size=3, packing=False, warmup_ratio=0.0, seed=0, max_grad_norm=0.0
    )
    filled = fill_training(given_, tier=CATALOG.tiers["cpu"], shape=shape())
    assert (filled.micro_batch_size, filled.packing, filled.seed) == (3, False, 0)
    assert (filled.warmup_ratio, filled.max_grad_norm) == (0.0, 0.0)


def test_alpha_follows_the_rank_and_quantizations_come_once() -> None:
    assert fill_lora(Lora(rank=8)).alpha == 16.0
    assert fill_lora(Lora(rank=8, alpha=3.0)).alpha == 3.0
    assert fill_export(Export(quantizations=("Q8_0", "Q8_0"))).quantizations == ("Q8_0",)
    assert fill_export(Export(gguf=False)).quantizations == ()


def test_rows_are_held_out_only_when_something_validates_on_them() -> None:
    """002-18, 002-19"""
    multi = MultiRun(run_count=2, samples_per_run=5)
    unchecked = dataclasses.replace(multi, validate_every_run=False)
    assert holdout_ratio(a_training()) == 0
    assert holdout_ratio(a_training(validation=Validation())) == 0.1
    assert holdout_ratio(a_training(validation=Validation(dataset="other"))) == 0
    assert holdout_ratio(a_training(multi_run=multi)) == 0.1
    assert holdout_ratio(a_training(multi_run=unchecked)) == 0


def fingerprint_of(**changes: Any) -> str:
    facts = changes.pop("facts", {})
    snapshot = report(a_spec(**changes), some_facts(**facts), CATALOG).snapshot
    assert snapshot is not None
    return snapshot.fingerprint


def test_equal_configurations_have_equal_fingerprints() -> None:
    """000-12"""
    assert fingerprint_of() == fingerprint_of(lora=Lora(rank=16, alpha=32.0))


@pytest.mark.parametrize(
    "changes",
    [
        {"lora": Lora(rank=8)},
        {"gpu_tier": "t4"},
        {"training": a_training(seed=7)},
        {"export": Export(gguf=False)},
        {"facts": {"model": a_model(revision="v2")}},
        {"facts": {"datasets": (a_dataset(version_name="…/versions/2"),)}},
    ],
)
def test_different_configurations_have_different_fingerprints(changes: dict[str, Any]) -> None:
    assert fingerprint_of(**changes) != fingerprint_of()


def test_paired_objectives_need_the_memory_of_two_continuations() -> None:
    def estimated(method: Method) -> int:
        data_format = Format.MESSAGES if method is Method.SFT else Format.PREFERENCE
        snapshot = examined(
            a_spec(gpu_tier="a100", training=a_training(method=method)),
            model=a_published_model("Qwen/Qwen2.5-0.5B"),
            datasets=(a_dataset(format=data_format),),
        ).snapshot
        assert snapshot is not None
        return snapshot.estimated_vram_bytes

    assert estimated(Method.DPO) > estimated(Method.SFT)
