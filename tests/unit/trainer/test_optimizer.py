"""The variants of AdamW: they learn, resume bit for bit, and update whole or not at all."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import bitsandbytes
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Optimizer
from tests.support.training import a_plan, a_state, a_tiny_model, attached, some_rows, torch_model
from trainer.domain.plan import TrainPlan
from trainer.training import loop

ROWS = some_rows(16)
STEPS = 4
# Large enough that some of the adapter's weights get moments of 8 bits: 128 x 32 elements.
RANK = 128
VARIANTS = list(Optimizer)
# Copying into memory that is there, and another look at it.
NEEDS_NO_MEMORY = (torch.ops.aten.copy_.default, torch.ops.aten.detach.default)
EIGHT_BIT = [Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT]


def plan_of(optimizer: Optimizer) -> TrainPlan:
    return a_plan(optimizer=optimizer, adapter_rank=RANK, weight_decay=0.01)


def begin(plan: TrainPlan) -> loop.TrainState:
    return a_state(attached(a_tiny_model(), plan).train(), plan)


def take(state: loop.TrainState, plan: TrainPlan, count: int) -> list[float]:
    return [
        loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None).loss for _ in range(count)
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

    def __init__(self, at: int, *, for_ever: bool) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.at, self.count, self.for_ever = at, 0, for_ever

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # The profiler's marks are no operations.
        if function.namespace in {"aten", "bitsandbytes"} and function not in NEEDS_NO_MEMORY:
            self.count += 1
            if self.count == self.at or (self.for_ever and self.count > self.at):
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **(kwargs or {}))


@contextmanager
def running_out(at: int, *, for_ever: bool = False) -> Iterator[_OutOfMemoryAt]:
    """Memory runs out at the n-th operation within, once or from there on."""
    mode = _OutOfMemoryAt(at, for_ever=for_ever)
    with mode:
        yield mode


def with_gradients(plan: TrainPlan) -> loop.TrainState:
    """A state before its second update."""
    state = begin(plan)
    take(state, plan, 1)
    rng = torch.Generator().manual_seed(1)
    for parameter in torch_model(state).trainable.values():
        parameter.grad = torch.randn(parameter.shape, generator=rng)
    return state


def operations(plan: TrainPlan) -> tuple[int, loop.TrainState]:
    """How many operations an update has, and the state after one in which nothing failed."""
    state = with_gradients(plan)
    with running_out(at=10**9) as mode:
        loop.update(state, lr=1e-2)
    return mode.count, state


def test_out_of_memory_anywhere_in_a_fused_update_changes_nothing() -> None:
    """002-03"""
    plan = plan_of(Optimizer.ADAMW_TORCH)
    count, clean = operations(plan)
    for at in sorted({1, count // 3, count // 2, count}):
        state = with_gradients(plan)
        before = everything(state)
        with pytest.raises(torch.OutOfMemoryError), running_out(at):
            loop.update(state, lr=1e-2)
        assert same(everything(state), before)
        loop.update(state, lr=1e-2)
        assert same(everything(state), everything(clean))


@pytest.mark.parametrize("optimizer", EIGHT_BIT)
def test_out_of_memory_between_two_weights_is_healed_there(optimizer: Optimizer) -> None:
    """002-03: the weights before it have moved already, so the update goes on where it stopped."""
    plan = plan_of(optimizer)
    count, clean = operations(plan)
    for at in sorted({1, count // 3, count // 2, count}):
        state = with_gradients(plan)
        with running_out(at) as mode:
            loop.update(state, lr=1e-2)
        assert mode.count > at
        assert same(everything(state), everything(clean))


@pytest.mark.parametrize("optimizer", EIGHT_BIT)
def test_an_update_that_cannot_be_finished_ends_the_run(optimizer: Optimizer) -> None:
    """002-04: a half-made step is never trained on."""
    state = with_gradients(plan_of(optimizer))
    with pytest.raises(Fault) as caught, running_out(20, for_ever=True):
        loop.update(state, lr=1e-2)
    assert caught.value.code is FaultCode.RUNTIME_GPU_OOM


def test_what_lies_ready_for_healing_is_no_second_optimizer() -> None:
    """Room for one weight of each shape, however many layers there are."""
    state = begin(plan_of(Optimizer.ADAMW_8BIT))
    spares = torch_model(state).updater.spares
    assert spares is not None
    whole = sum(live.nbytes for _, live in torch_model(state).updater.tensors())
    assert sum(spare.nbytes for spare in spares.values()) < whole / 2


def test_eight_bits_follow_the_path_of_a_plain_loop() -> None:
    """The update is bitsandbytes' own: same gradients, same weights."""
    plan = plan_of(Optimizer.ADAMW_8BIT)
    state = begin(plan)
    theirs = {
        n: torch.nn.Parameter(p.detach().clone()) for n, p in torch_model(state).trainable.items()
    }
    kinds: Any = bitsandbytes.optim
    optimizer = kinds.AdamW8bit(list(theirs.values()), weight_decay=0.01)
    rng = torch.Generator().manual_seed(2)
    for step in range(STEPS):
        for name, parameter in torch_model(state).trainable.items():
            parameter.grad = torch.randn(parameter.shape, generator=rng)
            theirs[name].grad = parameter.grad.clone()
        optimizer.param_groups[0]["lr"] = 1e-2
        optimizer.step()
        state.step = step
        loop.update(state, lr=1e-2)
    assert all(torch.equal(theirs[name], p) for name, p in torch_model(state).trainable.items())


@pytest.mark.parametrize("optimizer", VARIANTS)
def test_a_weight_without_a_gradient_stays_and_the_others_move(optimizer: Optimizer) -> None:
    """A layer that no token of a step ran through, such as an idle expert's."""
    state = begin(plan_of(optimizer))
    idle, *others = torch_model(state).trainable.values()
    for parameter in others:
        parameter.grad = torch.ones_like(parameter)
    before = [parameter.detach().clone() for parameter in (idle, *others)]
    loop.update(state, lr=1e-2)
    assert torch.equal(idle, before[0])
    assert not any(torch.equal(p, old) for p, old in zip(others, before[1:], strict=True))
