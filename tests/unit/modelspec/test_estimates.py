"""Adapter, memory, duration and artifact sizes."""

import dataclasses
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode
from modelspec.artifact import QUANTIZATIONS, artifact_bytes, coarse_rows, gguf_bytes
from modelspec.catalog import load_catalog
from modelspec.duration import (
    Workload,
    estimate_seconds,
    expected_minutes,
    maximum_minutes,
    timeout_seconds,
)
from modelspec.lora import LoraSpec, adapter_bytes, adapter_parameter_count, resolve_targets
from modelspec.shape import ModelShape
from modelspec.vram import OptimizerState, TrainingLoad, estimate_vram, largest_micro_batch
from tests.unit.modelspec.published import PUBLISHED, shape

CATALOG = load_catalog(Path(__file__).parents[3] / "deploy/catalog")
LLAMA_8B = ModelShape.from_config(PUBLISHED["meta-llama/Llama-3.1-8B-Instruct"])
QWEN_05B = ModelShape.from_config(PUBLISHED["Qwen/Qwen2.5-0.5B"])

loads = st.builds(
    TrainingLoad,
    micro_batch_size=st.integers(1, 1024),
    sequence_tokens=st.integers(16, 131_072),
    is_gpu=st.booleans(),
    compute_bytes=st.sampled_from([2, 4]),
    gradient_checkpointing=st.booleans(),
    packing=st.booleans(),
    load_in_4bit=st.booleans(),
    optimizer=st.sampled_from(OptimizerState),
    sequences_per_example=st.sampled_from([1, 2]),
)
loras = st.builds(LoraSpec, rank=st.integers(1, 255), use_dora=st.booleans())


def test_adapter_of_a_known_model_has_the_known_size() -> None:
    """Rank 16 on all linear layers of Llama 3.1 8B: 41,943,040 parameters, as PEFT prints."""
    assert adapter_parameter_count(LoraSpec(rank=16), LLAMA_8B) == 41_943_040
    assert adapter_bytes(LoraSpec(rank=16), LLAMA_8B, bytes_per_param=2) == 83_886_080


def test_targets_come_in_the_order_of_the_model() -> None:
    assert resolve_targets(["v_proj", "q_proj"], LLAMA_8B) == ("q_proj", "v_proj")
    assert resolve_targets(["all-linear"], LLAMA_8B)[-1] == "down_proj"
    assert resolve_targets(["q_proj", "all-linear"], LLAMA_8B)[-1] == "down_proj"


@pytest.mark.parametrize("names", [["q_porj"], ["all-linear", "q_porj"]])
def test_a_target_that_the_model_has_not_is_named_with_the_nearest(names: list[str]) -> None:
    with pytest.raises(Fault) as caught:
        resolve_targets(names, LLAMA_8B)
    assert caught.value.code is FaultCode.CONFIG_TARGET_UNKNOWN
    assert "did you mean 'q_proj'?" in caught.value.message


@given(lora=loras, load=loads)
def test_memory_grows_with_batch_rank_and_length(lora: LoraSpec, load: TrainingLoad) -> None:
    """style.md, Tests: VRAM grows with batch, rank and length."""
    total = estimate_vram(LLAMA_8B, lora, load).total_bytes
    for larger in (
        dataclasses.replace(load, micro_batch_size=load.micro_batch_size + 1),
        dataclasses.replace(load, sequence_tokens=load.sequence_tokens + 1),
    ):
        assert estimate_vram(LLAMA_8B, lora, larger).total_bytes > total
    ranked = dataclasses.replace(lora, rank=lora.rank + 1)
    assert estimate_vram(LLAMA_8B, ranked, load).total_bytes > total


@given(lora=loras, load=loads)
def test_four_bits_checkpointing_and_small_states_never_cost_memory(
    lora: LoraSpec, load: TrainingLoad
) -> None:
    total = estimate_vram(LLAMA_8B, lora, load).total_bytes
    for smaller in (
        dataclasses.replace(load, load_in_4bit=True),
        dataclasses.replace(load, gradient_checkpointing=True),
        dataclasses.replace(load, optimizer=OptimizerState.ADAMW_8BIT),
    ):
        assert estimate_vram(LLAMA_8B, lora, smaller).total_bytes <= total


@given(lora=loras, load=loads, memory_bytes=st.integers(1, 200 << 30))
def test_the_largest_batch_fits_and_its_double_does_not(
    lora: LoraSpec, load: TrainingLoad, memory_bytes: int
) -> None:
    size = largest_micro_batch(LLAMA_8B, lora, load, memory_bytes=memory_bytes)
    assert size <= load.micro_batch_size
    if size:
        fitting = dataclasses.replace(load, micro_batch_size=size)
        assert estimate_vram(LLAMA_8B, lora, fitting).total_bytes <= memory_bytes
    double = dataclasses.replace(load, micro_batch_size=max(1, size * 2))
    if double.micro_batch_size <= load.micro_batch_size:
        assert estimate_vram(LLAMA_8B, lora, double).total_bytes > memory_bytes


