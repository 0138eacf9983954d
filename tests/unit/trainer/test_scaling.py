"""Loss scaling in fp16: the numbers of torch's scaler, skipped steps, a bitwise resume."""

import math

import pytest
import torch

from lexicon.faults import Fault, FaultCode
from tests.support.training import a_plan, a_state, a_tiny_model, attached, some_rows, torch_model
from trainer.domain.plan import TrainPlan
from trainer.domain.scaling import FACTOR_MIN, GROWTH_STEPS, LossScale
from trainer.training import loop
from trainer.training.compute_precision import ComputePrecision

ROWS = some_rows(16)
STEPS = 6
FP16 = ComputePrecision(device=torch.device("cpu"), weights=torch.float16, autocast=torch.float16)
# So large that the first gradients overflow.
TOO_LARGE = LossScale(factor=2.0**20)


def begin(plan: TrainPlan, scale: LossScale) -> loop.TrainState:
    model = attached(a_tiny_model().to(FP16.weights), plan)
    return a_state(model.train(), plan, compute_precision=FP16, loss_scale=scale)


def take(state: loop.TrainState, plan: TrainPlan, count: int) -> list[loop.StepFigures]:
    return [loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None) for _ in range(count)]


@pytest.mark.parametrize("figures", [[math.nan, 0, 0], [0.0, 0, 0], [1.0, math.inf, 0]])
def test_a_checkpoint_without_a_loss_scale_changes_nothing(figures: list[float]) -> None:
    """002-12: it is refused before any weight is put in its place."""
    plan = a_plan()
    state = a_state(attached(a_tiny_model(), plan), plan, loss_scale=LossScale())
    before = loop.capture(state)
    tensors = {name: torch.ones_like(tensor) for name, tensor in before.items()}
    tensors[loop.LOSS_SCALE_KEY] = torch.tensor(figures, dtype=torch.float64)
    with pytest.raises(Fault) as caught:
        loop.restore(state, tensors)
    assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID
    assert all(torch.equal(each, before[name]) for name, each in loop.capture(state).items())


def test_the_scale_moves_as_torchs_scaler_moves_it() -> None:
    """A gradient that is finite, or not, in an order that shows both ways."""
    rng = torch.Generator().manual_seed(0)
    finite = (torch.rand(2 * GROWTH_STEPS + 200, generator=rng) > 0.0004).tolist()
    weight = torch.nn.Parameter(torch.zeros(1))
    scaler = torch.amp.GradScaler("cpu")
    optimizer = torch.optim.SGD([weight], lr=0.0)
    ours = LossScale()
    for is_finite in finite:
        weight.grad = None
        scaler.scale((weight * (1.0 if is_finite else float("inf"))).sum()).backward()
        scaler.step(optimizer)
        scaler.update()
        ours = ours.after_clean_step() if is_finite else ours.after_overflow()
        assert ours.factor == scaler.get_scale()
    assert ours.skipped_count == finite.count(False) > 0


def test_a_gradient_that_fits_at_no_scale_ends_the_run() -> None:
    with pytest.raises(Fault) as caught:
        LossScale(factor=FACTOR_MIN).after_overflow()
    assert caught.value.code is FaultCode.RUNTIME_LOSS_NOT_FINITE


def test_an_overflow_skips_the_step_and_is_counted() -> None:
    """003-09: fp16 is stable because no weight moves by a gradient that overflowed."""
    plan = a_plan()
    state = begin(plan, TOO_LARGE)
    before = {name: p.detach().clone() for name, p in torch_model(state).trainable.items()}
    (first,) = take(state, plan, 1)
    assert first.skipped
    assert first.grad_norm == 0.0
    assert all(torch.equal(before[name], p) for name, p in torch_model(state).trainable.items())
    assert state.loss_scale == LossScale(factor=2.0**19, skipped_count=1)
    assert state.step == 1
    figures = take(state, plan, STEPS - 1)
    assert [taken.skipped for taken in figures][-1] is False
    assert state.skipped_count == 1 + sum(taken.skipped for taken in figures)
    assert any(not torch.equal(before[name], p) for name, p in torch_model(state).trainable.items())


def test_the_adapter_stays_in_fp32_and_learns() -> None:
    """001-27: mixed precision: the base in fp16, the weights that train in fp32."""
    plan = a_plan()
    state = begin(plan, LossScale(factor=1024.0))
    assert {p.dtype for p in torch_model(state).trainable.values()} == {torch.float32}
    assert torch_model(state).module.get_base_model().dtype is torch.float16
    figures = take(state, plan, STEPS)
    assert figures[-1].loss < figures[0].loss


def test_the_curve_does_not_depend_on_the_scale_where_nothing_overflows() -> None:
    """Powers of two: what is scaled and taken back is the same number."""
    plan = a_plan()
    curves = [
        [figures.loss for figures in take(begin(plan, LossScale(factor=factor)), plan, STEPS)]
        for factor in (256.0, 1024.0)
    ]
    assert curves[0] == pytest.approx(curves[1], abs=2e-3)


def test_a_resumed_run_has_the_same_scale_and_the_same_curve() -> None:
    plan = a_plan()
    whole = begin(plan, TOO_LARGE)
    losses = [figures.loss for figures in take(whole, plan, STEPS)]
    first = begin(plan, TOO_LARGE)
    take(first, plan, 3)
    second = begin(plan, LossScale())
    loop.restore(second, loop.capture(first))
    second.step = first.step
    assert second.loss_scale == first.loss_scale
    assert [figures.loss for figures in take(second, plan, STEPS - 3)] == losses[3:]
    assert second.loss_scale == whole.loss_scale
    assert all(
        torch.equal(p, torch_model(whole).trainable[name])
        for name, p in torch_model(second).trainable.items()
    )


def test_a_checkpoint_without_a_scale_does_not_fit_a_run_in_fp16() -> None:
    plan = a_plan()
    state = begin(plan, LossScale())
    tensors = {k: v for k, v in loop.capture(state).items() if k != loop.LOSS_SCALE_KEY}
    with pytest.raises(Fault) as caught:
        loop.restore(state, tensors)
    assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID
