"""Time to the first step on a warm node against a cold one.

    python -m tests.bench.warmstart [--rounds 3] [--threads 2]

Measured is what the agent sees: from the plan sent to its training child until the child says that
the first step begins (the billable clock starts there). A model of half a billion parameters
(random weights in bfloat16), LoRA of rank 16 on all linear layers, 240 chat rows.

In each round a new child is started; the first run is cold, the second is warm:

- cold: the process starts, imports torch and transformers, loads base and data, puts the adapter
  on, tries the longest batch. The files come from the page cache, which favours the cold side.
- warm: the same base, adapter geometry and data in the same process, for another run.

How long a trial of the longest batch takes is a matter of the run and not of the load, and a warm
run need not repeat it. So there are three ratios: of all that a cold user waits for, of that
without the trial, and of the model's load alone (base read, adapter put on). That part stands there
by the processor's time as well, on both sides, which a busy machine does not stretch. The parts are
the child's own, out of the runs' logs; `rest` is what they leave of the time to the first step:
data, optimizer, messages, and in the warm runs the collection of the garbage of the run before.

In the first round two more warm runs follow: with other data, and with another rank. Proof: the
adapters of cold and warm runs have the same hash, and the loss of the step is the same.
"""

import argparse
import asyncio
import hashlib
import json
import os
import re
import statistics
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from deploy.models.anvil.grammar import HOME
from modelspec.recipe import Precision
from tests.bench import frame
from tests.bench.shapes import QWEN, write_checkpoint
from tests.support.training import a_plan, changed
from trainer.child import Child
from trainer.domain.plan import DatasetFile, TrainPlan
from trainer.pipe import Failed, Finished, Started, StepTaken

RATIO_GOAL = 20.0
RUN_SECONDS_MAX = 600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Taken:
    """What one run took and gave."""

    first_step_seconds: float
    model_seconds: float
    model_processor_seconds: float
    trial_seconds: float
    loss: float
    adapter_sha256: str

    @property
    def without_trial(self) -> float:
        """Seconds to the first step, less those of the longest batch's trial."""
        return self.first_step_seconds - self.trial_seconds

    def parts(self) -> dict[str, float]:
        """Where the seconds to the first step went."""
        return {
            "model": round(self.model_seconds, 3),
            "model_processor": round(self.model_processor_seconds, 3),
            "trial": round(self.trial_seconds, 3),
            "rest": round(self.without_trial - self.model_seconds, 3),
        }


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    with tempfile.TemporaryDirectory(prefix="warmstart-") as folder:
        write_base(Path(folder) / "base")
        asyncio.run(measure(Path(folder), rounds=options.rounds))


def write_base(folder: Path) -> None:
    """Writes the half-billion model; each of its tokens ends an answer.

    What is said after training is not measured, and random weights would find no end.
    """
    write_checkpoint(QWEN, folder)
    config = {**QWEN.config(), "eos_token_id": list(range(QWEN.vocabulary))}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")


async def measure(folder: Path, *, rounds: int) -> None:
    """All rounds, and their medians against each other."""
    plan = the_plan(folder)
    starts, colds, warms, others = [], list[Taken](), list[Taken](), dict[str, float]()
    for number in range(rounds):
        began = time.perf_counter()
        child = await Child.start(folder / "child.log")
        try:
            await child.ready()
            starts.append(time.perf_counter() - began)
            colds.append(await run(child, plan, folder, f"cold-{number}"))
            warms.append(await run(child, plan, folder, f"warm-{number}"))
            if number == 0:
                others = await variants(child, plan, folder)
        finally:
            await child.kill()
        frame.progress(
            f"round {number + 1}/{rounds}: start {starts[-1]:.2f} s, "
            f"cold {colds[-1].first_step_seconds:.2f} s, warm {warms[-1].first_step_seconds:.4f} s"
        )
    report(starts, colds, warms, others)


