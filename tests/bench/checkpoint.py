"""What a durable checkpoint after every step costs, against transformers.Trainer saving every step.

    python -m tests.bench.checkpoint [--pairs 48] [--saves 200] [--peer-steps 24]

The model, adapter and rows of `tests.bench.packing`: a Qwen2 shape of 35 million parameters, whose
checkpoint holds 16 MB of weights and moments. Each step of ours is taken twice in a row, once while
the checkpoint of the step before it is written and once without, in turning order; the cost is the
median over the pairs of what the first took longer.

The stall is all that the training thread waits for a checkpoint: in `save`, where it lends the
tensors and waits for the checkpoint before this one, and before the update, where it waits for the
copy. For its 99th percentile as many steps follow one another as make `--saves` in all, each with a
checkpoint. The peer saves its usual full output and waits for it; it does not flush to the disk.

Processor time stands beside the clock: it is what the cost would be without an idle core to write
on, and the figure to look at where other programs run beside the benchmark.
"""

import argparse
import gc
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainingArguments

from lexicon.faults import Fault
from tests.bench import frame
from tests.bench.packing import BATCH, PLAN, a_model, a_stock_model, alpaca_like
from tests.support.peer_trainer import Figures, collate
from tests.support.training import a_state
from trainer.training import checkpoint, loop
from trainer.training.attention import SEGMENTED
from trainer.training.batches import Row
from trainer.training.compute_precision import threads_for
from trainer.training.writer import CheckpointWriter

ROWS = 96
STEPS = ROWS // BATCH
COST_GOAL, STALL_GOAL_SECONDS = 0.02, 0.005
KEPT = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Stall:
    """Seconds that training waited for one checkpoint, and the processor's in `save`."""

    in_save: float
    before_update: float
    processor: float

    @property
    def whole(self) -> float:
        """By the clock, in both places."""
        return self.in_save + self.before_update


class Ours:
    """Our loop, a step at a time, with checkpoints or without."""

    def __init__(self, rows: tuple[Row, ...], root: Path) -> None:
        self._rows = rows
        self._state = a_state(a_model(SEGMENTED), PLAN)
        self._checkpoint_count = 0
        self._before_update = 0.0
        self.root = root
        self.durable: list[int] = []
        self.stalls: list[Stall] = []
        self.writer = CheckpointWriter(root, written=self._written, failed=_failed)

    def step(self, index: int) -> None:
        """Take step `index` of an epoch."""
        self._state.step = index
        loop.take_step(self._state, self._rows, steps=STEPS, healed=lambda _: None)

    def saving_step(self, index: int) -> None:
        """The same while the checkpoint of the step before it is written."""
        began, began_processor = time.perf_counter(), time.thread_time()
        self._checkpoint_count += 1
        self.writer.save(self._progress(self._checkpoint_count), self, {})
        in_save, processor = time.perf_counter() - began, time.thread_time() - began_processor
        self.step(index)
        self.stalls.append(
            Stall(in_save=in_save, before_update=self._before_update, processor=processor)
        )

    def borrow(self, release: Callable[[], None]) -> dict[str, torch.Tensor]:
        """The state's tensors, for the writer; how long the state waits for them is noted."""

        def timed() -> None:
            began = time.perf_counter()
            release()
            self._before_update = time.perf_counter() - began

        return self._state.borrow(timed)

    def prove(self) -> None:
        """Read the last checkpoint back and compare it with what training holds now."""
        self.writer.save(self._progress(self._checkpoint_count + 1), self._state, {})
        self.writer.wait()
        _, tensors = checkpoint.read(
            _folders(self.root)[-1], run=PLAN.attempt.run, fingerprint="bench"
        )
        live = loop.live(self._state)
        assert tensors.keys() == live.keys()
        assert all(torch.equal(tensors[name], tensor) for name, tensor in live.items())

    def _progress(self, step: int) -> checkpoint.TrainingProgress:
        return checkpoint.TrainingProgress(
            run=PLAN.attempt.run,
            attempt=1,
            fencing_epoch=1,
            step=step,
            fingerprint="bench",
            micro_batch_size=BATCH,
            trained_token_count=0,
        )

    def _written(self, step: int, folder: Path) -> None:
        self.durable.append(step)
        for older in _folders(folder.parent)[:-KEPT]:
            shutil.rmtree(older)


class SavingTrainer(Trainer):
    """Their trainer, with the seconds of each of its saves."""

    save_seconds: list[float]

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        began = time.perf_counter()
        super()._save_checkpoint(model, trial)
        self.save_seconds.append(time.perf_counter() - began)


