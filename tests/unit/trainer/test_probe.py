"""The trial of the largest micro-batch: the right one, no trace of it, and the ladder walked."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Method
from tests.support.training import (
    a_plan,
    a_preference_plan,
    a_state,
    a_tiny_model,
    attached,
    some_pairs,
    some_rows,
    some_verdicts,
    torch_model,
)
from trainer.domain.healing import OomRecovery
from trainer.domain.plan import TrainPlan
from trainer.training import loop
from trainer.training.batches import Example, micro_batches, sequences_of, step_indices
from trainer.training.probe import (
    BatchShape,
    batch_shape_of,
    largest_first,
    largest_micro_batch,
    probe,
)
from trainer.training.run import words_of

ROWS = some_rows(21)
STEPS = 5
CPU = torch.device("cpu")


def begin(plan: TrainPlan) -> loop.TrainState:
    return a_state(attached(a_tiny_model(), plan).train(), plan)


def probed(
    state: loop.TrainState,
    plan: TrainPlan,
    rows: tuple[Example, ...] = ROWS,
    proven: tuple[BatchShape, ...] = (),
) -> tuple[BatchShape | None, list[OomRecovery]]:
    rungs: list[OomRecovery] = []
    batch_shape = probe(
        state, rows, steps=range(state.step, STEPS), healed=rungs.append, proven=proven
    )
    return batch_shape, rungs


def test_what_is_tried_is_told_before_it_is_tried() -> None:
    """A run whose longest batch takes minutes does not look as if it hung."""
    plan = a_plan(max_steps=STEPS)
    state, told = begin(plan), list[tuple[str, int]]()
    seen = out_of_memory_beyond(state, 10**6)
    batch_shape = probe(
        state,
        ROWS,
        steps=range(STEPS),
        healed=lambda _: None,
        trying=lambda tried: told.append((words_of(tried), len(seen))),
    )
    assert batch_shape is not None
    assert told == [(f"trying the longest batch: {batch_shape.token_count:,} tokens", 0)]


def out_of_memory_beyond(state: loop.TrainState, tokens: int) -> list[int]:
    """Let the model refuse more than so many tokens at once; how many it was given."""
    backbone = torch_model(state).module.get_base_model().model
    real, seen = backbone.forward, []

    def forward(*args: Any, **named: Any) -> Any:
        seen.append(named["input_ids"].numel())
        if seen[-1] > tokens:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(*args, **named)

    backbone.forward = forward
    return seen


@given(
    count=st.integers(1, 40),
    size=st.integers(1, 6),
    accumulation=st.integers(1, 3),
    begin_step=st.integers(0, 5),
    left=st.integers(1, 12),
    packing=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=40, deadline=None)
def test_no_micro_batch_of_the_run_is_larger_than_the_one_that_is_tried(
    count: int, size: int, accumulation: int, begin_step: int, left: int, packing: bool, seed: int
) -> None:
    """Against the slow and obvious way: every micro-batch of every step made."""
    rows = some_rows(count, seed=seed)
    plan = a_plan(
        micro_batch_size=size, accumulation_steps=accumulation, packing=packing, seed=seed
    )
    chosen = largest_micro_batch(
        rows, plan.batches, size=size, steps=range(begin_step, begin_step + left)
    )
    largest = max(
        batch.computed_token_count
        for step in range(begin_step, begin_step + left)
        for batch in micro_batches(
            [rows[i] for i in step_indices(plan.batches, row_count=count, step=step)],
            micro_batch_size=size,
            packing=packing,
            device=CPU,
        )
    )
    (tried,) = micro_batches(chosen, micro_batch_size=len(chosen), packing=packing, device=CPU)
    assert tried.computed_token_count == largest


def test_a_pair_counts_with_both_its_texts() -> None:
    pairs = some_pairs(8)
    plan = a_preference_plan(Method.DPO, micro_batch_size=1, accumulation_steps=1, packing=True)
    (chosen,) = largest_micro_batch(pairs, plan.batches, size=1, steps=range(8))
    tokens = [sum(len(row.ids) for row in sequences_of([pair])) for pair in pairs]
    assert sum(len(row.ids) for row in chosen.sequences) == max(tokens)


@pytest.mark.parametrize(
    ("plan", "rows"),
    [
        (a_plan(adapter_dropout=0.3), ROWS),
        (a_plan(adapter_dropout=0.3, packing=False, gradient_checkpointing=True), ROWS),
        (a_preference_plan(Method.DPO, adapter_dropout=0.3), some_pairs(12)),
        (a_preference_plan(Method.KTO, adapter_dropout=0.3), some_verdicts(12)),
    ],
    ids=["packed", "padded", "dpo", "kto"],
)
def test_a_run_is_bit_for_bit_the_same_with_and_without_the_trial(
    plan: TrainPlan, rows: tuple[Example, ...]
) -> None:
    """With dropout, so that random numbers matter: curve, weights and moments are equal."""
    results = []
    for tries in (False, True):
        state = begin(plan)
        if tries:
            torch.manual_seed(7)
            before = torch.get_rng_state()
            probed(state, plan, rows)
            assert torch.equal(torch.get_rng_state(), before)
            assert all(p.grad is None for p in torch_model(state).trainable.values())
            assert torch_model(state).module.training
        losses = [
            loop.take_step(state, rows, steps=3, healed=lambda _: None).loss for _ in range(3)
        ]
        results.append((losses, loop.capture(state)))
    (left, tensors), (right, others) = results
    assert left == right
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


def test_the_ladder_is_walked_before_the_first_step_and_losses_stay() -> None:
    """002-03, A8, A9: no step runs out of memory any more, and the curve is the clean one."""
    plan = a_plan(micro_batch_size=8, accumulation_steps=1)
    clean = begin(plan)
    losses = [
        loop.take_step(clean, ROWS, steps=STEPS, healed=lambda _: None).loss for _ in range(STEPS)
    ]
    state = begin(plan)
    out_of_memory_beyond(state, tokens=60)
    _, rungs = probed(state, plan)
    assert [rung.micro_batch_size for rung in rungs] == [4, 2]
    assert state.recovery.effective_batch_size == plan.batches.effective_batch_size

    def never(recovery: OomRecovery) -> None:
        raise AssertionError(f"a step was healed: {recovery}")

    healed = [loop.take_step(state, ROWS, steps=STEPS, healed=never).loss for _ in range(STEPS)]
    assert healed == pytest.approx(losses, abs=1e-6)


def test_memory_that_is_never_enough_ends_the_run_before_it_costs_anything() -> None:
    """002-04"""
    plan = a_plan()
    state = begin(plan)
    out_of_memory_beyond(state, tokens=0)
    with pytest.raises(Fault) as caught:
        probed(state, plan)
    assert caught.value.code is FaultCode.RUNTIME_GPU_OOM
    assert state.step == 0


def test_healing_that_is_switched_off_is_switched_off_here_as_well() -> None:
    """002-06"""
    plan = a_plan(oom_recovery=False)
    state = begin(plan)
    seen = out_of_memory_beyond(state, tokens=0)
    with pytest.raises(Fault, match="switched off"):
        probed(state, plan)
    assert len(seen) == 1


def test_another_error_of_the_device_is_told_before_the_clock_runs() -> None:
    """004-03"""
    state = begin(a_plan())
    torch_model(state).module.get_base_model().model.forward = lambda **_: (_ for _ in ()).throw(
        RuntimeError("shape mismatch")
    )
    with pytest.raises(RuntimeError, match="shape mismatch"):
        probed(state, a_plan())
    assert all(p.grad is None for p in torch_model(state).trainable.values())


def test_what_was_proven_is_not_tried_again_and_what_is_larger_is() -> None:
    plan = a_plan()
    state = begin(plan)
    batch_shape, _ = probed(state, plan)
    assert batch_shape is not None
    seen = out_of_memory_beyond(state, tokens=10**9)
    other = BatchShape(token_count=10**6, longest_count=1, label_count=1)
    assert probed(state, plan, proven=(other, batch_shape)) == (None, [])
    assert not seen
    smaller = replace(batch_shape, label_count=batch_shape.label_count - 1)
    assert probed(state, plan, proven=(other, smaller))[0] == batch_shape
    assert seen == [batch_shape.token_count]


def test_a_run_that_was_finished_tries_nothing() -> None:
    plan = a_plan()
    state = begin(plan)
    state.step = STEPS
    assert probed(state, plan) == (None, [])


def test_a_hundred_thousand_steps_are_looked_through_in_no_time() -> None:
    """The search is bounded by passes, not by steps."""
    plan = a_plan(max_steps=100_000)
    assert largest_micro_batch(ROWS, plan.batches, size=4, steps=range(100_000))


def test_of_several_runs_the_one_with_the_largest_batch_is_tried_first() -> None:
    """Most others then need no trial of their own; a run that is over comes last."""
    plan = a_plan()
    over = (ROWS, range(0))
    parts = [over, *((ROWS[begin : begin + 5], range(STEPS)) for begin in (0, 5, 10, 15))]
    ordered = largest_first(parts, plan.batches, size=4)
    batches = [
        largest_micro_batch(rows, plan.batches, size=4, steps=steps) for rows, steps in ordered
    ]
    assert ordered[-1] is over
    assert batches.pop() == ()
    counts = [batch_shape_of(batch, packing=True).token_count for batch in batches]
    assert counts == sorted(counts, reverse=True)
    assert len(set(counts)) > 1
