"""Each check refuses what it is there for, by its code and text, and passes the rest."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Backend, Method, Optimizer, Precision
from tests.unit.modelspec.published import PUBLISHED
from tests.unit.validator.build import (
    CATALOG,
    a_dataset,
    a_published_model,
    a_spec,
    a_training,
    examined,
    reds,
    refusal,
)
from validator.domain.facts import LabelFacts
from validator.domain.finding import Severity
from validator.domain.ranges import LARGEST_SEED, LORA, TRAINING, in_words
from validator.domain.spec import (
    Attestations,
    Budget,
    Export,
    Lora,
    Mode,
    MultiRun,
    Preference,
    Spec,
    Temperature,
    Validation,
)


def test_a_submission_in_order_is_green() -> None:
    answer = examined()
    assert answer.verdict is None
    assert not answer.findings
    assert all(item.passed for item in answer.checklist)
    assert answer.quote is not None
    assert answer.quote.refundable
    assert answer.snapshot is not None


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"base_model": ""}, "base model"),
        ({"base_model": "  "}, "base model"),
        ({"datasets": ()}, "dataset"),
        ({"training": None}, "training config"),
        ({"lora": None}, "LoRA config"),
        ({"gpu_tier": ""}, "GPU tier"),
        ({"attestations": None}, "rights attestations"),
    ],
)
def test_a_missing_part_is_named(changes: dict[str, Any], named: str) -> None:
    """000-31"""
    spec = a_spec(**changes)
    facts: dict[str, Any] = {}
    if not spec.base_model.strip():
        facts["model"] = None
    if not spec.datasets:
        facts |= {"datasets": (), "labels": None}
    fault = refusal(examined(spec, **facts))
    assert fault.code is FaultCode.CONFIG_LEG_MISSING
    assert fault.message == f"Required part missing: {named}."


def test_every_missing_part_is_named_at_once() -> None:
    """000-31"""
    answer = examined(Spec(), model=None, datasets=(), labels=None)
    assert [finding.fault.metadata["part"] for finding in reds(answer)] == [
        "base model",
        "dataset",
        "training config",
        "LoRA config",
        "GPU tier",
        "rights attestations",
    ]


@pytest.mark.parametrize("field", ["dataset_rights", "model_license"])
def test_a_missing_attestation_is_refused(field: str) -> None:
    """001-22"""
    given_ = dataclasses.replace(
        Attestations(dataset_rights=True, model_license=True), **{field: False}
    )
    fault = refusal(examined(a_spec(attestations=given_)))
    assert fault.code is FaultCode.CONFIG_ATTESTATION_MISSING
    assert field in fault.message


def test_an_unknown_tier_is_refused_with_the_nearest() -> None:
    fault = refusal(examined(a_spec(gpu_tier="a10")))
    assert fault.code is FaultCode.CONFIG_TIER_UNKNOWN
    assert "Did you mean a10g?" in fault.message or "Did you mean a100?" in fault.message


def test_a_tier_outside_the_plan_is_refused_and_both_are_named() -> None:
    """000-32, 000-15"""
    fault = refusal(examined(a_spec(gpu_tier="a10g"), plan=CATALOG.plans["free"]))
    assert fault.code is FaultCode.CONFIG_TIER_NOT_IN_PLAN
    assert "a10g" in fault.message
    assert "plan free" in fault.message
    assert "builder" in fault.message


@pytest.mark.parametrize("rank", [0, -1, 257, 10**9])
def test_a_rank_out_of_range_is_refused(rank: int) -> None:
    fault = refusal(examined(a_spec(lora=Lora(rank=rank, alpha=16.0))))
    assert fault.code is FaultCode.CONFIG_RANK_OUT_OF_RANGE
    assert f"lora.rank is {rank}; it must be 1 to 256." in fault.message


@given(name=st.sampled_from(sorted(TRAINING)), beyond=st.booleans())
def test_every_training_value_beyond_its_range_is_refused(name: str, beyond: bool) -> None:
    """004-09"""
    bounds = TRAINING[name]
    value: float = bounds.high + 1 if beyond else bounds.low - (0 if bounds.low_open else 1)
    kind = int if name in {"epochs", "max_steps", "micro_batch_size", "seed"} else float
    fault = refusal(examined(a_spec(training=a_training(**{name: kind(value)}))))
    assert fault.code is FaultCode.CONFIG_VALUE_OUT_OF_RANGE
    assert fault.metadata["field"] == f"training.{name}"


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("name", ["learning_rate", "warmup_ratio", "weight_decay", "max_grad_norm"])
def test_what_is_no_number_is_in_no_range(name: str, value: float) -> None:
    """004-09"""
    fault = refusal(examined(a_spec(training=a_training(**{name: value}))))
    assert fault.code is FaultCode.CONFIG_VALUE_OUT_OF_RANGE


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"lora": Lora(alpha=0.0)}, "lora.alpha"),
        ({"lora": Lora(dropout=0.95)}, "lora.dropout"),
        ({"training": a_training(max_sequence_tokens=15)}, "training.max_sequence_tokens"),
        ({"training": a_training(max_sequence_tokens=513)}, "training.max_sequence_tokens"),
        (
            {"training": a_training(validation=Validation(holdout_ratio=0.6))},
            "training.validation.holdout_ratio",
        ),
        (
            {"training": a_training(validation=Validation(every_steps=0))},
            "training.validation.every_steps",
        ),
        (
            {"training": a_training(temperature=Temperature(warn_celsius=20.0))},
            "training.temperature.warn_celsius",
        ),
        (
            {"training": a_training(multi_run=MultiRun(run_count=1, samples_per_run=10))},
            "training.multi_run.run_count",
        ),
        ({"budget": Budget(timeout_seconds=0.0)}, "budget.timeout_seconds"),
        ({"budget": Budget(max_amount_micros=-1)}, "budget.max_amount_micros"),
        ({"sample_prompts": ("a",) * 17}, "sample_prompts"),
        ({"sample_prompts": ("",)}, "sample_prompts[0]"),
    ],
)
def test_other_values_out_of_range_are_refused(changes: dict[str, Any], field: str) -> None:
    """004-09"""
    fault = refusal(examined(a_spec(**changes)))
    assert fault.code is FaultCode.CONFIG_VALUE_OUT_OF_RANGE
    assert fault.metadata["field"] == field


def test_the_preference_strength_must_be_above_zero() -> None:
    training = a_training(method=Method.DPO, preference=Preference(beta=0.0))
    answer = examined(a_spec(training=training), datasets=(a_dataset(format=Format.PREFERENCE),))
    assert refusal(answer).metadata["field"] == "training.preference.beta"


@given(rank=st.integers(1, 256), dropout=st.floats(LORA["dropout"].low, LORA["dropout"].high))
def test_adapters_within_the_ranges_are_taken(rank: int, dropout: float) -> None:
    assert not reds(examined(a_spec(lora=Lora(rank=rank, dropout=dropout))))


def test_an_unknown_target_is_refused() -> None:
    fault = refusal(examined(a_spec(lora=Lora(target_modules=("c_attn",)))))
    assert fault.code is FaultCode.CONFIG_TARGET_UNKNOWN


def test_an_unknown_quantization_is_refused() -> None:
    fault = refusal(examined(a_spec(export=Export(quantizations=("Q5_X",)))))
    assert fault.code is FaultCode.CONFIG_QUANTIZATION_UNKNOWN


def test_full_fine_tuning_is_refused() -> None:
    fault = refusal(examined(a_spec(training=a_training(mode=Mode.FULL))))
    assert fault.code is FaultCode.CONFIG_INVALID_SETTING


@pytest.mark.parametrize("tier", ["t4", "a10g", "a100", "h100"])
def test_mlx_on_a_host_that_is_not_apple_is_refused(tier: str) -> None:
    """002-37"""
    spec = a_spec(gpu_tier=tier, training=a_training(backend=Backend.MLX))
    fault = refusal(examined(spec))
    assert fault.code is FaultCode.CONFIG_INVALID_SETTING
    assert "Apple" in fault.message


def test_mlx_is_told_to_be_experimental_where_it_may_run() -> None:
    """002-40, A17: without CUDA the scheduler knows whether a node can do it."""
    answer = examined(a_spec(gpu_tier="cpu", training=a_training(backend=Backend.MLX)))
    assert answer.verdict is Severity.INFO
    (finding,) = answer.findings
    assert "experimental" in finding.fault.message


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"method": Method.ORPO}, "training.method"),
        ({"mode": Mode.FULL}, "training.mode"),
        ({"precision": Precision.FP8}, "training.precision"),
        ({"multi_run": MultiRun(run_count=2, samples_per_run=10)}, "training.multi_run"),
        ({"load_in_4bit": True}, "training.load_in_4bit"),
        ({"optimizer": Optimizer.ADAMW_8BIT}, "training.optimizer"),
        ({"torch_compile": True}, "training.torch_compile"),
    ],
)
def test_mlx_does_plain_lora_only(changes: dict[str, Any], field: str) -> None:
    """002-38"""
    training = a_training(backend=Backend.MLX, **changes)
    findings = [
        finding
        for finding in reds(examined(a_spec(training=training)))
        if "MLX" in finding.fault.message and finding.field == field
    ]
    assert findings
    assert {finding.fault.code for finding in findings} == {FaultCode.CONFIG_INVALID_SETTING}


def test_mlx_knows_no_dora() -> None:
    """002-38"""
    spec = a_spec(training=a_training(backend=Backend.MLX), lora=Lora(use_dora=True))
    assert "lora.use_dora" in {finding.field for finding in reds(examined(spec))}


@pytest.mark.parametrize(
    ("tier", "changes"),
    [
        ("cpu", {"backend": Backend.CUDA}),
        ("t4", {"backend": Backend.CPU}),
        ("t4", {"precision": Precision.BF16}),
        ("cpu", {"precision": Precision.FP16}),
        ("a100", {"precision": Precision.FP8}),
        ("h100", {"precision": Precision.FP8}),
        ("a100", {"mode": Mode.FULL}),
        ("t4", {"temperature": Temperature(warn_celsius=95.0)}),
    ],
)
def test_settings_that_no_node_can_run_are_refused(tier: str, changes: dict[str, Any]) -> None:
    fault = refusal(examined(a_spec(gpu_tier=tier, training=a_training(**changes))))
    assert fault.code is FaultCode.CONFIG_INVALID_SETTING


def test_slices_larger_than_the_training_pool_are_refused_with_the_bound() -> None:
    """002-17, 002-20"""
    multi = MultiRun(run_count=3, samples_per_run=91)
    answer = examined(
        a_spec(training=a_training(multi_run=multi)), datasets=(a_dataset(row_count=100),)
    )
    fault = refusal(answer)
    assert fault.code is FaultCode.CONFIG_INVALID
    assert "samples_per_run exceeds training pool" in fault.message
    assert fault.remedy == "Reduce --samples (Python: samples_per_run) below 90"
    assert fault.remedy in fault.message


def test_without_validation_the_whole_dataset_is_the_pool() -> None:
    """002-19"""
    multi = MultiRun(run_count=3, samples_per_run=100, validate_every_run=False)
    answer = examined(
        a_spec(training=a_training(multi_run=multi)), datasets=(a_dataset(row_count=100),)
    )
    assert not reds(answer)


def test_a_limit_of_the_held_out_loss_needs_held_out_rows() -> None:
    """002-19: what is switched off cannot guard anything."""
    multi = MultiRun(
        run_count=3, samples_per_run=10, validate_every_run=False, eval_maximum_regression=0.1
    )
    fault = refusal(examined(a_spec(training=a_training(multi_run=multi))))
    assert fault.code is FaultCode.CONFIG_INVALID_SETTING
    assert "needs held-out rows" in fault.message
    given = a_training(multi_run=multi, validation=Validation(holdout_ratio=0.2))
    assert not reds(examined(a_spec(training=given)))


def test_a_multi_run_says_that_it_validates_after_each_run() -> None:
    multi = MultiRun(run_count=3, samples_per_run=10)
    given = a_training(multi_run=multi, validation=Validation(every_steps=5))
    answer = examined(a_spec(training=given))
    assert not reds(answer)
    assert "training.validation.every_steps" in {found.field for found in answer.findings}


def test_a_missing_dataset_is_refused_as_the_hub_says() -> None:
    """003-02"""
    gone = Fault(
        FaultCode.DATASET_NOT_FOUND,
        "There is no dataset habbit. Did you mean habit?",
        similar_names="habit",
    )
    fault = refusal(examined(datasets=(gone,), labels=None))
    assert fault is gone
    assert "habit" in fault.metadata["similar_names"]


def test_a_dataset_without_rows_is_refused() -> None:
    fault = refusal(examined(datasets=(a_dataset(row_count=0),)))
    assert fault.code is FaultCode.DATASET_EMPTY


def test_files_of_different_formats_go_into_one_run() -> None:
    """000-20, A10"""
    two = (a_dataset(), a_dataset(format=Format.INSTRUCTION))
    assert not reds(examined(datasets=two))


@pytest.mark.parametrize("method", list(Method))
@pytest.mark.parametrize("data_format", list(Format))
def test_a_method_takes_the_formats_it_learns_from(method: Method, data_format: Format) -> None:
    answer = examined(
        a_spec(training=a_training(method=method)), datasets=(a_dataset(format=data_format),)
    )
    fits = {
        Format.PREFERENCE: {Method.DPO, Method.ORPO, Method.SIMPO},
        Format.KTO: {Method.KTO},
    }.get(data_format, {Method.SFT})
    assert bool(reds(answer)) == (method not in fits)


def test_a_dataset_of_which_nothing_is_learnt_is_refused() -> None:
    labels = LabelFacts(row_count=48, token_count=4000, trained_token_count=0)
    fault = refusal(examined(labels=labels))
    assert fault.code is FaultCode.DATASET_NO_TRAINED_TOKENS


def test_cut_rows_are_warned_of_with_their_numbers() -> None:
    """A12"""
    labels = LabelFacts(
        row_count=48,
        token_count=4000,
        trained_token_count=900,
        truncated=(("habit", 3), ("habit", 9)),
    )
    answer = examined(labels=labels)
    assert answer.verdict is Severity.INFO
    assert "row 3 of habit, row 9 of habit" in answer.findings[0].fault.message


@pytest.mark.parametrize(
    "model_id",
    ["meta-llama/Llama-3.1-8B-Instruct", "Qwen/Qwen3-8B", "mistralai/Mistral-7B-Instruct-v0.3"],
)
@pytest.mark.parametrize("four_bits", [False, True])
def test_five_billion_parameters_and_more_do_not_train_on_a_t4(
    model_id: str, four_bits: bool
) -> None:
    """000-08, 003-25"""
    spec = a_spec(gpu_tier="t4", training=a_training(load_in_4bit=four_bits, micro_batch_size=1))
    fault = refusal(examined(spec, model=a_published_model(model_id)))
    assert fault.code is FaultCode.CAPACITY_NO_GPU_FITS
    assert "a10g" in fault.metadata["tiers"]


def test_a_small_model_trains_on_a_t4_with_the_defaults() -> None:
    """000-08"""
    assert not reds(examined(a_spec(gpu_tier="t4"), model=a_published_model("Qwen/Qwen2.5-0.5B")))


def test_a_batch_that_does_not_fit_is_refused_with_one_that_does() -> None:
    """000-09"""
    model = a_published_model("Qwen/Qwen2.5-0.5B")
    training = a_training(micro_batch_size=64, packing=False)
    fault = refusal(examined(a_spec(gpu_tier="t4", training=training), model=model))
    assert fault.code is FaultCode.CAPACITY_NO_GPU_FITS
    words = fault.remedy.rstrip(".").split()
    size = int(words[words.index("training.micro_batch_size") + 1])
    smaller = dataclasses.replace(training, micro_batch_size=size)
    assert not reds(examined(a_spec(gpu_tier="t4", training=smaller), model=model))


def test_artifacts_that_would_exceed_the_quota_are_refused_with_sizes() -> None:
    """000-34"""
    model = a_published_model("Qwen/Qwen2.5-0.5B")
    answer = examined(
        a_spec(gpu_tier="t4"), model=model, artifact_bytes=900 << 20, artifact_quota_bytes=1 << 30
    )
    fault = refusal(answer)
    assert fault.code is FaultCode.QUOTA_ARTIFACTS_EXCEEDED
    assert "124.0 MiB of 1.00 GiB" in fault.message
    assert int(fault.metadata["needed_bytes"]) > int(fault.metadata["free_bytes"])


def test_a_budget_below_one_minute_is_refused() -> None:
    fault = refusal(examined(a_spec(budget=Budget(max_amount_micros=9_999))))
    assert "less than one minute" in fault.message


def test_a_timeout_shorter_than_the_estimate_is_told() -> None:
    """003-24"""
    answer = examined(a_spec(budget=Budget(timeout_seconds=30.0)))
    assert answer.verdict is Severity.INFO
    assert "shorter than the estimate" in answer.findings[0].fault.message


def test_all_published_models_have_a_tier_they_fit() -> None:
    for model_id in PUBLISHED:
        model = a_published_model(model_id)
        specs = [
            a_spec(gpu_tier=tier, training=a_training(micro_batch_size=1)) for tier in CATALOG.tiers
        ]
        answers = [examined(spec, model=model, artifact_quota_bytes=100 << 30) for spec in specs]
        assert any(not reds(answer) for answer in answers), model_id


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (-2147483648, "-2147483648"),
        (LARGEST_SEED, "9223372036854775807"),
        (1e6, "1000000"),
        (-1.0, "-1"),
        (0.5, "0.5"),
        (1e308, "1e+308"),
        (float("nan"), "nan"),
        (float("-inf"), "-inf"),
    ],
)
def test_a_number_out_of_range_is_told_with_all_its_digits(number: float, text: str) -> None:
    assert in_words(number) == text


@pytest.mark.parametrize(
    "changes", [{"gpu_tier": "t" * 70}, {"export": Export(quantizations=("Q" * 70,))}]
)
def test_a_long_name_in_a_message_keeps_both_quotes(changes: dict[str, Any]) -> None:
    """000-35"""
    message = refusal(examined(a_spec(**changes))).message
    assert message.count("'") == 2
    assert "…'" in message
    assert "t" * 41 not in message
    assert "Q" * 41 not in message
