"""The variants of AdamW: they learn, resume bit for bit, and update whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lexicon.faults import Fault, FaultCode
from tests.support.training import FP32, a_plan, a_tiny_model, some_rows
from trainer.domain.plan import Optimizer, TrainPlan
from trainer.training import loop, peft_rail

ROWS = some_rows(16)
STEPS = 4
# Large enough that some of the adapter's weights get moments of 8 bits: 128 x 32 elements.
RANK = 128
VARIANTS = list(Optimizer)


def plan_of(optimizer: Optimizer) -> TrainPlan:
    return a_plan(optimizer=optimizer, adapter_rank=RANK, weight_decay=0.01)


def begin(plan: TrainPlan) -> loop.TrainState:
    return loop.begin(peft_rail.attach(a_tiny_model(), plan).train(), plan)


def take(state: loop.TrainState, plan: TrainPlan, count: int) -> list[float]:
    return [
        loop.take_step(state, ROWS, plan, FP32, steps=STEPS, healed=lambda _: None).loss
        for _ in range(count)
    ]


def everything(state: loop.TrainState) -> dict[str, torch.Tensor]:
    return loop.capture(state)


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize("optimizer", VARIANTS)
def test_every_variant_lowers_the_loss(optimizer: Optimizer) -> None:
    """003-09: AdamW of torch is the default; the others are there when asked for."""
    plan = plan_of(optimizer)
    losses = take(begin(plan), plan, STEPS)
    assert losses[-1] < losses[0]


@pytest.mark.parametrize("optimizer", VARIANTS)
def test_every_variant_resumes_bit_for_bit(optimizer: Optimizer) -> None:
    plan = plan_of(optimizer)
    whole = begin(plan)
    losses = take(whole, plan, STEPS)
    first = begin(plan)
    take(first, plan, 2)
    second = begin(plan)
    loop.restore(second, loop.capture(first))
    second.step = first.step
    assert take(second, plan, STEPS - 2) == losses[2:]
    assert same(everything(second), everything(whole))


def test_moments_of_eight_bits_are_in_the_checkpoint_and_its_tables_are_not() -> None:
    plan = plan_of(Optimizer.ADAMW_8BIT)
    state = begin(plan)
    take(state, plan, 1)
    kinds = {name.split("/", maxsplit=1)[0]: t.dtype for name, t in loop.capture(state).items()}
    assert kinds["absmax1"] is torch.float32
    assert "qmap1" not in kinds
    assert any(
        tensor.dtype is torch.uint8 and bool(tensor.any())
        for name, tensor in loop.capture(state).items()
        if name.startswith("state1/")
    )


def test_a_checkpoint_of_another_optimizer_is_refused() -> None:
    taken = loop.capture(begin(plan_of(Optimizer.ADAMW_TORCH)))
    with pytest.raises(Fault) as caught:
        loop.restore(begin(plan_of(Optimizer.ADAMW_8BIT)), taken)
    assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID


class _OutOfMemoryAt(TorchDispatchMode):
    """Fails the n-th tensor operation that may need memory."""

    def __init__(self, at: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at, self.count = at, 0

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # Copying into memory that is there needs none; the profiler's marks are no operations.
        makes = function.namespace in {"aten", "bitsandbytes"}
        if makes and function is not torch.ops.aten.copy_.default:
            self.count += 1
            if self.count == self.at:
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **(kwargs or {}))


@contextmanager
def running_out(at: int) -> Iterator[_OutOfMemoryAt]:
    """Memory runs out at the n-th operation within."""
    mode = _OutOfMemoryAt(at)
    with mode:
        yield mode


def with_gradients(plan: TrainPlan) -> loop.TrainState:
    """A state before its second update."""
    state = begin(plan)
    take(state, plan, 1)
    rng = torch.Generator().manual_seed(1)
    for parameter in state.trainable.values():
        parameter.grad = torch.randn(parameter.shape, generator=rng)
    return state


@pytest.mark.parametrize("optimizer", VARIANTS)
def test_out_of_memory_anywhere_in_an_update_changes_nothing(optimizer: Optimizer) -> None:
    """002-03: bitsandbytes stops between two weights; it is undone, and can be made again."""
    plan = plan_of(optimizer)
    clean = with_gradients(plan)
    with running_out(at=10**9) as mode:
        loop.update(clean, lr=1e-2)
    for at in sorted({1, mode.count // 3, mode.count // 2, mode.count}):
        state = with_gradients(plan)
        before = everything(state)
        with pytest.raises(torch.OutOfMemoryError), running_out(at):
            loop.update(state, lr=1e-2)
        assert same(everything(state), before)
        loop.update(state, lr=1e-2)
        assert same(everything(state), everything(clean))


def test_eight_bits_follow_the_path_of_a_plain_loop() -> None:
    """The update is bitsandbytes' own: same gradients, same weights."""
    plan = plan_of(Optimizer.ADAMW_8BIT)
    state = begin(plan)
    names = list(state.trainable)
    theirs = {n: torch.nn.Parameter(p.detach().clone()) for n, p in state.trainable.items()}
    kinds: Any = bitsandbytes.optim
    optimizer = kinds.AdamW8bit(list(theirs.values()), weight_decay=0.01)
    real = state.optimizer.step

    def step() -> None:
        for name in names:
            gradient = state.trainable[name].grad
            assert gradient is not None
            theirs[name].grad = gradient.clone()
        optimizer.param_groups[0]["lr"] = state.optimizer.param_groups[0]["lr"]
        optimizer.step()
        real()

    state.optimizer.step = step  # type: ignore[method-assign,assignment]
    take(state, plan, STEPS)
    assert all(torch.equal(theirs[name], state.trainable[name]) for name in names)
