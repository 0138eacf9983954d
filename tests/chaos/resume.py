"""A killed run that resumes is the same run, bit for bit: `python -m tests.chaos.resume`.

Trials on the CPU rail with a small Llama and dropout, so that random numbers matter:

1. `steps`: a 60-step run that writes a checkpoint after every step, behind its back as in
   production, is killed with SIGKILL in the middle of each of its steps, and so in the middle of
   many writes; another process resumes it and takes it to its end.
2. `write`: the process is killed at every system-call boundary inside the writing of a checkpoint,
   at several steps; another process resumes from whatever lies on the disk. The writing thread's
   code runs in the main thread here, where every one of its calls can be stopped at.
3. `merge`: a continual training is killed at every system-call boundary of each of its merges and
   of the checkpoint behind it; see `tests.chaos.merges`.
4. `peer`: Hugging Face Trainer with the same model and data, stopped and resumed in order; and
   killed at boundaries spread over its own save, then resumed from the last checkpoint that it
   finds.

Losses and adapter must equal those of the uninterrupted run exactly. The last line is JSON.
"""

import argparse
import hashlib
import json
import os
import platform
import shutil
import signal
import sys
import tempfile
import time
from concurrent.futures import Executor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from random import Random

import torch

from lexicon.faults import Fault
from tests.chaos import merges
from tests.support import peer_killed, peer_trainer
from tests.support.borrowing import AtTheLastMoment
from tests.support.forked import in_fork
from tests.support.ptrace import kill_at_boundary
from tests.support.training import a_plan, a_state, a_tiny_model, attached, some_rows, torch_model
from trainer.training import checkpoint, loop
from trainer.training.writer import CheckpointWriter

STEPS = 60
ROWS = some_rows(50)
PLAN = a_plan(max_steps=STEPS, adapter_dropout=0.1)
# A write is killed at these steps: early, in the middle of an epoch, at the end of one, late.
WRITE_STEPS = (1, 10, 13, 30, 55)
BOUNDARIES_MAX = 2000
KILL_POINTS_GOAL = 200
# About as long as a step with the write of the one before it.
DELAY_SECONDS_MAX = 0.02
PEER_KILLS = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What a process saw: the loss of each step it took, and the adapter's hash at its end."""

    from_step: int
    losses: tuple[float, ...]
    adapter: str


def main() -> None:
    """Run the trials and print one JSON line; exit 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="tunesmith-resume-") as folder:
        whole = in_fork(lambda: run(Path(folder) / "whole", until=STEPS))
        stepped = trial_steps(whole, Path(folder), Random(options.seed))
        written = trial_write(whole, Path(folder))
        merged = merges.trial(Path(folder) / "merges", say)
    theirs = in_fork(lambda: peer_trainer.resumed_curve(STEPS))
    theirs["killed_while_saving"] = peer_killed.trial(PEER_KILLS, say)
    passed = (
        all(each["different"] == 0 for each in (stepped, written, merged))
        and all(each["steps_lost_max"] <= 1 for each in (stepped, written, merged))
        and min(written["kill_points"], merged["kill_points"]) >= KILL_POINTS_GOAL
    )
    say(
        json.dumps(
            {
                "bench": "chaos.resume",
                "value": sum(each["different"] for each in (stepped, written, merged)),
                "unit": "runs that differ",
                "peer": theirs,
                "goal": f"0 of {STEPS - 1} steps, and of >= {KILL_POINTS_GOAL} points of the write "
                "and of the merges each",
                "pass": passed,
                "proof": {
                    "steps": stepped,
                    "write": written,
                    "merge": merged,
                    "adapter": whole.adapter,
                },
                "seconds": round(time.monotonic() - began, 1),
                "machine": f"{platform.machine()}, torch {torch.__version__}",
            }
        )
    )
    sys.exit(0 if passed else 1)


def trial_steps(whole: Outcome, folder: Path, rng: Random) -> dict[str, int]:
    """Kill in the middle of every step; resume; compare."""
    different, lost_max, cut_writes = 0, 0, 0
    for step in range(1, STEPS):
        root = folder / f"step-{step}"
        kill_after_step(root, step, delay_seconds=rng.uniform(0, DELAY_SECONDS_MAX))
        cut_writes += any(root.glob(f"*{checkpoint.PARTIAL_SUFFIX}"))
        resumed = in_fork(partial(run, root, until=STEPS))
        different += not same_end(resumed, whole)
        lost_max = max(lost_max, step - resumed.from_step)
        shutil.rmtree(root)
        say(f"killed in step {step + 1}: resumed at {resumed.from_step}, different {different}")
    return {
        "kill_points": STEPS - 1,
        "inside_a_write": cut_writes,
        "different": different,
        "steps_lost_max": lost_max,
    }


def trial_write(whole: Outcome, folder: Path) -> dict[str, int]:
    """Kill at every system-call boundary of a checkpoint's write; resume; compare."""
    points, different, lost_max = 0, 0, 0
    for step in WRITE_STEPS:
        prepared = folder / f"prepared-{step}"
        in_fork(partial(run, prepared, until=step - 1))
        for boundary in range(1, BOUNDARIES_MAX):
            root = folder / "cut"
            shutil.copytree(prepared, root)
            state = begun(root)
            take(state, 1)
            killed = kill_at_boundary(partial(write_inline, state, root), boundary)
            if not killed:
                shutil.rmtree(root)
                break
            until = min(STEPS, step + 2)
            resumed = in_fork(partial(run, root, until=until))
            expected = whole.losses[resumed.from_step : until]
            different += resumed.losses != expected
            lost_max = max(lost_max, step - resumed.from_step)
            points += 1
            shutil.rmtree(root)
        say(f"write of step {step}: {points} points so far, different {different}")
    return {"kill_points": points, "different": different, "steps_lost_max": lost_max}


