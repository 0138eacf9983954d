"""The training loop, read from top to bottom.

The state of a run is the trainable weights, the optimizer's moments, and the step. Everything else
is a function of plan and step: the learning rate, which rows the step holds and in which order,
and the random numbers of dropout. So a resumed run is the same run.

The loss of a step is divided by what the whole step holds, never by what a micro-batch holds.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain.healing import Ladder
from trainer.domain.plan import TrainPlan
from trainer.domain.schedule import learning_rate
from trainer.training.batches import Example, Layout, step_indices
from trainer.training.memory import is_out_of_memory, release_memory
from trainer.training.objective import Objective, Shared
from trainer.training.rails import Arithmetic

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
# Seeds of neighbouring steps must not overlap with those of neighbouring runs.
STEP_SEED_STRIDE = 1_000_003


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """What a run trains on and how; it never changes while the run trains."""

    plan: TrainPlan
    examples: Sequence[Example]
    objective: Objective
    arithmetic: Arithmetic
    steps: int

    @property
    def layout(self) -> Layout:
        """How rows become micro-batches."""
        return Layout(packing=self.plan.packing, device=self.arithmetic.device)


@dataclass(slots=True, kw_only=True)
class TrainState:
    """Everything that changes while a run trains."""

    model: Any
    optimizer: torch.optim.Optimizer
    trainable: dict[str, torch.nn.Parameter]
    ladder: Ladder
    step: int = 0
    trained_token_count: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class StepFigures:
    """What one optimizer step measured."""

    loss: float
    learning_rate: float
    grad_norm: float
    token_count: int
    computed_token_count: int
    trained_token_count: int
    seconds: float


def begin(model: Any, plan: TrainPlan) -> TrainState:
    """The state before the first step; the optimizer's moments exist already and are zero."""
    trainable = {name: p for name, p in model.named_parameters() if p.requires_grad}
    optimizer = torch.optim.AdamW(
        list(trainable.values()),
        lr=plan.lr_peak,
        betas=ADAM_BETAS,
        eps=ADAM_EPSILON,
        weight_decay=plan.weight_decay,
        fused=True,
    )
    # Made here, so that no step needs new memory halfway through its update: the fused update
    # happens whole or not at all, which is what lets a step be taken again after out-of-memory.
    for parameter in trainable.values():
        optimizer.state[parameter] = {
            "step": torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    ladder = Ladder(
        effective_batch_size=plan.effective_batch_size, micro_batch_size=plan.micro_batch_size
    )
    return TrainState(model=model, optimizer=optimizer, trainable=trainable, ladder=ladder)


def take_step(
    state: TrainState, course: Course, *, healed: Callable[[Ladder], None]
) -> StepFigures:
    """Take optimizer step `state.step`, as often as memory makes necessary.

    Raises:
        Fault: RUNTIME_GPU_OOM when healing is exhausted, RUNTIME_LOSS_NOT_FINITE.
    """
    plan, examples = course.plan, course.examples
    indices = step_indices(plan, row_count=len(examples), step=state.step)
    chosen = [examples[index] for index in indices]
    while True:
        try:
            figures = _try_step(state, course, chosen)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            state.ladder = state.ladder.after_success()
            return figures
        # Outside the handler: the error's traceback holds the tensors that filled the memory.
        free_memory(state)
        state.ladder = state.ladder.after_out_of_memory(allowed=plan.oom_recovery)
        healed(state.ladder)


def _try_step(state: TrainState, course: Course, examples: Sequence[Example]) -> StepFigures:
    plan, layout = course.plan, course.layout
    began = time.perf_counter()
    torch.manual_seed(plan.seed * STEP_SEED_STRIDE + state.step)
    with course.arithmetic.context():
        shared = course.objective.prepare(state.model, examples, layout)
    loss_sum, computed_count = 0.0, 0
    for micro in cut(examples, state.ladder.micro_batch_size):
        with course.arithmetic.context():
            loss = course.objective.loss(state.model, micro, shared, layout)
        loss.backward()
        loss_sum += loss.item()
        rows = [row for example in micro for row in example.rows]
        computed_count += layout.computed_token_count(rows)
    grad_norm = clip(state, max_norm=plan.max_grad_norm)
    _require_finite(loss_sum, grad_norm, step=state.step)
    lr = learning_rate(
        state.step,
        steps=course.steps,
        lr_peak=plan.lr_peak,
        warmup_ratio=plan.warmup_ratio,
        schedule=plan.schedule,
    )
    update(state, lr=lr)
    state.optimizer.zero_grad(set_to_none=True)
    state.step += 1
    trained_count = sum(example.trained_count for example in examples)
    state.trained_token_count += trained_count
    return StepFigures(
        loss=loss_sum,
        learning_rate=lr,
        grad_norm=grad_norm,
        token_count=sum(example.token_count for example in examples),
        computed_token_count=computed_count,
        trained_token_count=trained_count,
        seconds=time.perf_counter() - began,
    )


def mean_loss(model: Any, examples: Sequence[Example], course: Course, *, ladder: Ladder) -> float:
    """The objective over all of `examples`; train mode is back whatever happens.

    Raises:
        Fault: RUNTIME_GPU_OOM when there is no memory for a single example.
    """
    loss_sum, done_count = 0.0, 0
    shared: Shared | None = None
    model.eval()
    try:
        while done_count < len(examples):
            micro = examples[done_count : done_count + ladder.micro_batch_size]
            try:
                with torch.no_grad(), course.arithmetic.context():
                    shared = shared or course.objective.prepare(model, examples, course.layout)
                    loss = course.objective.loss(model, micro, shared, course.layout).item()
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                loss_sum += loss
                done_count += len(micro)
                ladder = ladder.after_success()
                continue
            release_memory()
            ladder = ladder.after_out_of_memory(allowed=True)
    finally:
        model.train()
    return loss_sum


def cut(examples: Sequence[Example], micro_batch_size: int) -> Iterator[Sequence[Example]]:
    """The examples of one step in micro-batches."""
    for begin in range(0, len(examples), micro_batch_size):
        yield examples[begin : begin + micro_batch_size]


def clip(state: TrainState, *, max_norm: float) -> float:
    """Norm of the whole gradient before clipping; 0 as `max_norm` leaves it as it is."""
    limit = max_norm if max_norm > 0 else float("inf")
    return float(torch.nn.utils.clip_grad_norm_(list(state.trainable.values()), limit))


def update(state: TrainState, *, lr: float) -> None:
    """One AdamW update of the trainable weights by their gradients.

    AdamW counts its steps before it moves the weights; the count is put back first, so that an
    update that ran out of memory in between is the same when it is made again.
    """
    for group in state.optimizer.param_groups:
        group["lr"] = lr
    for parameter in state.trainable.values():
        state.optimizer.state[parameter]["step"].fill_(state.step)
    state.optimizer.step()


def capture(state: TrainState) -> dict[str, torch.Tensor]:
    """Weights and moments by name, on the CPU, independent of what the next step does to them."""
    tensors = {}
    for name, parameter in state.trainable.items():
        tensors[f"weight/{name}"] = parameter.detach().cpu().clone()
        for key, value in state.optimizer.state[parameter].items():
            tensors[f"{key}/{name}"] = value.detach().cpu().clone()
    return tensors


def restore(state: TrainState, tensors: dict[str, torch.Tensor]) -> None:
    """Put back what `capture` took.

    Raises:
        Fault: STATE_CHECKPOINT_INVALID when names or shapes are those of another adapter.
    """
    expected = {
        f"{key}/{name}": value
        for name, parameter in state.trainable.items()
        for key, value in {"weight": parameter.data, **state.optimizer.state[parameter]}.items()
    }
    if expected.keys() != tensors.keys() or any(
        expected[name].shape != tensors[name].shape for name in expected
    ):
        raise Fault(
            FaultCode.STATE_CHECKPOINT_INVALID, "The checkpoint holds another adapter's tensors"
        )
    with torch.no_grad():
        for name, target in expected.items():
            target.copy_(tensors[name])


def free_memory(state: TrainState) -> None:
    """Give back what the failed forward or backward pass left behind."""
    state.optimizer.zero_grad(set_to_none=True)
    release_memory()


def _require_finite(loss: float, grad_norm: float, *, step: int) -> None:
    infinity = float("inf")
    if not (abs(loss) < infinity and grad_norm < infinity):
        raise Fault(
            FaultCode.RUNTIME_LOSS_NOT_FINITE,
            f"Step {step + 1}: loss {loss}, gradient norm {grad_norm}",
            step=step + 1,
            loss=str(loss),
            grad_norm=str(grad_norm),
        )
