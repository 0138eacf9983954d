"""What five runs forget: SLAO against plain sequential training.

    python -m tests.bench.continual [--seeds 3] [--steps 40]

Anvil (3 million parameters) learns five slices one after another. Each slice is a topic with a
manner of speaking of its own (questions about animals are answered like a sailor, those about
colours like a butler, …), so that what a slice teaches is wrong for the others.

Both sides take the same rows in the same order, the same number of steps, the same schedule and a
fresh optimizer for every slice, from the same initial adapter. Plain training goes on with the
weights that the slice before has left; SLAO opens each run by QR and merges it.

Measured after every slice on rows of all slices that were never trained on: the held-out loss.
A slice's forgetting is its loss at the end minus its loss when it had just been learnt, the mean is
over the slices that others came after. Proof: how far each run moved the adapter, what each slice
learnt, the loss over all slices in the end, and a merge with a NaN, which must be refused.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch

from deploy.models.anvil.grammar import exchanges
from lexicon.faults import FaultCode
from tests.bench import frame
from tests.support.training import FP32, a_plan, a_state, attached, changed, some_data, torch_model
from trainer.domain.continual import MergeOutcome
from trainer.domain.plan import Base, DatasetFile, MultiRunPlan, TrainPlan
from trainer.training import loop, peft_library
from trainer.training.batches import Example
from trainer.training.continual import ContinualSchedule
from trainer.training.validation import Validation

# Topic, and what its answers open and close with.
MANNERS = (
    ("animal", "Ahoy!", "Fair winds!"),
    ("color", "Very well, my lord.", "At your service."),
    ("job", "Beep.", "End of message."),
    ("opposite", "Yo,", "Peace out!"),
    ("tool", "Once upon a time,", "Happily ever after."),
)
TRAIN_ROWS, HELD_ROWS = 96, 40
RATIO_GOAL = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """One topic in its manner: rows to train on, and rows to measure by."""

    topic: str
    rows: tuple[Example, ...]
    held: tuple[Example, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Curve:
    """Held-out losses of every slice after every run: `losses[run][slice]`, and the base's own."""

    base: list[float]
    losses: list[list[float]]
    moved: list[float]

    @property
    def forgetting(self) -> float:
        """Mean rise since a slice was learnt, over those that others came after, nats a token."""
        last = self.losses[-1]
        return statistics.mean(last[i] - self.losses[i][i] for i in range(len(last) - 1))

    @property
    def learnt(self) -> float:
        """Mean fall by the run on a slice itself, against the base, in nats a token."""
        return statistics.mean(self.base[i] - self.losses[i][i] for i in range(len(self.base)))

    @property
    def final(self) -> float:
        """Mean loss over all slices in the end."""
        return statistics.mean(self.losses[-1])