def run(root: Path, *, until: int) -> Outcome:
    """Resume what lies under `root`, or begin; train to `until`, with a checkpoint every step."""
    state = begun(root)
    from_step, losses = state.step, []
    with writer_for(root) as writer:
        while state.step < until:
            losses += take(state, 1)
            writer.save(progress(state), state, {})
    return Outcome(from_step=from_step, losses=tuple(losses), adapter=digest(state))


def begun(root: Path) -> loop.TrainState:
    """The state to go on from: the newest whole checkpoint, or the beginning."""
    root.mkdir(parents=True, exist_ok=True)
    checkpoint.remove_partials(root)
    model = attached(a_tiny_model(), PLAN)
    state = a_state(model.train(), PLAN)
    folders = sorted(root.glob("step-*"))
    if folders:
        found, tensors = checkpoint.read(folders[-1], run=PLAN.attempt.run, fingerprint="chaos")
        loop.restore(state, tensors)
        state.step = found.step
    return state


def take(state: loop.TrainState, count: int) -> list[float]:
    """The losses of the next `count` steps."""
    return [
        loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None).loss for _ in range(count)
    ]


def writer_for(root: Path, thread: Executor | None = None) -> CheckpointWriter:
    """The writer of production, which forgets the checkpoint before the last."""

    def failed(fault: Fault) -> None:
        raise fault

    return CheckpointWriter(
        root, written=lambda _, folder: forget_older(folder), failed=failed, thread=thread
    )


def write_inline(state: loop.TrainState, root: Path) -> None:
    """What the writer and its thread do with a checkpoint, in this thread."""
    with writer_for(root, thread=AtTheLastMoment()) as writer:
        writer.save(progress(state), state, {})


def forget_older(newest: Path) -> None:
    """Delete all but the two newest checkpoints, as the agent does."""
    for older in sorted(newest.parent.glob("step-*[0-9]"))[:-2]:
        shutil.rmtree(older)


def progress(state: loop.TrainState) -> checkpoint.TrainingProgress:
    """What the checkpoint of the step that was just taken says."""
    return checkpoint.TrainingProgress(
        run=PLAN.attempt.run,
        attempt=1,
        fencing_epoch=1,
        step=state.step,
        fingerprint="chaos",
        micro_batch_size=state.recovery.micro_batch_size,
        trained_token_count=state.trained_token_count,
    )


def digest(state: loop.TrainState) -> str:
    """Hash of the adapter's weights."""
    total = hashlib.sha256()
    for name, parameter in sorted(torch_model(state).trainable.items()):
        total.update(name.encode() + parameter.detach().numpy().tobytes())
    return total.hexdigest()


def same_end(resumed: Outcome, whole: Outcome) -> bool:
    """Whether a resumed run ended as the uninterrupted one, by curve and by hash."""
    return resumed.adapter == whole.adapter and resumed.losses == whole.losses[resumed.from_step :]


def kill_after_step(root: Path, step: int, *, delay_seconds: float) -> None:
    """Run in a child process and SIGKILL it a moment after it has finished `step` steps."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        state = begun(root)
        with writer_for(root) as checkpoints:
            while True:
                take(state, 1)
                checkpoints.save(progress(state), state, {})
                os.write(writer, b".")
    os.close(writer)
    for _ in range(step):
        os.read(reader, 1)
    time.sleep(delay_seconds)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(reader)


def say(line: str) -> None:
    """Show progress at once."""
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
