"""The loop on a tiny model: losses, packing, healing, checkpoints, resume."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn import functional

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Precision
from tests.support.training import (
    a_plan,
    a_state,
    a_tiny_model,
    attached,
    changed,
    some_rows,
    torch_model,
)
from trainer.domain.healing import OomRecovery
from trainer.domain.plan import TrainPlan, total_steps
from trainer.training import checkpoint, loop, peft_library
from trainer.training.adapter import require_changed
from trainer.training.batches import (
    IGNORED_LABEL,
    Row,
    micro_batches,
    packed,
    padded,
    step_indices,
)
from trainer.training.compute_precision import compute_precision_for
from trainer.training.token_loss import summed_loss

ROWS = some_rows(20)
STEPS = 8
CPU = torch.device("cpu")


def begin(plan: TrainPlan) -> loop.TrainState:
    model = attached(a_tiny_model(), plan)
    model.train()
    return a_state(model, plan)


def take(state: loop.TrainState, plan: TrainPlan, count: int) -> list[float]:
    return [
        loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None).loss for _ in range(count)
    ]


def weights(state: loop.TrainState) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in torch_model(state).trainable.items()}


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


def reference_loss(model: Any, rows: tuple[Row, ...]) -> torch.Tensor:
    """One example at a time, all logits: slow and obvious."""
    total = torch.zeros(())
    for row in rows:
        logits_TV = model(input_ids=torch.tensor(row.ids[None].astype("int64"))).logits[0]
        labels_T = torch.tensor(row.labels.astype("int64"))
        total = total + functional.cross_entropy(
            logits_TV[:-1], labels_T[1:], ignore_index=IGNORED_LABEL, reduction="sum"
        )
    return total


@pytest.mark.parametrize("layout", [packed, padded])
def test_loss_of_a_micro_batch_is_the_sum_over_its_examples(layout: Callable[..., Any]) -> None:
    """Packed examples do not see each other, and padding counts nothing."""
    model = a_tiny_model().eval()
    with torch.no_grad():
        ours = summed_loss(model, layout(ROWS[:5], CPU))
        assert ours.item() == pytest.approx(reference_loss(model, ROWS[:5]).item(), rel=1e-5)


def test_packed_batch_has_no_padding() -> None:
    batch = packed(ROWS, CPU)
    assert batch.computed_token_count == batch.token_count == sum(len(row.ids) for row in ROWS)


def test_padded_rows_share_a_batch_with_rows_of_like_length() -> None:
    """001-25: the same examples in the same step, with less to fill up, the longest first."""
    rows = some_rows(64, seed=3)
    batches = list(micro_batches(rows, micro_batch_size=4, packing=False, device=CPU))
    computed = [batch.computed_token_count for batch in batches]
    as_drawn = [padded(rows[i : i + 4], CPU).computed_token_count for i in range(0, len(rows), 4)]
    assert sorted(id(row) for batch in batches for row in batch.examples) == sorted(map(id, rows))
    assert computed == sorted(computed, reverse=True)
    assert sum(computed) < sum(as_drawn)
    packs = micro_batches(rows, micro_batch_size=4, packing=True, device=CPU)
    assert [row for pack in packs for row in pack.examples] == list(rows)


def test_every_epoch_shows_every_row_once_in_another_order() -> None:
    """001-25"""
    plan = a_plan(epochs=2)
    orders = [
        [int(i) for step in steps for i in step_indices(plan.batches, row_count=20, step=step)]
        for steps in (range(3), range(3, 6))
    ]
    assert [sorted(order) for order in orders] == [list(range(20))] * 2
    assert orders[0] != orders[1]


def test_only_the_adapter_requires_a_gradient() -> None:
    """001-26"""
    state = begin(a_plan())
    assert all("lora_" in name for name in torch_model(state).trainable)


def test_base_weights_do_not_move() -> None:
    """001-26"""
    plan = a_plan()
    model = a_tiny_model()
    before = {name: p.clone() for name, p in model.named_parameters()}
    adapted = attached(model, plan)
    take(a_state(adapted.train(), plan), plan, 3)
    after = dict(peft_library.detach(adapted).named_parameters())
    assert same(before, {name: after[name].detach() for name in before})


def test_all_linear_means_all_whatever_else_is_named() -> None:
    """001-26: it is priced so, and a part of it must not be trained in its place."""
    named = begin(a_plan(adapter_target_modules=("q_proj", "all-linear")))
    assert torch_model(named).trainable.keys() == torch_model(begin(a_plan())).trainable.keys()


def test_unknown_target_module_is_named() -> None:
    with pytest.raises(Fault) as caught:
        begin(a_plan(adapter_target_modules=("no_such_proj",)))
    assert caught.value.code is FaultCode.CONFIG_TARGET_UNKNOWN


@pytest.mark.parametrize("changes", [{}, {"adapter_use_rslora": True}, {"adapter_use_dora": True}])
def test_training_lowers_the_loss_and_changes_the_adapter(changes: dict[str, Any]) -> None:
    """002-22"""
    plan = a_plan(**changes)
    state = begin(plan)
    losses = take(state, plan, STEPS)
    assert losses[-1] < losses[0]
    require_changed(state.model)


def test_gradient_checkpointing_changes_the_memory_and_not_the_curve() -> None:
    """001-27: gradient checkpointing is what the plan says."""
    curves = []
    for is_on in (False, True):
        plan = a_plan(gradient_checkpointing=is_on)
        state = begin(plan)
        assert bool(getattr(torch_model(state).module, "is_gradient_checkpointing", False)) is is_on
        curves.append(take(state, plan, 3))
    assert curves[0] == pytest.approx(curves[1], rel=1e-6)


@pytest.mark.parametrize(
    ("precision", "device", "weights_", "autocast"),
    [
        (Precision.BF16, "cpu", torch.bfloat16, torch.bfloat16),
        (Precision.FP16, "cuda", torch.float16, torch.float16),
        (Precision.FP32, "cuda", torch.float32, None),
    ],
)
def test_mixed_precision_is_what_the_plan_says(
    precision: Precision, device: str, weights_: torch.dtype, autocast: torch.dtype | None
) -> None:
    """001-27: mixed precision."""
    found = compute_precision_for(precision, torch.device(device), width=4096)
    assert (found.weights, found.autocast) == (weights_, autocast)


def test_a_mixed_precision_step_keeps_the_adapter_whole_and_learns() -> None:
    """001-27: the forward pass is in bf16, the adapter and its update are in fp32."""
    plan = a_plan(precision=Precision.BF16)
    bf16 = compute_precision_for(plan.compute.precision, CPU, width=4096)
    model = attached(a_tiny_model().to(bf16.weights), plan)
    model.train()
    state = a_state(model, plan, compute_precision=bf16)
    assert {p.dtype for p in torch_model(state).trainable.values()} == {torch.float32}
    losses = [
        loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None).loss for _ in range(STEPS)
    ]
    assert losses[-1] < losses[0]


@pytest.mark.parametrize(("epochs", "max_steps", "steps"), [(2, 0, 6), (1, 0, 3), (9, 4, 4)])
def test_a_run_takes_the_configured_steps_or_epochs(
    epochs: int, max_steps: int, steps: int
) -> None:
    """001-27: 20 rows in batches of 8 are 3 steps an epoch; a step budget wins."""
    plan = a_plan(epochs=epochs, max_steps=max_steps)
    assert total_steps(plan.batches, row_count=len(ROWS)) == steps


def test_untrained_adapter_is_refused() -> None:
    """002-22"""
    with pytest.raises(Fault) as caught:
        require_changed(begin(a_plan()).model)
    assert caught.value.code is FaultCode.RUNTIME_ADAPTER_UNCHANGED


@pytest.mark.parametrize("killed_after", [1, 3, STEPS - 1])
def test_resumed_run_is_bitwise_the_same_run(tmp_path: Path, killed_after: int) -> None:
    """With dropout, so that random numbers matter; tests/chaos/resume.py kills for real."""
    plan = a_plan(adapter_dropout=0.2)
    whole = begin(plan)
    losses = take(whole, plan, STEPS)
    first = begin(plan)
    take(first, plan, killed_after)
    progress = checkpoint.TrainingProgress(
        run=plan.attempt.run, attempt=1, fencing_epoch=1, step=first.step, fingerprint="f",
        micro_batch_size=4, trained_token_count=first.trained_token_count,
    )  # fmt: skip
    folder = checkpoint.write(tmp_path, progress, loop.capture(first))
    second = begin(changed(plan, attempt=2))
    read, tensors = checkpoint.read(folder, run=plan.attempt.run, fingerprint="f")
    loop.restore(second, tensors)
    second.step = read.step
    assert take(second, plan, STEPS - killed_after) == losses[killed_after:]
    assert same(weights(second), weights(whole))


class Injected:
    """Makes the n-th call of a function run out of memory."""

    def __init__(self, real: Callable[..., Any], *, at: set[int]) -> None:
        self.real, self.at, self.calls = real, at, 0

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls in self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.real(*args, **named)


@pytest.mark.parametrize("at", [1, 2, 5])
def test_out_of_memory_in_the_forward_pass_changes_nothing(at: int) -> None:
    """002-03, A8: the same effective batch, the same curve."""
    plan = a_plan()
    clean = take(begin(plan), plan, STEPS)
    state = begin(plan)
    backbone = torch_model(state).module.get_base_model().model
    backbone.forward = Injected(backbone.forward, at={at})
    assert take(state, plan, STEPS) == pytest.approx(clean, abs=1e-6)
    assert state.recovery.micro_batch_size == plan.batches.micro_batch_size // 2
    assert torch_model(state).module.training


def test_out_of_memory_in_the_update_changes_nothing() -> None:
    plan = a_plan()
    clean = take(begin(plan), plan, STEPS)
    state = begin(plan)
    optimizer = torch_model(state).updater.optimizer
    optimizer.step = Injected(optimizer.step, at={3})  # type: ignore[method-assign]
    assert take(state, plan, STEPS) == pytest.approx(clean, abs=1e-6)


def test_out_of_memory_for_ever_ends_with_its_code() -> None:
    """002-04, A8"""
    plan = a_plan()
    state = begin(plan)
    backbone = torch_model(state).module.get_base_model().model
    backbone.forward = Injected(backbone.forward, at=set(range(1, 100)))
    rungs: list[OomRecovery] = []
    with pytest.raises(Fault) as caught:
        loop.take_step(state, ROWS, steps=STEPS, healed=rungs.append)
    assert caught.value.code is FaultCode.RUNTIME_GPU_OOM
    assert [rung.micro_batch_size for rung in rungs] == [2, 1, 1, 1]


def test_another_error_is_not_taken_for_out_of_memory() -> None:
    state = begin(a_plan())
    torch_model(state).module.get_base_model().model.forward = lambda **_: (_ for _ in ()).throw(
        RuntimeError("shape mismatch")
    )
    with pytest.raises(RuntimeError, match="shape mismatch"):
        take(state, a_plan(), 1)


def test_train_mode_is_back_after_a_failed_validation() -> None:
    """002-21"""
    state = begin(a_plan())
    torch_model(state).module.get_base_model().model.forward = lambda **_: (_ for _ in ()).throw(
        RuntimeError("broken")
    )
    with pytest.raises(RuntimeError, match="broken"):
        loop.mean_loss(state, ROWS)
    assert torch_model(state).module.training


def test_loss_that_is_not_finite_ends_the_run() -> None:
    plan = a_plan()
    state = begin(plan)
    next(iter(torch_model(state).trainable.values())).data.fill_(float("nan"))
    with pytest.raises(Fault) as caught:
        take(state, plan, 1)
    assert caught.value.code is FaultCode.RUNTIME_LOSS_NOT_FINITE


@pytest.mark.parametrize("seed", [0, 2**63 - 1])
def test_any_seed_of_the_contract_trains(seed: int) -> None:
    plan = a_plan(seed=seed)
    assert take(begin(plan), plan, 2) == take(begin(plan), plan, 2)