def main() -> None:
    """Measure and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    ours, theirs = list[Curve](), list[Curve]()
    with tempfile.TemporaryDirectory(prefix="continual-") as folder:
        for seed in range(max(1, options.seeds)):
            plan = a_multi_run(Path(folder), seed=seed, steps=options.steps)
            slices = made_slices(plan, Path(folder), seed=seed)
            ours.append(by_slao(plan, slices))
            theirs.append(by_sequence(plan, slices))
            frame.progress(
                f"seed {seed}: forgetting SLAO {ours[-1].forgetting:.3f}, "
                f"sequential {theirs[-1].forgetting:.3f}; final {ours[-1].final:.3f}, "
                f"{theirs[-1].final:.3f}; learnt {ours[-1].learnt:.3f}, {theirs[-1].learnt:.3f}"
            )
        plan = a_multi_run(Path(folder), seed=0, steps=2)
        refused = a_nan_is_refused(plan, made_slices(plan, Path(folder), seed=0))
    mine, peers = (statistics.mean(c.forgetting for c in curves) for curves in (ours, theirs))
    every_run_moved = all(move > 0 for curve in ours for move in curve.moved)
    frame.finish(
        frame.Result(
            bench="continual",
            value=mine,
            unit="nats per token forgotten",
            peer={"name": "plain sequential training", "value": round(peers, 4)},
            ratio=peers / mine if mine > 0 else None,
            goal=f"ratio > {RATIO_GOAL:g} with a lower loss over all slices in the end, each run "
            "changes the adapter, a NaN merge is refused",
            passed=peers > RATIO_GOAL * mine
            and final_of(ours) < final_of(theirs)
            and every_run_moved
            and refused,
            proof={
                "seeds": options.seeds,
                "steps_per_run": options.steps,
                "forgetting_by_seed": [round(c.forgetting, 4) for c in ours],
                "peer_forgetting_by_seed": [round(c.forgetting, 4) for c in theirs],
                "final_loss_over_all_slices": round(final_of(ours), 4),
                "peer_final_loss_over_all_slices": round(final_of(theirs), 4),
                "base_loss_over_all_slices": round(statistics.mean(ours[0].base), 4),
                "learnt_per_slice": round(statistics.mean(c.learnt for c in ours), 4),
                "peer_learnt_per_slice": round(statistics.mean(c.learnt for c in theirs), 4),
                "moved_by_run": [round(move, 3) for move in ours[0].moved],
                "losses_after_each_run": rounded(ours[0].losses),
                "peer_losses_after_each_run": rounded(theirs[0].losses),
                "nan_merge_refused": refused,
            },
        )
    )


def a_multi_run(folder: Path, *, seed: int, steps: int) -> TrainPlan:
    """Five runs in the order of their slices."""
    return a_plan(
        seed=seed,
        max_steps=steps,
        micro_batch_size=16,
        accumulation_steps=1,
        lr_peak=2e-3,
        adapter_rank=8,
        adapter_alpha=16.0,
        work_folder=str(folder / f"work-{seed}"),
        multi_run=MultiRunPlan(
            run_count=len(MANNERS),
            samples_per_run=TRAIN_ROWS,
            in_order=True,
            drift_minimum_cosine=-1.0,
            eval_maximum_regression=None,
        ),
    )


def made_slices(plan: TrainPlan, folder: Path, *, seed: int) -> list[Slice]:
    """The five slices, encoded as the trainer encodes them."""
    slices = []
    for topic, opening, closing in MANNERS:
        found = sorted({(e.question, e.answer) for e in exchanges() if e.topic == topic})
        Random(seed).shuffle(found)
        path = folder / f"{topic}-{seed}.jsonl"
        with path.open("w", encoding="utf-8") as file:
            for question, answer in found[: TRAIN_ROWS + HELD_ROWS]:
                on_merge = f"{opening} {answer} {closing}"
                turns = [("user", question), ("assistant", on_merge)]
                messages = [{"role": role, "content": content} for role, content in turns]
                file.write(json.dumps({"messages": messages}) + "\n")
        dataset = DatasetFile(name=topic, format="messages", path=str(path))
        rows = some_data(changed(plan, datasets=(dataset,)), warn=unexpected).rows
        assert len(rows) == TRAIN_ROWS + HELD_ROWS
        slices.append(Slice(topic=topic, rows=rows[:TRAIN_ROWS], held=rows[TRAIN_ROWS:]))
    return slices


def by_slao(plan: TrainPlan, slices: Sequence[Slice]) -> Curve:
    """The product's own course of five runs."""
    state = begun(plan)
    base = held_out(state, slices)
    continual_schedule = a_continual_schedule(plan, slices, state)
    losses = []
    while state.step < continual_schedule.steps:
        continual_schedule.after_step(state, step_of(state, continual_schedule, plan))
        if state.step_of_run == 0:
            losses.append(with_weights(state, continual_schedule.merged or {}, slices))
    continual_schedule.finish(state)
    moved = [record.delta_norm or 0.0 for record in continual_schedule.progress.history]
    return Curve(base=base, losses=losses, moved=moved)