def main() -> None:
    """Measure ours step by step, then theirs, and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=48)
    parser.add_argument("--saves", type=int, default=200)
    parser.add_argument("--peer-steps", type=int, default=24)
    options = parser.parse_args()
    torch.set_num_threads(threads_for(512, available=os.cpu_count() or 1))
    # As the training child does it after its imports.
    gc.collect()
    gc.freeze()
    rows = alpaca_like(ROWS)
    with tempfile.TemporaryDirectory(prefix="tunesmith-checkpoint-") as name:
        ours = Ours(rows, Path(name) / "ours")
        pairs = measure(ours, options.pairs)
        save_every_step(ours, options.saves)
        with ours.writer:
            ours.prove()
        size = sum(path.stat().st_size for path in _folders(ours.root)[-1].iterdir())
        theirs = measure_peer(rows, Path(name) / "theirs", options.peer_steps)
    cost = added_share(pairs, clock=0)
    stalls = [stall.whole for stall in ours.stalls]
    stall = percentile(stalls, 99)
    frame.finish(
        frame.Result(
            bench="checkpoint",
            value=round(100 * cost, 2),
            unit="% of a step",
            peer=theirs,
            ratio=round(theirs["p99_stall_ms"] / (1000 * stall), 1),
            goal=f"cost <= {COST_GOAL:.0%} of a step, "
            f"p99 stall <= {1000 * STALL_GOAL_SECONDS:g} ms",
            passed=cost <= COST_GOAL and stall <= STALL_GOAL_SECONDS,
            proof={
                "pairs": len(pairs),
                "step_seconds": round(statistics.median(plain[0] for plain, _ in pairs), 3),
                "added_processor_time_percent": round(100 * added_share(pairs, clock=1), 2),
                "p99_stall_ms": round(1000 * stall, 2),
                "median_stall_ms": round(1000 * statistics.median(stalls), 2),
                "largest_stall_ms": round(1000 * max(stalls), 2),
                "stalls": len(stalls),
                "p99_in_save_ms": p99_ms(each.in_save for each in ours.stalls),
                "p99_before_update_ms": p99_ms(each.before_update for each in ours.stalls),
                "p99_in_save_processor_ms": p99_ms(each.processor for each in ours.stalls),
                "durable_checkpoints": len(ours.durable),
                "checkpoint_bytes": size,
                "read_back_equal": True,
                "load_average": os.getloadavg()[0],
            },
        )
    )


Clocks = tuple[float, float]


def measure(ours: Ours, count: int) -> list[tuple[Clocks, Clocks]]:
    """(without, with) a checkpoint for each pair of steps, by the clock and the processor."""
    ours.step(0)
    ours.saving_step(0)
    ours.stalls.clear()
    pairs = []
    for number in range(count):
        index = number % STEPS
        if number % 2:
            plain, saving = timed(ours.step, index), timed(ours.saving_step, index)
        else:
            saving = timed(ours.saving_step, index)
            ours.writer.wait()
            plain = timed(ours.step, index)
        ours.writer.wait()
        pairs.append((plain, saving))
        frame.progress(
            f"pair {number + 1}/{count}: {plain[0]:.3f} s, saving {saving[0]:.3f} s, "
            f"stall {1000 * ours.stalls[-1].whole:.1f} ms"
        )
    return pairs


def save_every_step(ours: Ours, count: int) -> None:
    """Take steps with a checkpoint each, as a run does, until `count` stalls are noted."""
    for number in range(len(ours.stalls), count):
        ours.saving_step(number % STEPS)
        if number % 50 == 0:
            frame.progress(f"{number}/{count} checkpoints")


def timed(work: Callable[[int], None], index: int) -> Clocks:
    """Seconds of the clock and of all this process's threads."""
    began, processor = time.perf_counter(), time.process_time()
    work(index)
    return time.perf_counter() - began, time.process_time() - processor


def added_share(pairs: list[tuple[Clocks, Clocks]], *, clock: int) -> float:
    """Median over the pairs of the added time as a share of the step's."""
    return statistics.median(saving[clock] / plain[clock] - 1 for plain, saving in pairs)


def measure_peer(rows: tuple[Row, ...], folder: Path, steps: int) -> dict[str, Any]:
    """What saving every step costs transformers.Trainer."""
    figures = Figures()
    trainer = SavingTrainer(
        model=a_stock_model(),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=BATCH,
            learning_rate=PLAN.optimisation.lr_peak,
            save_strategy="steps",
            save_steps=1,
            save_total_limit=KEPT,
            logging_steps=1,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=PLAN.batches.seed,
        ),
        train_dataset=list(rows),
        data_collator=lambda chosen: collate(chosen, figures),
    )
    trainer.save_seconds = []
    began = time.perf_counter()
    trainer.train()
    saving = sum(trainer.save_seconds)
    training = time.perf_counter() - began - saving
    return {
        "name": "transformers.Trainer, save_steps=1, not flushed to the disk",
        "value": round(100 * saving / training, 2),
        "p99_stall_ms": round(1000 * percentile(trainer.save_seconds, 99), 1),
        "median_stall_ms": round(1000 * statistics.median(trainer.save_seconds), 1),
        "step_seconds": round(training / steps, 3),
    }


def p99_ms(seconds: Iterable[float]) -> float:
    """The 99th percentile in milliseconds."""
    return round(1000 * percentile(list(seconds), 99), 2)


def percentile(values: list[float], percent: int) -> float:
    """The smallest value that `percent` % of all do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, -(-len(ordered) * percent // 100) - 1)]


def _folders(root: Path) -> list[Path]:
    return sorted(root.glob("step-*[0-9]"))


def _failed(fault: Fault) -> None:
    raise fault


if __name__ == "__main__":
    main()
