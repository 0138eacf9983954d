"""The training loop, read from top to bottom; it is the same whatever computes the model.

The state of a run is the trainable weights, the optimizer's moments, the step, and in fp16 the loss
scale. Everything else is a function of plan and step: the learning rate, which rows the step holds
and in which order, and the random numbers of dropout. So a resumed run is the same run.
"""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import astuple, dataclass, field

import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain.healing import OomRecovery
from trainer.domain.loss_curve import LossCurve
from trainer.domain.plan import BatchPlan, OptimisationPlan
from trainer.domain.scaling import LossScale
from trainer.domain.steps import learning_rate
from trainer.training.adapted_model import AdaptedModel
from trainer.training.batches import Example, micro_batches, sequences_of, step_indices
from trainer.training.memory import is_out_of_memory
from trainer.training.preference import PreferenceObjective, Tally

# Where a checkpoint keeps the loss scale.
LOSS_SCALE_KEY = "loss_scale"
# Seeds of neighbouring steps must not overlap with those of neighbouring runs.
STEP_SEED_STRIDE = 1_000_003
# torch takes a signed number of 64 bits; a user's seed may be as large as that by itself.
SEED_COUNT = 1 << 63


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Everything that changes while a run trains.

    Attributes:
        batches, optimisation, goal: the parts of the plan that it trains by; they stay.
        loss_scale: None unless the gradients are computed in fp16.
        step: optimizer steps taken in all.
        first_step: the step at which the optimizer began: 0, or where a run of a continual
            training did; `first_skipped_count` is how many had been skipped by then.
    """

    model: AdaptedModel
    recovery: OomRecovery
    batches: BatchPlan
    optimisation: OptimisationPlan
    objective: PreferenceObjective | None
    loss_scale: LossScale | None = None
    step: int = 0
    first_step: int = 0
    first_skipped_count: int = 0
    trained_token_count: int = 0
    losses: LossCurve = field(default_factory=LossCurve)
    _release: Callable[[], None] | None = field(default=None, init=False, repr=False)

    @property
    def step_of_run(self) -> int:
        """Steps since the optimizer began: what the order of the rows and the schedule go by."""
        return self.step - self.first_step

    @property
    def skipped_count(self) -> int:
        """Steps whose gradient overflowed in fp16 and was not used."""
        return self.loss_scale.skipped_count if self.loss_scale else 0

    def borrow(self, release: Callable[[], None]) -> dict[str, torch.Tensor]:
        """What a checkpoint holds, live: it is not changed before `release` has returned."""
        self.reclaim()
        self._release = release
        return live(self)

    def reclaim(self) -> None:
        """Wait until nobody reads weights and moments any more: comes before every change."""
        release, self._release = self._release, None
        if release is not None:
            release()


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """What one optimizer step measured; one that was skipped moved no weight, and its norm is 0."""

    loss: float
    learning_rate: float
    grad_norm: float
    token_count: int
    computed_token_count: int
    trained_token_count: int
    seconds: float
    skipped: bool = False
    preference_margin: float | None = None
    preference_accuracy: float | None = None


def begin(
    model: AdaptedModel,
    batches: BatchPlan,
    optimisation: OptimisationPlan,
    objective: PreferenceObjective | None,
    *,
    loss_scale: LossScale | None = None,
) -> TrainState:
    """The state before the first step; the optimizer's moments exist already and are zero.

    Args:
        loss_scale: what to begin with where gradients are computed in fp16.
    """
    model.make_optimizer(optimisation)
    recovery = OomRecovery(
        effective_batch_size=batches.effective_batch_size, micro_batch_size=batches.micro_batch_size
    )
    return TrainState(
        model=model,
        recovery=recovery,
        batches=batches,
        optimisation=optimisation,
        objective=objective,
        loss_scale=loss_scale,
    )


def begin_again(state: TrainState) -> None:
    """Begin the next run of a continual training: steps count on, the optimizer is a new one."""
    state.reclaim()
    state.model.make_optimizer(state.optimisation)
    state.first_step, state.first_skipped_count = state.step, state.skipped_count


def take_step(
    state: TrainState,
    rows: Sequence[Example],
    *,
    steps: int,
    healed: Callable[[OomRecovery], None],
) -> StepFigures:
    """Take optimizer step `state.step`, as often as memory makes necessary.

    Raises:
        Fault: RUNTIME_GPU_OOM when healing is exhausted, RUNTIME_LOSS_NOT_FINITE.
    """
    batches, row_count = state.batches, len(rows)
    indices = step_indices(batches, row_count=row_count, step=state.step_of_run)
    chosen = [rows[i] for i in indices]
    while True:
        try:
            figures = _try_step(state, chosen, steps=steps)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            state.recovery = state.recovery.after_success()
            return figures
        # Outside the handler: the error's traceback holds the tensors that filled the memory.
        state.model.free_memory()
        state.recovery = state.recovery.after_out_of_memory(allowed=batches.oom_recovery)
        healed(state.recovery)


def _try_step(state: TrainState, rows: Sequence[Example], *, steps: int) -> StepFigures:
    began = time.perf_counter()
    model, batches, optimisation, objective = (
        state.model,
        state.batches,
        state.optimisation,
        state.objective,
    )
    model.seed((batches.seed * STEP_SEED_STRIDE + state.step) % SEED_COUNT)
    sequences = sequences_of(rows)
    divisor = _divisor(rows, objective)
    size = state.recovery.micro_batch_size
    point = model.reference_point(rows, objective, micro_batch_size=size, packing=batches.packing)
    scale = state.loss_scale.factor if state.loss_scale else 1.0
    loss_sum, computed_count, tally = 0.0, 0, Tally()
    for batch in micro_batches(
        rows, micro_batch_size=size, packing=batches.packing, device=model.device
    ):
        loss_sum += model.accumulate(
            batch, objective, divisor=divisor, scale=scale, reference_point=point, tally=tally
        )
        computed_count += batch.computed_token_count
    grad_norm = model.clip(max_norm=optimisation.max_grad_norm, scale=scale)
    skipped = state.loss_scale is not None and not math.isfinite(grad_norm)
    grad_norm = 0.0 if skipped else grad_norm
    require_finite(loss_sum / divisor, grad_norm, step=state.step)
    lr = learning_rate(
        state.step_of_run,
        steps=steps,
        lr_peak=optimisation.lr_peak,
        warmup_ratio=optimisation.warmup_ratio,
        schedule=optimisation.schedule,
    )
    _use_gradient(state, lr=lr, skipped=skipped)
    model.discard_gradient()
    state.step += 1
    trained_count = sum(row.trained_count for row in sequences)
    state.trained_token_count += trained_count
    state.losses = state.losses.plus(loss_sum / divisor)
    return StepFigures(
        loss=loss_sum / divisor,
        learning_rate=lr,
        grad_norm=grad_norm,
        token_count=sum(len(row.ids) for row in sequences),
        computed_token_count=computed_count,
        trained_token_count=trained_count,
        seconds=time.perf_counter() - began,
        skipped=skipped,
        preference_margin=tally.margin,
        preference_accuracy=tally.accuracy,
    )


def mean_loss(state: TrainState, rows: Sequence[Example]) -> float:
    """Mean loss over all trained tokens of `rows`, or over all examples where there is a goal.

    Train mode is back whatever happens.

    Raises:
        Fault: RUNTIME_GPU_OOM when there is no memory for a single row.
    """
    model, objective, packing = state.model, state.objective, state.batches.packing
    loss_sum, done_count = 0.0, 0
    model.eval()
    try:
        point, recovery = _healed(
            model,
            lambda size: model.reference_point(
                rows, objective, micro_batch_size=size, packing=packing
            ),
            state.recovery,
        )

        def portion(size: int) -> float:
            chosen = rows[done_count : done_count + size]
            batches = micro_batches(
                chosen, micro_batch_size=len(chosen), packing=packing, device=model.device
            )
            return sum(model.loss(batch, objective, reference_point=point) for batch in batches)

        while done_count < len(rows):
            loss, recovery = _healed(model, portion, recovery)
            loss_sum += loss
            done_count += recovery.micro_batch_size
    finally:
        model.train()
    return loss_sum / _divisor(rows, objective)


def update(state: TrainState, *, lr: float) -> None:
    """One update of the trainable weights by their gradients; whole, or not at all."""
    state.reclaim()
    skipped_count = state.skipped_count - state.first_skipped_count
    state.model.update(updates_before=state.step_of_run - skipped_count, lr=lr)


def live(state: TrainState) -> dict[str, torch.Tensor]:
    """What a checkpoint holds of the state, by name; the next update changes it."""
    tensors = state.model.live()
    if state.loss_scale is not None:
        tensors[LOSS_SCALE_KEY] = torch.tensor(astuple(state.loss_scale), dtype=torch.float64)
    return tensors


def capture(state: TrainState) -> dict[str, torch.Tensor]:
    """The same on the CPU, independent of what the next step does to it."""
    return {name: tensor.detach().cpu().clone() for name, tensor in live(state).items()}


def restore(state: TrainState, tensors: Mapping[str, torch.Tensor]) -> None:
    """Put back what `capture` took.

    Raises:
        Fault: STATE_CHECKPOINT_INVALID when names, shapes or kinds are not those of this run.
    """
    expected = live(state)
    if expected.keys() != tensors.keys() or any(
        (expected[name].shape, expected[name].dtype) != (tensors[name].shape, tensors[name].dtype)
        for name in expected
    ):
        raise Fault(
            FaultCode.STATE_CHECKPOINT_INVALID, "The checkpoint holds another adapter's tensors"
        )
    loss_scale = None if state.loss_scale is None else _scale_of(tensors[LOSS_SCALE_KEY])
    state.reclaim()
    state.model.restore(
        {name: tensor for name, tensor in tensors.items() if name != LOSS_SCALE_KEY}
    )
    state.loss_scale = loss_scale


def _scale_of(figures: torch.Tensor) -> LossScale:
    """The loss scale in a checkpoint."""
    factor, clean_steps, skipped_count = figures.tolist()
    if not (
        0.0 < factor < math.inf and 0 <= clean_steps < math.inf and 0 <= skipped_count < math.inf
    ):
        raise Fault(FaultCode.STATE_CHECKPOINT_INVALID, "The checkpoint holds no loss scale")
    return LossScale(factor=factor, clean_steps=int(clean_steps), skipped_count=int(skipped_count))


def put(state: TrainState, weights: Mapping[str, torch.Tensor]) -> None:
    """Put other weights into the model; the optimizer keeps its moments."""
    state.reclaim()
    state.model.put(weights)


def _use_gradient(state: TrainState, *, lr: float, skipped: bool) -> None:
    """Move the weights and the loss scale; a gradient that overflowed moves the scale alone."""
    if not skipped:
        update(state, lr=lr)
    if state.loss_scale is None:
        return
    scale = state.loss_scale
    state.loss_scale = scale.after_overflow() if skipped else scale.after_clean_step()


def _divisor(rows: Sequence[Example], objective: PreferenceObjective | None) -> int:
    """What a summed loss is divided by: trained tokens, or examples where there is a goal."""
    if objective is not None:
        return len(rows)
    return max(1, sum(row.trained_count for row in sequences_of(rows)))


def _healed(
    model: AdaptedModel, work: Callable[[int], float], recovery: OomRecovery
) -> tuple[float, OomRecovery]:
    """What `work` gives with the largest micro-batch that fits, and the recovery after it."""
    while True:
        try:
            return work(recovery.micro_batch_size), recovery.after_success()
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        model.free_memory()
        recovery = recovery.after_out_of_memory(allowed=True)


def require_finite(loss: float, grad_norm: float, *, step: int) -> None:
    """Checks what step `step` (0-based) has measured.

    Raises:
        Fault: RUNTIME_LOSS_NOT_FINITE.
    """
    infinity = float("inf")
    if not (abs(loss) < infinity and grad_norm < infinity):
        raise Fault(
            FaultCode.RUNTIME_LOSS_NOT_FINITE,
            f"Step {step + 1}: loss {loss}, gradient norm {grad_norm}",
            step=step + 1,
            loss=str(loss),
            grad_norm=str(grad_norm),
        )