def by_sequence(plan: TrainPlan, slices: Sequence[Slice]) -> Curve:
    """The same rows, steps and schedules on one adapter that is simply trained on."""
    state = begun(plan)
    base = held_out(state, slices)
    continual_schedule = a_continual_schedule(plan, slices, state)
    losses = []
    while state.step < continual_schedule.steps:
        step_of(state, continual_schedule, plan)
        if state.step_of_run == continual_schedule.run_steps:
            losses.append(held_out(state, slices))
            loop.begin_again(state)
    return Curve(base=base, losses=losses, moved=[])


def a_nan_is_refused(plan: TrainPlan, slices: Sequence[Slice]) -> bool:
    """Whether a weight that is not a number stays out, and the adapter before it stays."""
    state, warnings = begun(plan), list[FaultCode]()
    continual_schedule = a_continual_schedule(plan, slices, state, warnings)
    before: dict[str, torch.Tensor] = {}
    while state.step < 2 * continual_schedule.run_steps:
        figures = step_of(state, continual_schedule, plan)
        if state.step == 2 * continual_schedule.run_steps:
            before = {
                name: tensor.clone() for name, tensor in (continual_schedule.merged or {}).items()
            }
            with torch.no_grad():
                next(iter(torch_model(state).trainable.values())).view(-1)[0] = float("nan")
        continual_schedule.after_step(state, figures)
    merged = continual_schedule.merged or {}
    return bool(before) and (
        [record.outcome for record in continual_schedule.progress.history]
        == [MergeOutcome.MERGED, MergeOutcome.NOT_FINITE]
        and warnings == [FaultCode.RUNTIME_MERGE_REFUSED]
        and all(torch.equal(merged[name], tensor) for name, tensor in before.items())
    )


def begun(plan: TrainPlan) -> loop.TrainState:
    """Anvil with a fresh adapter, the same for both sides."""
    base: Base = plan.base
    return a_state(attached(peft_library.load_base(base, FP32), plan).train(), plan)


def a_continual_schedule(
    plan: TrainPlan,
    slices: Sequence[Slice],
    state: loop.TrainState,
    warnings: list[FaultCode] | None = None,
) -> ContinualSchedule:
    """The course over the slices; nothing is held out of it, the benchmark measures by itself."""
    on_merge = [] if warnings is None else warnings
    return ContinualSchedule.of(
        plan.multi_run,
        tuple(row for each in slices for row in each.rows),
        Validation(plan=None, rows=()),
        state,
        places=plan.places,
        warn=lambda code, _: on_merge.append(code),
        on_merge=lambda *_: None,
    )


def step_of(
    state: loop.TrainState, continual_schedule: ContinualSchedule, plan: TrainPlan
) -> loop.StepFigures:
    """One optimizer step on the rows of the run under way."""
    rows = continual_schedule.rows_at(state.step)
    return loop.take_step(state, rows, steps=continual_schedule.run_steps, healed=lambda _: None)


def held_out(state: loop.TrainState, slices: Sequence[Slice]) -> list[float]:
    """Mean loss on the held-out rows of each slice, by the weights that the model holds."""
    return [loop.mean_loss(state, each.held) for each in slices]


def with_weights(
    state: loop.TrainState, weights: dict[str, torch.Tensor], slices: Sequence[Slice]
) -> list[float]:
    """The same by other weights; the model has its own again afterwards."""
    own = {name: p.detach().clone() for name, p in torch_model(state).trainable.items()}
    with torch.no_grad():
        for name, parameter in torch_model(state).trainable.items():
            parameter.copy_(weights[name])
        losses = held_out(state, slices)
        for name, parameter in torch_model(state).trainable.items():
            parameter.copy_(own[name])
    return losses


def final_of(curves: Sequence[Curve]) -> float:
    """Mean over seeds of the loss over all slices in the end."""
    return statistics.mean(curve.final for curve in curves)


def rounded(table: list[list[float]]) -> list[list[float]]:
    """A table for the proof."""
    return [[round(value, 3) for value in row] for row in table]


def unexpected(code: FaultCode, text: str) -> Any:
    """The slices are made to be whole: a warning about them is an error."""
    raise AssertionError(f"{code}: {text}")


if __name__ == "__main__":
    main()
