"""The largest micro-batch of a run, tried before the run costs anything.

Memory that is too small for it is found while the run is still free of charge, and the micro-batch
is halved there. The trial takes no optimizer step; random numbers, gradients
and the model's mode are afterwards what they were, so that a run is bit for bit the same with it
and without it.

Shapes: E examples of a pass over the rows, M micro-batches of it.
"""

import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from corpus.packing import shuffle_order
from trainer.domain.healing import OomRecovery
from trainer.domain.plan import BatchPlan, steps_per_epoch
from trainer.training import loop
from trainer.training.batches import Example, longest_of, micro_batches, sequences_of
from trainer.training.memory import is_out_of_memory

log = logging.getLogger(__name__)
# Passes that are looked through for the largest micro-batch. In a run of more, a larger one may
# come by chance; the step that holds it then heals as any other.
PASSES_MAX = 16
Part = tuple[Sequence[Example], range]


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchShape:
    """What decides how much memory a micro-batch needs.

    Attributes:
        token_count: tokens that the forward pass computes, padding included.
        longest_count: tokens of the longest sequence; attention may need its square.
        label_count: tokens that are trained on.
    """

    token_count: int
    longest_count: int
    label_count: int

    def covers(self, other: "BatchShape") -> bool:
        """Whether memory that was enough for this is enough for the other."""
        return (
            self.token_count >= other.token_count
            and self.longest_count >= other.longest_count
            and self.label_count >= other.label_count
        )


def probe(
    state: loop.TrainState,
    rows: Sequence[Example],
    *,
    steps: range,
    healed: Callable[[OomRecovery], None],
    trying: Callable[[BatchShape], None] = lambda _: None,
    proven: Sequence[BatchShape] = (),
) -> BatchShape | None:
    """Take the largest micro-batch of what is left forward and backward; how large it was.

    `state.recovery` has afterwards the largest micro-batch that there is memory for.

    Args:
        steps: optimizer steps that are left.
        trying: called with what is tried, before it is; it may take minutes.
        proven: what trials under the same conditions have shown to fit; a micro-batch that is no
            larger than one of them is not tried.
    Returns:
        None when nothing had to be tried.
    Raises:
        Fault: RUNTIME_GPU_OOM when healing is exhausted or switched off.
        RuntimeError: what a library says of tensors that do not fit each other.
    """
    batches = state.batches
    while True:
        examples = largest_micro_batch(
            rows, batches, size=state.recovery.micro_batch_size, steps=steps
        )
        if not examples:
            return None
        batch_shape = batch_shape_of(examples, packing=batches.packing)
        if any(each.covers(batch_shape) for each in proven):
            return None
        log.info("trying the longest batch: %s", batch_shape)
        trying(batch_shape)
        try:
            _try(state, examples)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            state.recovery = state.recovery.after_success()
            return batch_shape
        # Outside the handler: the error's traceback holds the tensors that filled the memory.
        state.model.free_memory()
        state.recovery = state.recovery.after_out_of_memory(allowed=batches.oom_recovery)
        healed(state.recovery)


def largest_first(parts: Iterable[Part], batches: BatchPlan, *, size: int) -> list[Part]:
    """The parts of a schedule in the order in which to try them: what fits in one may prove others.

    Args:
        parts: rows and the steps that are left over them.
        size: examples of a micro-batch.
    """

    def token_count(part: Part) -> int:
        rows, steps = part
        examples = largest_micro_batch(rows, batches, size=size, steps=steps)
        return batch_shape_of(examples, packing=batches.packing).token_count if examples else 0

    return sorted(parts, key=token_count, reverse=True)


def largest_micro_batch(
    rows: Sequence[Example], batches: BatchPlan, *, size: int, steps: range
) -> tuple[Example, ...]:
    """The examples of the micro-batch with most computed tokens among those of `steps`.

    Args:
        size: examples of a micro-batch.
    """
    per_pass = steps_per_epoch(batches, row_count=len(rows))
    sequences = [[len(row.ids) for row in example.sequences] for example in rows]
    tokens_E = np.array([sum(lengths) for lengths in sequences])
    longest_E = np.array([longest_of(example) for example in rows])
    count_E = np.array([len(lengths) for lengths in sequences])
    # Where the micro-batches of a pass begin; every step begins a new one.
    begins_M = np.concatenate(
        [
            np.arange(begin, min(begin + batches.effective_batch_size, len(rows)), size)
            for begin in range(0, len(rows), batches.effective_batch_size)
        ]
    )
    step_M = begins_M // batches.effective_batch_size
    most, chosen = 0, list[int]()
    first_pass = steps.start // per_pass
    for number in range(first_pass, min(first_pass + PASSES_MAX, -(-steps.stop // per_pass))):
        order_E = shuffle_order(len(rows), seed=batches.seed, epoch=number)
        if batches.packing:
            computed_M = np.add.reduceat(tokens_E[order_E], begins_M)
        else:
            # As `micro_batches` does it: the longest first within a step.
            step_E = np.arange(len(rows)) // batches.effective_batch_size
            order_E = order_E[np.lexsort((-longest_E[order_E], step_E))]
            longest_M = np.maximum.reduceat(longest_E[order_E], begins_M)
            computed_M = longest_M * np.add.reduceat(count_E[order_E], begins_M)
        absolute_M = number * per_pass + step_M
        computed_M[(absolute_M < steps.start) | (absolute_M >= steps.stop)] = 0
        place = int(computed_M.argmax())
        if computed_M[place] > most:
            begin = int(begins_M[place])
            end = int(begins_M[place + 1]) if place + 1 < len(begins_M) else len(rows)
            most, chosen = int(computed_M[place]), order_E[begin:end].tolist()
    return tuple(rows[i] for i in chosen)


def batch_shape_of(examples: Sequence[Example], *, packing: bool) -> BatchShape:
    """How large a micro-batch of the examples is."""
    rows = sequences_of(examples)
    longest_count = max(len(row.ids) for row in rows)
    return BatchShape(
        token_count=sum(len(row.ids) for row in rows) if packing else longest_count * len(rows),
        longest_count=longest_count,
        label_count=sum(row.trained_count for row in rows),
    )


def _try(state: loop.TrainState, examples: Sequence[Example]) -> None:
    model, objective, size, packing = (
        state.model,
        state.objective,
        len(examples),
        state.batches.packing,
    )
    try:
        with model.forked_random():
            point = model.reference_point(
                examples, objective, micro_batch_size=size, packing=packing
            )
            for batch in micro_batches(
                examples, micro_batch_size=size, packing=packing, device=model.device
            ):
                model.accumulate(batch, objective, divisor=1, reference_point=point)
    finally:
        model.discard_gradient()
