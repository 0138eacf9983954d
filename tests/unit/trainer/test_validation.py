"""Validation: held-out rows are never trained on, the best weights win, patience ends a run."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from corpus.packing import holdout_split
from lexicon.faults import FaultCode
from tests.support.training import a_plan, a_state, a_tiny_model, attached, some_rows, torch_model
from trainer.domain.plan import ValidationPlan, validation_interval
from trainer.training import checkpoint, loop
from trainer.training.memory import is_out_of_memory
from trainer.training.validation import BEST_PREFIX, Validation

EVERY_STEP = ValidationPlan(
    holdout_ratio=0.1, dataset=None, every_steps=1, early_stop_patience=0, early_stop_min_delta=0.0
)
ROWS = some_rows(12)


def a_validation(**changes: object) -> Validation:
    plan = replace(EVERY_STEP, **changes)  # type: ignore[arg-type]
    return Validation(plan=plan, rows=some_rows(4, seed=9))


def begin() -> loop.TrainState:
    return a_state(attached(a_tiny_model(), a_plan()).train(), a_plan())


def told(_: FaultCode, __: str) -> None:
    pass


@given(count=st.integers(2, 5000), ratio=st.floats(0.001, 0.5), seed=st.integers(0, 2**31))
@settings(max_examples=50)
def test_no_row_is_both_trained_on_and_held_out(count: int, ratio: float, seed: int) -> None:
    """002-18"""
    train, held = holdout_split(count, ratio=ratio, seed=seed)
    assert not set(train) & set(held)
    assert sorted([*train, *held]) == list(range(count))


def test_without_a_plan_nothing_is_validated() -> None:
    """002-19"""
    validation = Validation(plan=None, rows=ROWS)
    validation.after_step(begin(), steps=1, warn=told)
    assert validation.latest_loss is None


def test_interval_defaults_to_a_tenth_of_the_run() -> None:
    assert validation_interval(replace(EVERY_STEP, every_steps=0), steps=100) == 10


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_a_loss_that_is_not_a_number_is_never_the_best(loss: float) -> None:
    """The weights of a validation that overflowed must not be what the user gets."""
    state, validation = begin(), a_validation(early_stop_patience=2)
    validation.judge(loss, state)
    assert not validation.best
    validation.judge(2.0, state)
    validation.judge(loss, state)
    assert (validation.best_loss, validation.without_gain_count) == (2.0, 1)
    assert validation.promote_best(state)


def losses_in_turn(monkeypatch: pytest.MonkeyPatch, *losses: float) -> None:
    given_losses = iter(losses)
    monkeypatch.setattr(loop, "mean_loss", lambda *_, **__: next(given_losses))


def test_a_validation_loss_that_is_not_a_number_is_told_once_and_counts_as_no_gain(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """002-21: else a run would seem to validate, and never improve."""
    losses_in_turn(monkeypatch, 1.0, math.nan, math.nan)
    validation, state, codes = a_validation(early_stop_patience=2), begin(), list[FaultCode]()
    for step in range(1, 4):
        state.step = step
        validation.after_step(state, steps=10, warn=lambda code, _: codes.append(code))
    assert codes == [FaultCode.RUNTIME_LOSS_NOT_FINITE]
    assert (validation.best_loss, validation.wants_stop) == (1.0, True)


def test_run_stops_when_patience_is_over(monkeypatch: pytest.MonkeyPatch) -> None:
    losses_in_turn(monkeypatch, 1.0, 0.8, 0.9, 0.85)
    validation, state, stops = a_validation(early_stop_patience=2), begin(), []
    for step in range(1, 5):
        state.step = step
        validation.after_step(state, steps=10, warn=told)
        stops.append(validation.wants_stop)
    assert stops == [False, False, False, True]


def test_a_gain_below_the_smallest_delta_is_no_gain(monkeypatch: pytest.MonkeyPatch) -> None:
    losses_in_turn(monkeypatch, 1.0, 0.99)
    validation, state = a_validation(early_stop_patience=1, early_stop_min_delta=0.05), begin()
    for step in (1, 2):
        state.step = step
        validation.after_step(state, steps=10, warn=told)
    assert validation.wants_stop


def test_best_weights_are_promoted(monkeypatch: pytest.MonkeyPatch) -> None:
    losses_in_turn(monkeypatch, 1.0, 2.0)
    validation, state = a_validation(), begin()
    name, weight = next(iter(torch_model(state).trainable.items()))
    best = weight.detach().clone()
    validation.after_step(state, steps=10, warn=told)
    with torch.no_grad():
        weight.add_(1.0)
    validation.after_step(state, steps=10, warn=told)
    assert validation.promote_best(state)
    assert torch.equal(torch_model(state).trainable[name], best)


def test_latest_weights_stay_when_they_are_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    losses_in_turn(monkeypatch, 1.0)
    validation, state = a_validation(), begin()
    validation.after_step(state, steps=10, warn=told)
    assert not validation.promote_best(state)


def test_a_checkpoint_remembers_the_best(monkeypatch: pytest.MonkeyPatch) -> None:
    losses_in_turn(monkeypatch, 1.0, 2.0)
    first, state = a_validation(early_stop_patience=2), begin()
    for _ in range(2):
        first.after_step(state, steps=10, warn=told)
    progress = checkpoint.TrainingProgress(
        run="r", attempt=1, fencing_epoch=1, step=2, fingerprint="f", micro_batch_size=1,
        trained_token_count=1, latest_validation_loss=first.latest_loss,
        best_validation_loss=first.best_loss, validations_without_gain=first.without_gain_count,
    )  # fmt: skip
    second = a_validation(early_stop_patience=2)
    second.restore(progress, first.tensors())
    assert (second.best_loss, second.without_gain_count) == (1.0, 1)
    assert all(name.startswith(BEST_PREFIX) for name in second.tensors())


def test_validation_without_memory_is_told_and_training_goes_on() -> None:
    """002-21"""
    state, warnings = begin(), list[FaultCode]()

    def out_of_memory(**_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    torch_model(state).module.get_base_model().model.forward = out_of_memory
    a_validation().after_step(state, steps=10, warn=lambda code, _: warnings.append(code))
    assert warnings == [FaultCode.RUNTIME_GPU_OOM]
    assert torch_model(state).module.training
    assert is_out_of_memory(torch.OutOfMemoryError())
