"""The trainer's rules: schedule, time left, sound answers, healing, counts of steps."""

import functools
import json
import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Schedule
from tests.support.training import a_plan, changed
from trainer.domain import plan as plans
from trainer.domain.card import model_card
from trainer.domain.healing import OomRecovery, means_out_of_memory
from trainer.domain.loss_curve import BUCKETS_MAX, PLACES, LossCurve
from trainer.domain.samples import flags
from trainer.domain.steps import STEPS_BEFORE_ESTIMATE, StepTimer, learning_rate


def rate(step: int, schedule: Schedule = Schedule.COSINE, warmup: float = 0.1) -> float:
    return learning_rate(step, steps=100, lr_peak=1.0, warmup_ratio=warmup, schedule=schedule)


def test_warmup_climbs_in_a_line_to_the_peak() -> None:
    assert [rate(step) for step in range(10)] == pytest.approx([(s + 1) / 10 for s in range(10)])


def test_cosine_is_half_way_down_in_the_middle() -> None:
    assert rate(55) == pytest.approx(0.5)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    falls = {
        round(rate(s, Schedule.LINEAR) - rate(s + 1, Schedule.LINEAR), 9) for s in range(10, 98)
    }
    assert falls == {round(1 / 90, 9)}


def test_constant_stays_at_the_peak() -> None:
    assert {rate(step, Schedule.CONSTANT) for step in range(10, 100)} == {1.0}


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 0.5),
    schedule=st.sampled_from(list(Schedule)),
    data=st.data(),
)
def test_rate_is_above_zero_and_never_above_the_peak(
    steps: int, warmup: float, schedule: Schedule, data: st.DataObject
) -> None:
    step = data.draw(st.integers(0, steps - 1))
    lr = learning_rate(step, steps=steps, lr_peak=3e-4, warmup_ratio=warmup, schedule=schedule)
    assert 0 < lr <= 3e-4


def test_no_time_left_before_a_handful_of_steps_were_timed() -> None:
    """001-14"""
    timer = StepTimer()
    seen = []
    for _ in range(STEPS_BEFORE_ESTIMATE):
        seen.append(timer.remaining_seconds(steps_left=10))
        timer.add(2.0)
    assert seen == [None] * STEPS_BEFORE_ESTIMATE
    assert timer.remaining_seconds(steps_left=10) == pytest.approx(20.0)


def test_time_left_forgets_the_slow_first_step() -> None:
    """001-14"""
    timer = StepTimer()
    for seconds in (60.0, 1.0, 1.0, 1.0, 1.0):
        timer.add(seconds)
    assert timer.remaining_seconds(steps_left=100) == pytest.approx(100.0)


def test_raw_template_tokens_are_flagged() -> None:
    """001-19"""
    found = flags("Ahoy!<|im_end|>\n<|im_start|>user", special_tokens=["<|im_end|>"])
    assert found == ("raw template token <|im_start|>", "raw template token <|im_end|>")


def test_own_special_tokens_are_flagged() -> None:
    """001-19"""
    assert flags("well <fim>", special_tokens=["<fim>"]) == ("raw template token <fim>",)


def test_empty_answer_is_flagged() -> None:
    assert flags(" \n", special_tokens=[]) == ("empty answer",)


def test_endless_repetition_is_flagged() -> None:
    assert flags("and then we go " * 4, special_tokens=[]) == ("repeats itself",)


def test_sound_answer_has_no_flag() -> None:
    assert flags("Ahoy! A lemon is yellow. Fair winds!", special_tokens=["<|im_end|>"]) == ()


def test_ladder_halves_the_micro_batch_and_keeps_the_effective_batch() -> None:
    """002-03"""
    recovery = OomRecovery(effective_batch_size=16, micro_batch_size=8).after_out_of_memory(
        allowed=True
    )
    assert (recovery.micro_batch_size, recovery.accumulation_steps) == (4, 4)


def test_ladder_gives_up_after_three_tries_at_one() -> None:
    """002-04, A9"""
    recovery = OomRecovery(effective_batch_size=4, micro_batch_size=1)
    recovery = recovery.after_out_of_memory(allowed=True).after_out_of_memory(allowed=True)
    with pytest.raises(Fault) as caught:
        recovery.after_out_of_memory(allowed=True)
    assert caught.value.code is FaultCode.RUNTIME_GPU_OOM


def test_ladder_counts_only_tries_in_a_row() -> None:
    recovery = OomRecovery(effective_batch_size=4, micro_batch_size=1)
    for _ in range(10):
        recovery = recovery.after_out_of_memory(allowed=True).after_success()
    assert recovery.tries_at_one == 0


def test_healing_switched_off_fails_at_once() -> None:
    """002-06"""
    with pytest.raises(Fault) as caught:
        OomRecovery(effective_batch_size=8, micro_batch_size=8).after_out_of_memory(allowed=False)
    assert caught.value.code is FaultCode.RUNTIME_GPU_OOM