def report(
    starts: list[float], colds: list[Taken], warms: list[Taken], others: dict[str, float]
) -> None:
    """The medians of the rounds against each other, as the last line."""
    hashes = {taken.adapter_sha256 for taken in (*colds, *warms)}
    losses = {taken.loss for taken in (*colds, *warms)}
    same = len(hashes) == len(losses) == 1
    waited = [taken.first_step_seconds for taken in warms]
    whole = [s + taken.first_step_seconds for s, taken in zip(starts, colds, strict=True)]
    without_trial = [s + taken.without_trial for s, taken in zip(starts, colds, strict=True)]
    ratio, ratio_without_trial, ratio_of_load = (
        statistics.median(c / w for c, w in zip(cold, waited, strict=True))
        for cold in (whole, without_trial, [taken.model_seconds for taken in colds])
    )
    frame.finish(
        frame.Result(
            bench="warmstart",
            value=round(statistics.median(waited), 3),
            unit="s from plan to first step, warm",
            peer={
                "name": "the same in a new process: start, imports, load, without the trial of the "
                "longest batch",
                "value": round(statistics.median(without_trial), 3),
            },
            ratio=round(ratio_without_trial, 1),
            goal=f"ratio >= {RATIO_GOAL:.0f} without the trial, and the same adapter bit for bit",
            passed=ratio_without_trial >= RATIO_GOAL and same,
            proof={
                "parameters": QWEN.parameter_count,
                "rounds": len(warms),
                "ratio_with_the_trial": round(ratio, 1),
                "ratio_of_the_load_alone": round(ratio_of_load, 1),
                "ratio_of_the_load_by_processor_time": round(
                    statistics.median(
                        cold.model_processor_seconds / warm.model_processor_seconds
                        for cold, warm in zip(colds, warms, strict=True)
                    ),
                    1,
                ),
                "process_start_seconds": round(statistics.median(starts), 3),
                "cold_parts": [taken.parts() for taken in colds],
                "warm_parts": [taken.parts() for taken in warms],
                **{name: round(seconds, 3) for name, seconds in others.items()},
                "same_adapter_bit_for_bit": same,
                "adapter_sha256": sorted(hashes),
                "loss": sorted(losses),
                "load_average": os.getloadavg()[0],
            },
        )
    )


async def variants(child: Child, plan: TrainPlan, folder: Path) -> dict[str, float]:
    """Seconds to the first step of warm runs that cannot use everything that is warm."""
    lines = HOME.joinpath("habit.jsonl").read_text("utf-8").splitlines(keepends=True)
    path = folder / "other.jsonl"
    path.write_text("".join(reversed(lines)), "utf-8")
    data = await run(child, changed(plan, datasets=(dataset(path),)), folder, "data")
    adapter = replace(plan.build.adapter, rank=8, alpha=16.0)
    rank = await run(child, changed(plan, adapter=adapter), folder, "rank")
    return {
        "warm_with_other_data": data.first_step_seconds,
        "warm_with_another_rank": rank.first_step_seconds,
    }


async def run(child: Child, plan: TrainPlan, folder: Path, name: str) -> Taken:
    """Train one step under the name; how long the step was in coming."""
    work = folder / name
    work.mkdir()
    plan = changed(
        plan,
        run=f"projects/bench/runs/{name}",
        work_folder=str(work),
        log_path=str(folder / f"{name}.log"),
    )
    told: dict[type[Any], Any] = {}
    began, first = time.perf_counter(), 0.0
    async with asyncio.timeout(RUN_SECONDS_MAX):
        async for message in child.train(plan):
            if isinstance(message, Failed):
                raise SystemExit(f"the run failed: {message.message}")
            if isinstance(message, Started):
                first = time.perf_counter() - began
            told[type(message)] = message
    adapter = Path(told[Finished].adapter_folder) / "adapter_model.safetensors"
    log_path = Path(plan.places.log_path)
    return Taken(
        first_step_seconds=first,
        model_seconds=figure_in(log_path, "model_ready seconds"),
        model_processor_seconds=figure_in(log_path, "model_ready .* processor"),
        trial_seconds=figure_in(log_path, "longest_batch_tried seconds"),
        loss=told[StepTaken].loss,
        adapter_sha256=hashlib.sha256(adapter.read_bytes()).hexdigest(),
    )


def figure_in(log: Path, what: str) -> float:
    """A figure of the child's log."""
    found = re.search(rf"{what}=([0-9.]+)", log.read_text("utf-8"))
    assert found is not None, f"the log says nothing of {what}"
    return float(found.group(1))


def the_plan(folder: Path) -> TrainPlan:
    """One step of eight rows on the half-billion model; few tokens are spoken afterwards."""
    plan = a_plan(
        adapter_rank=16,
        adapter_alpha=32.0,
        precision=Precision.AUTO,
        accumulation_steps=1,
        micro_batch_size=8,
        max_steps=1,
        sample_prompts=("What color is a lemon?",),
        datasets=(dataset(HOME / "habit.jsonl"),),
    )
    base = replace(plan.base, folder=str(folder / "base"), digest=QWEN.name, base_model=QWEN.name)
    return changed(plan, base=base)


def dataset(path: Path) -> DatasetFile:
    """The file as the agent hands it to the child."""
    return DatasetFile(
        name=f"projects/bench/datasets/{path.stem}/versions/1",
        format="messages",
        path=str(path),
        digest=hashlib.sha256(path.read_bytes()).hexdigest(),
    )


if __name__ == "__main__":
    main()
