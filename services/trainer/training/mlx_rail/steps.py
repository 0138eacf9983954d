"""Optimizer steps in MLX: the same rows, order, loss and schedule as `trainer.training.loop`.

Shapes: B rows, T tokens, N trained tokens, V vocabulary.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map

from lexicon.faults import Fault, FaultCode
from trainer.domain.healing import Ladder
from trainer.domain.loss_curve import LossCurve
from trainer.domain.mlx import to_peft
from trainer.domain.plan import BatchPlan, OptimisationPlan
from trainer.domain.schedule import learning_rate
from trainer.training.batches import Example, MicroBatch, micro_batches, sequences_of, step_indices
from trainer.training.loop import (
    SEED_COUNT,
    STEP_SEED_STRIDE,
    StepFigures,
    require_finite,
)
from trainer.training.memory import is_out_of_memory
from trainer.training.mlx_rail.model import Adapted, as_tree, logits_at
from trainer.training.optimizer import ADAM_BETAS, ADAM_EPSILON

CPU = torch.device("cpu")
# Names of AdamW's two moments in a checkpoint, and in MLX's optimizer.
MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}
WEIGHT = "weight"


@dataclass(slots=True, kw_only=True)
class MlxState:
    """Everything that changes while a run trains.

    Attributes:
        batches, optimisation: the parts of the plan that it trains by; they stay.
    """

    adapted: Adapted
    optimizer: Any
    ladder: Ladder
    batches: BatchPlan
    optimisation: OptimisationPlan
    step: int = 0
    trained_token_count: int = 0
    losses: LossCurve = field(default_factory=LossCurve)


def begin(adapted: Adapted, batches: BatchPlan, optimisation: OptimisationPlan) -> MlxState:
    """The state before the first step."""
    optimizer = optimizers.AdamW(
        learning_rate=optimisation.lr_peak,
        betas=list(ADAM_BETAS),
        eps=ADAM_EPSILON,
        weight_decay=optimisation.weight_decay,
        # Without it MLX takes first steps that are many times too long.
        bias_correction=True,
    )
    optimizer.init(adapted.model.trainable_parameters())
    ladder = Ladder(
        effective_batch_size=batches.effective_batch_size, micro_batch_size=batches.micro_batch_size
    )
    return MlxState(
        adapted=adapted,
        optimizer=optimizer,
        ladder=ladder,
        batches=batches,
        optimisation=optimisation,
    )


def take_step(
    state: MlxState,
    rows: Sequence[Example],
    *,
    steps: int,
    healed: Callable[[Ladder], None],
) -> StepFigures:
    """Take optimizer step `state.step`, as often as memory makes necessary.

    Raises:
        Fault: RUNTIME_GPU_OOM when healing is exhausted, RUNTIME_LOSS_NOT_FINITE.
    """
    batches = state.batches
    chosen = [rows[i] for i in step_indices(batches, row_count=len(rows), step=state.step)]
    while True:
        try:
            figures = _try_step(state, chosen, steps=steps)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            state.ladder = state.ladder.after_success()
            return figures
        mx.clear_cache()
        state.ladder = state.ladder.after_out_of_memory(allowed=batches.oom_recovery)
        healed(state.ladder)


def mean_loss(state: MlxState, rows: Sequence[Example]) -> float:
    """Mean loss over all trained tokens of `rows`; train mode is back whatever happens.

    Raises:
        Fault: RUNTIME_GPU_OOM when there is no memory for a single row.
    """
    ladder, loss_sum, done_count = state.ladder, 0.0, 0
    state.adapted.model.eval()
    try:
        while done_count < len(rows):
            portion = rows[done_count : done_count + ladder.micro_batch_size]
            try:
                loss_sum += sum(
                    _summed_loss(state.adapted, *_arrays(batch)).item()
                    for batch in _batches(portion, ladder)
                )
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                done_count += len(portion)
                continue
            mx.clear_cache()
            ladder = ladder.after_out_of_memory(allowed=True)
    finally:
        state.adapted.model.train()
    return loss_sum / _divisor(rows)


def capture(state: MlxState) -> dict[str, torch.Tensor]:
    """Weights and moments in PEFT's layout, independent of what the next step does to them."""
    tensors = {f"{WEIGHT}/{name}": each for name, each in state.adapted.tensors().items()}
    held = dict(tree_flatten(state.optimizer.state))
    for ours, theirs in MOMENTS.items():
        arrays = {name: np.array(held[f"{name}.{theirs}"]) for name in state.adapted.trainable()}
        tensors |= {
            f"{ours}/{name}": torch.from_numpy(each) for name, each in to_peft(arrays).items()
        }
    return tensors