@pytest.mark.parametrize(
    "text",
    [
        "torch.cuda.OutOfMemoryError: CUDA out of memory.",
        "CUDA out of memory. Tried to allocate 2.00 GiB",
        "CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)",
        "[enforce fail] DefaultCPUAllocator: can't allocate memory",
        "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported",
        "CUDA driver error: out of memory",
    ],
)
def test_out_of_memory_is_known_by_its_words(text: str) -> None:
    """000-13, 002-02"""
    assert means_out_of_memory(text)


@given(rows=st.integers(1, 400), micro=st.integers(1, 16), accumulation=st.integers(1, 8))
def test_epochs_cover_every_row_and_no_step_is_empty(
    rows: int, micro: int, accumulation: int
) -> None:
    plan = a_plan(epochs=3, micro_batch_size=micro, accumulation_steps=accumulation)
    steps = plans.total_steps(plan.batches, row_count=rows)
    assert steps == 3 * math.ceil(rows / (micro * accumulation))
    assert plans.total_epochs(plan.batches, row_count=rows) == 3


def test_max_steps_wins_over_epochs() -> None:
    assert plans.total_steps(a_plan(epochs=3, max_steps=7).batches, row_count=1000) == 7


def test_card_names_run_base_and_numbers() -> None:
    """001-35"""
    plan = a_plan()
    (dataset,) = plan.data.datasets
    losses = LossCurve()
    for step in range(30):
        losses = losses.plus(3.0 - step / 10)
    card = model_card(
        changed(plan, datasets=(replace(dataset, digest="0f" * 32),)),
        loss=0.25,
        losses=losses,
        versions={"torch": "2.13.0"},
    )
    assert "base_model: tunesmith/anvil-3m" in card
    assert "projects/local/runs/r-1" in card
    assert "| Last training loss | 0.2500 |" in card
    assert "| Steps | 30 |" in card
    assert "█" in card
    assert "from 3.0000 to 0.1000" in card
    assert f"| {dataset.name} | {'0f' * 32} |" in card
    assert "| torch | 2.13.0 |" in card
    assert "tunesmith run duplicate projects/local/runs/r-1 --submit" in card


def test_card_of_an_adapter_that_was_never_trained_has_no_curve() -> None:
    """002-23"""
    card = model_card(a_plan(), loss=None, losses=LossCurve(), versions={})
    assert "| Steps | 0 |" in card
    assert "| Training loss |" not in card


@given(losses=st.lists(st.floats(-10, 10), max_size=700), cut=st.integers(0, 700))
@settings(max_examples=30, deadline=None)
def test_a_loss_curve_is_the_same_over_a_checkpoint_and_loses_no_step(
    losses: list[float], cut: int
) -> None:
    whole = LossCurve()
    for index, loss in enumerate(losses):
        if index == cut:
            whole = LossCurve.of(json.loads(json.dumps(whole.document())))
        whole = whole.plus(loss)
    straight = functools.reduce(LossCurve.plus, losses, LossCurve())
    assert whole == straight
    assert len(whole.sums) <= BUCKETS_MAX
    assert sum(whole.sums) == pytest.approx(sum(losses), abs=1e-6)
    assert bool(whole.drawing()) is bool(losses)
    assert len(whole.drawing()) <= PLACES


def test_attempts_of_one_run_have_the_same_essence() -> None:
    """Else a retry would take the checkpoints of its own run for another's."""
    first = a_plan()
    second = changed(
        first,
        attempt=2,
        fencing_epoch=9,
        base=replace(first.base, folder="/elsewhere"),
        datasets=(replace(first.data.datasets[0], path="/elsewhere.jsonl"),),
        work_folder="/other",
        log_path="/r-1.2.log",
        checkpoint_folder="/resume",
    )
    assert plans.essence(first) == plans.essence(second)


@pytest.mark.parametrize(
    "changes", [{"seed": 1}, {"adapter_rank": 5}, {"lr_peak": 1.0}, {"micro_batch_size": 3}]
)
def test_another_configuration_has_another_essence(changes: dict[str, int]) -> None:
    assert plans.essence(a_plan(**changes)) != plans.essence(a_plan())


def due(step: int, *, last: int, seconds: float, **changes: int) -> bool:
    return plans.checkpoint_due(
        a_plan(**changes).checkpoints, step=step, steps=100, last_step=last, seconds_since=seconds
    )


def test_checkpoints_come_every_tenth_of_the_run_but_not_every_second() -> None:
    assert due(20, last=10, seconds=6.0)
    assert not due(20, last=10, seconds=1.0)
    assert not due(19, last=10, seconds=60.0)


def test_the_last_step_is_always_kept() -> None:
    assert due(100, last=99, seconds=0.0)


def test_the_user_decides_how_often() -> None:
    assert due(7, last=0, seconds=0.0, checkpoint_every_steps=7)
    assert not due(8, last=7, seconds=60.0, checkpoint_every_steps=7)