def test_an_eight_billion_model_needs_what_people_see() -> None:
    """bf16 weights of 16 GB dominate; 24 GB are too small for 8 × 2048 tokens, 80 GB ample."""
    load = TrainingLoad(micro_batch_size=8, sequence_tokens=2048, is_gpu=True)
    total = estimate_vram(LLAMA_8B, LoraSpec(rank=16), load).total_bytes
    assert 24e9 < total < 40e9
    small = dataclasses.replace(load, micro_batch_size=1, load_in_4bit=True)
    assert estimate_vram(LLAMA_8B, LoraSpec(rank=16), small).total_bytes < 12e9


def work(**changes: object) -> Workload:
    usual = Workload(
        row_count=800,
        tokens_per_row=100,
        micro_batch_size=8,
        accumulation_steps=1,
        epochs=1,
        max_steps=0,
        gradient_checkpointing=True,
    )
    return dataclasses.replace(usual, **changes)  # type: ignore[arg-type]


def test_steps_are_passes_or_the_maximum() -> None:
    assert work().step_count == 100
    assert work(row_count=801, epochs=2).step_count == 202
    assert work(max_steps=7, epochs=3).step_count == 7
    assert work(accumulation_steps=4).step_count == 25


@given(
    row_count=st.integers(1, 10**6),
    tokens=st.floats(1, 4096),
    micro=st.integers(1, 64),
    accumulation=st.integers(1, 64),
    epochs=st.integers(1, 100),
)
def test_more_work_never_takes_less_time(
    row_count: int, tokens: float, micro: int, accumulation: int, epochs: int
) -> None:
    tier = CATALOG.tiers["t4"]
    load = work(
        row_count=row_count,
        tokens_per_row=tokens,
        micro_batch_size=micro,
        accumulation_steps=accumulation,
        epochs=epochs,
    )
    seconds = estimate_seconds(QWEN_05B, LoraSpec(rank=16), load, tier)
    for more in (
        dataclasses.replace(load, epochs=epochs + 1),
        dataclasses.replace(load, tokens_per_row=tokens + 1),
    ):
        assert estimate_seconds(QWEN_05B, LoraSpec(rank=16), more, tier) > seconds


def test_the_timeout_is_the_estimate_with_thirty_percent() -> None:
    """003-24"""
    assert timeout_seconds(100) == 130
    assert timeout_seconds(100.1) == 131


@given(st.floats(0, 1e6))
def test_the_held_minutes_cover_the_charged_ones(seconds: float) -> None:
    """A1: charged minutes are rounded down, so what is held always suffices."""
    assert 0 <= expected_minutes(seconds) <= maximum_minutes(seconds)
    assert maximum_minutes(seconds) >= 1
    assert maximum_minutes(timeout_seconds(seconds)) * 60 >= timeout_seconds(seconds)


def test_gguf_sizes_are_near_published_ones() -> None:
    """Files of Llama 3.1 8B Instruct as widely published: Q4_K_M 4.92 GB, Q8_0 8.54, F16 16.1."""
    for name, gigabytes in (("Q4_K_M", 4.92), ("Q5_K_M", 5.73), ("Q8_0", 8.54), ("F16", 16.07)):
        assert abs(gguf_bytes(LLAMA_8B, name) / 1e9 - gigabytes) / gigabytes < 0.04, name


def test_rows_that_no_super_block_divides_are_named_and_counted_larger() -> None:
    """Qwen2.5 0.5B has rows of 896 = 3.5 · 256; its Q4_K_M is published with 398 MB."""
    assert "q_proj" in coarse_rows(QWEN_05B)
    assert coarse_rows(LLAMA_8B) == ()
    assert 0.36e9 < gguf_bytes(QWEN_05B, "Q4_K_M") < 0.44e9


def test_an_unknown_quantization_is_refused() -> None:
    with pytest.raises(Fault) as caught:
        gguf_bytes(LLAMA_8B, "Q9_X")
    assert caught.value.code is FaultCode.CONFIG_QUANTIZATION_UNKNOWN


@given(rank=st.integers(1, 255), names=st.lists(st.sampled_from(QUANTIZATIONS), max_size=4))
def test_artifacts_grow_with_rank_and_with_each_quantization(rank: int, names: list[str]) -> None:
    base = shape()
    total = artifact_bytes(LoraSpec(rank=rank), base, quantizations=names, tokenizer_bytes=10)
    ranked = LoraSpec(rank=rank + 1)
    assert artifact_bytes(ranked, base, quantizations=names, tokenizer_bytes=10) > total
    more = [*names, "F16"]
    assert artifact_bytes(LoraSpec(rank=rank), base, quantizations=more, tokenizer_bytes=10) > total
