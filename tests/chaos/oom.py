"""Out of memory changes nothing: `python -m tests.chaos.oom`.

Memory runs out at tensor operations chosen over a whole run: in the trial of the longest batch, the
forward pass, the backward pass, the update, the validation and the sampling. Each time the run must
go on as if nothing had been: the same effective batch, train mode, every loss within 1e-6 of the
clean run's, the same answers. Where it runs out for good, the run must end with its code after
three tries at a micro-batch of one.
The last line is JSON.
"""

import argparse
import json
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from lexicon.faults import Fault, FaultCode
from tests.support.training import (
    FP32,
    a_plan,
    a_state,
    a_tiny_model,
    a_torch_model,
    attached,
    some_data,
    some_rows,
)
from trainer.domain.plan import ValidationPlan
from trainer.training import loop, peft_library, torch_model
from trainer.training.generation import Generator, ask_both
from trainer.training.probe import probe
from trainer.training.validation import Validation

STEPS = 4
ROWS = some_rows(24)
HELD_OUT = some_rows(6, seed=1)
# The last cut of a micro-batch sums the same numbers in another order.
TOLERANCE = 1e-6
PLAN = a_plan(micro_batch_size=8, accumulation_steps=1, max_steps=STEPS)
VALIDATION = ValidationPlan(
    holdout_ratio=0.1, dataset=None, every_steps=2, early_stop_patience=0, early_stop_min_delta=0.0
)
PHASES = ("probe", "forward", "backward", "update", "validation")


class OutOfMemoryAt(TorchDispatchMode):
    """Fails the n-th tensor operation of a phase once, or for ever."""

    def __init__(self, phase: str, operation: int, *, for_ever: bool = False) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.phase, self.operation, self.for_ever = phase, operation, for_ever
        self.current, self.count, self.fired = "", 0, False

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        # The profiler's marks pass here as well; they are no tensor operations and need no memory.
        if self.current == self.phase and function.namespace == "aten":
            self.count += 1
            due = self.count == self.operation or (self.for_ever and self.count > self.operation)
            if due:
                self.fired = True
                raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return function(*args, **(kwargs or {}))


def main() -> None:
    """Run the trials and print one JSON line; exit 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--points", type=int, default=60, help="points of each phase")
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    counts = {phase: train(OutOfMemoryAt(phase, 10**9))[1].count for phase in PHASES}
    clean, _ = train(OutOfMemoryAt("", 0))
    worst, points, wrong = 0.0, 0, 0
    for phase in PHASES:
        for operation in spread(counts[phase], options.points):
            losses, mode = train(OutOfMemoryAt(phase, operation))
            assert mode.fired, (phase, operation)
            difference = max(abs(a - b) for a, b in zip(losses, clean, strict=True))
            worst, points = max(worst, difference), points + 1
            wrong += difference > TOLERANCE
        say(f"{phase}: {counts[phase]} operations, largest difference so far {worst:.1e}")
    sampled, sampled_wrong = sampling(options.points)
    ended = exhausted()
    passed = wrong == sampled_wrong == 0 and points + sampled >= 200 and ended
    say(
        json.dumps(
            {
                "bench": "chaos.oom",
                "value": points + sampled,
                "unit": "points survived",
                "peer": None,
                "goal": ">= 200 points, every loss within 1e-6",
                "pass": passed,
                "proof": {
                    "operations": counts,
                    "largest_loss_difference": worst,
                    "wrong": wrong + sampled_wrong,
                    "sampling_points": sampled,
                    "ends_with_its_code": ended,
                },
                "seconds": round(time.monotonic() - began, 1),
                "machine": f"{platform.machine()}, torch {torch.__version__}",
            }
        )
    )
    sys.exit(0 if passed else 1)


def train(mode: OutOfMemoryAt) -> tuple[list[float], OutOfMemoryAt]:
    """Training and validation losses of a run in which memory runs out as `mode` says."""
    model = attached(a_tiny_model(), PLAN).train()
    state = a_state(model, PLAN)
    validation = Validation(plan=VALIDATION, rows=HELD_OUT)
    losses = []
    with phases(mode, state), mode:
        mode.current = "probe"
        probe(state, ROWS, steps=range(STEPS), healed=lambda _: None)
        mode.current = ""
        for _ in range(STEPS):
            figures = loop.take_step(state, ROWS, steps=STEPS, healed=lambda recovery: None)
            losses.append(figures.loss)
            validation.after_step(state, steps=STEPS, warn=lambda *_: None)
            assert model.training
            assert state.recovery.effective_batch_size == PLAN.batches.effective_batch_size
            if state.step % VALIDATION.every_steps == 0:
                losses.append(validation.latest_loss or 0.0)
    return losses, mode


@contextmanager
def phases(mode: OutOfMemoryAt, state: loop.TrainState) -> Iterator[None]:
    """Tell `mode` which part of a step runs, by the calls that begin it."""
    originals = (torch_model.batch_loss, torch.Tensor.backward, loop.update, loop.mean_loss)

    def within(phase: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def marked(*args: Any, **named: Any) -> Any:
            before, mode.current = mode.current, mode.current or phase
            try:
                return call(*args, **named)
            finally:
                mode.current = before

        return marked

    torch_model.batch_loss = within("forward", originals[0])
    torch.Tensor.backward = within("backward", originals[1])  # type: ignore[method-assign]
    loop.update = within("update", originals[2])
    loop.mean_loss = within("validation", originals[3])
    try:
        yield
    finally:
        torch_model.batch_loss = originals[0]
        loop.update, loop.mean_loss = originals[2], originals[3]
        torch.Tensor.backward = originals[1]  # type: ignore[method-assign]


def sampling(points: int) -> tuple[int, int]:
    """Points tried in the sampling, and how many of them changed an answer."""
    plan = a_plan()
    data = some_data(plan, warn=lambda *_: None)
    model = a_torch_model(attached(peft_library.load_base(plan.base, FP32), plan))
    generator = Generator(
        model=model,
        tokenizer=data.tokenizer,
        end_ids=data.end_ids(model.end_ids),
        special_tokens=data.special_tokens,
    )
    counting = OutOfMemoryAt("", 10**9)
    with model.generating():
        with counting:
            clean = ask_both(generator, data.prompts)
        wrong, chosen = 0, spread(counting.count, points)
        for operation in chosen:
            with OutOfMemoryAt("", operation):
                wrong += ask_both(generator, data.prompts) != clean
    say(f"sampling: {counting.count} operations, wrong {wrong}")
    return len(chosen), wrong


def exhausted() -> bool:
    """Whether memory that is gone for good ends the run with its code, in train mode."""
    model = attached(a_tiny_model(), PLAN).train()
    state = a_state(model, PLAN)
    rungs: list[int] = []
    mode = OutOfMemoryAt("forward", 1, for_ever=True)
    try:
        with phases(mode, state), mode:
            loop.take_step(
                state,
                ROWS,
                steps=STEPS,
                healed=lambda recovery: rungs.append(recovery.micro_batch_size),
            )
    except Fault as fault:
        return (
            fault.code is FaultCode.RUNTIME_GPU_OOM and rungs == [4, 2, 1, 1, 1] and model.training
        )
    return False


def spread(count: int, points: int) -> list[int]:
    """Operations spread evenly over all of them, the first and the last included."""
    if count <= points:
        return list(range(1, count + 1))
    return sorted({1 + round(i * (count - 1) / (points - 1)) for i in range(points)})


def say(line: str) -> None:
    """Show progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