def restore(state: MlxState, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `capture` took.

    Raises:
        Fault: STATE_CHECKPOINT_INVALID when names or shapes are those of another adapter.
    """
    wanted = {name: tensor.shape for name, tensor in capture(state).items()}
    if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
        raise Fault(
            FaultCode.STATE_CHECKPOINT_INVALID, "The checkpoint holds another adapter's tensors"
        )
    parts: dict[str, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        part, _, parameter = name.partition("/")
        parts.setdefault(part, {})[parameter] = tensor
    state.adapted.put(parts[WEIGHT])
    moments = [as_tree(parts[ours]) for ours in MOMENTS]
    state.optimizer.state = {
        **tree_map(lambda *pair: dict(zip(MOMENTS.values(), pair, strict=True)), *moments),
        "step": state.optimizer.state["step"],
        "learning_rate": state.optimizer.state["learning_rate"],
    }


def _try_step(state: MlxState, rows: Sequence[Example], *, steps: int) -> StepFigures:
    began = time.perf_counter()
    batches, optimisation = state.batches, state.optimisation
    mx.random.seed((batches.seed * STEP_SEED_STRIDE + state.step) % SEED_COUNT)
    divisor = _divisor(rows)
    loss_and_gradient = nn.value_and_grad(
        state.adapted.model, lambda *batch: _loss_and_parts(state.adapted, *batch, divisor=divisor)
    )
    loss, computed_count = 0.0, 0
    gradient: Any = None
    for batch in _batches(rows, state.ladder):
        (_, losses_N), slope = loss_and_gradient(*_arrays(batch))
        gradient = slope if gradient is None else tree_map(mx.add, gradient, slope)
        # MLX is lazy: what is not asked for here would fill the memory of a later place.
        mx.eval(losses_N, gradient)
        # In float64: a sum in float32 depends on how a step is cut, in the last digits.
        loss += float(np.array(losses_N).sum(dtype=np.float64)) / divisor
        computed_count += batch.computed_token_count
    limit = optimisation.max_grad_norm if optimisation.max_grad_norm > 0 else float("inf")
    gradient, norm = optimizers.clip_grad_norm(gradient, limit)
    grad_norm = float(norm.item())
    require_finite(loss, grad_norm, step=state.step)
    lr = learning_rate(
        state.step,
        steps=steps,
        lr_peak=optimisation.lr_peak,
        warmup_ratio=optimisation.warmup_ratio,
        schedule=optimisation.schedule,
    )
    _update(state, gradient, lr=lr)
    state.step += 1
    trained_count = sum(row.trained_count for row in sequences_of(rows))
    state.trained_token_count += trained_count
    state.losses = state.losses.plus(loss)
    return StepFigures(
        loss=loss,
        learning_rate=lr,
        grad_norm=grad_norm,
        token_count=sum(len(row.ids) for row in sequences_of(rows)),
        computed_token_count=computed_count,
        trained_token_count=trained_count,
        seconds=time.perf_counter() - began,
    )


def _update(state: MlxState, gradient: Any, *, lr: float) -> None:
    state.optimizer.learning_rate = lr
    state.optimizer.state["step"] = mx.array(state.step, mx.uint64)
    state.optimizer.update(state.adapted.model, gradient)
    mx.eval(state.adapted.model.trainable_parameters(), state.optimizer.state)


def _loss_and_parts(
    adapted: Adapted, ids_BT: mx.array, at_N: mx.array, targets_N: mx.array, *, divisor: int
) -> tuple[Any, Any]:
    """What is differentiated, and the loss of each trained token in float32, (N,)."""
    logits_NV = logits_at(adapted, ids_BT, at_N)
    losses_N = nn.losses.cross_entropy(logits_NV, targets_N, reduction="none")
    return losses_N.sum() / divisor, losses_N.astype(mx.float32)


def _summed_loss(adapted: Adapted, ids_BT: mx.array, at_N: mx.array, targets_N: mx.array) -> Any:
    logits_NV = logits_at(adapted, ids_BT, at_N)
    return nn.losses.cross_entropy(logits_NV, targets_N, reduction="none").sum()


def _batches(rows: Sequence[Example], ladder: Ladder) -> list[MicroBatch]:
    """Rows filled up at their ends: mlx-lm's models know no attention by segment."""
    size = ladder.micro_batch_size
    return list(micro_batches(rows, micro_batch_size=size, packing=False, device=CPU))


def _arrays(batch: MicroBatch) -> tuple[mx.array, mx.array, mx.array]:
    return (
        mx.array(batch.ids_BT.numpy()),
        mx.array(batch.at_N.numpy()),
        mx.array(batch.targets_N.numpy()),
    )


def _divisor(rows: Sequence[Example]) -> int:
    return max(1, sum(row.trained_count for row in sequences_of(rows)))
