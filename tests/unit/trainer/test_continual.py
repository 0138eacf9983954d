"""Continual training on a tiny model: every run learns, merges follow the formula, gates hold."""

import itertools
import json
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from lexicon.faults import Fault, FaultCode
from tests.support.training import (
    a_plan,
    a_state,
    a_tiny_model,
    attached,
    changed,
    some_rows,
    torch_model,
)
from trainer.domain.continual import MergeOutcome, MergeRecord
from trainer.domain.plan import MultiRunPlan, TrainPlan, ValidationPlan
from trainer.training import checkpoint, history, loop, slao
from trainer.training.continual import MERGED_PREFIX, TUNED_PREFIX, ContinualSchedule
from trainer.training.validation import BEST_PREFIX, Validation

RUNS = MultiRunPlan(
    run_count=3,
    samples_per_run=8,
    in_order=True,
    drift_minimum_cosine=-1.0,
    eval_maximum_regression=None,
)
HOLDOUT = ValidationPlan(
    holdout_ratio=0.1, dataset=None, every_steps=0, early_stop_patience=0, early_stop_min_delta=0.0
)
POOL = some_rows(40)
HELD = some_rows(4, seed=9)
Poison = Callable[[loop.TrainState, int], None]


@dataclass(slots=True)
class Trial:
    """A continual training by hand: the loop of `run.py` without its pipe."""

    plan: TrainPlan
    held: tuple[Any, ...] = HELD
    rows: tuple[Any, ...] = POOL
    warnings: list[tuple[FaultCode, str]] = field(default_factory=list)
    on_merge: list[tuple[MergeRecord, Path | None]] = field(default_factory=list)
    state: Any = None
    continual_schedule: Any = None

    def __post_init__(self) -> None:
        self.state = a_state(attached(a_tiny_model(), self.plan).train(), self.plan)
        validation = Validation(plan=self.plan.data.validation, rows=self.held)
        self.continual_schedule = ContinualSchedule.of(
            self.plan.multi_run,
            self.rows,
            validation,
            self.state,
            places=self.plan.places,
            warn=lambda code, text: self.warnings.append((code, text)),
            on_merge=lambda record, path: self.on_merge.append((record, path)),
        )

    def train(self, *, until: int | None = None, poison: Poison | None = None) -> None:
        """Take the steps that are left, or those up to `until`."""
        state, continual_schedule = self.state, self.continual_schedule
        while state.step < (continual_schedule.steps if until is None else until):
            figures = loop.take_step(
                state,
                continual_schedule.rows_at(state.step),
                steps=continual_schedule.run_steps,
                healed=lambda _: None,
            )
            if poison:
                poison(state, state.step)
            continual_schedule.after_step(state, figures)
            if continual_schedule.validation.wants_stop:
                break

    def weights(self) -> dict[str, torch.Tensor]:
        return {name: p.detach().clone() for name, p in torch_model(self.state).trainable.items()}

    @property
    def outcomes(self) -> list[MergeOutcome]:
        return [record.outcome for record in self.continual_schedule.progress.history]


def a_multi_run(
    folder: Path, validation: ValidationPlan | None = HOLDOUT, **gates: Any
) -> TrainPlan:
    return a_plan(
        multi_run=replace(RUNS, **gates),
        validation=validation,
        max_steps=2,
        micro_batch_size=8,
        accumulation_steps=1,
        warmup_ratio=0.0,
        work_folder=str(folder),
    )


def are_equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensor, second[name]) for name, tensor in first.items())


def test_each_of_five_runs_changes_the_adapter(tmp_path: Path) -> None:
    """002-22: and acceptance 7 of the continual training: no run passes without a trace"""
    trial, adapters = Trial(a_multi_run(tmp_path, run_count=5)), []
    for number in range(1, 6):
        trial.train(until=2 * number)
        adapters.append(trial.continual_schedule.merged)
    assert trial.outcomes == [MergeOutcome.MERGED] * 5
    moves = [slao.distance(a, b) for a, b in itertools.pairwise(adapters)]
    assert min(moves) > 1e-3
    assert all((record.delta_norm or 0.0) > 1e-3 for record, _ in trial.on_merge)
    weights = [record.weight for record, _ in trial.on_merge]
    assert weights == pytest.approx([1, 2**-0.5, 3**-0.5, 0.5, 5**-0.5])


def test_merges_follow_the_formula_and_the_next_run_opens_by_qr(tmp_path: Path) -> None:
    """Qiao and Mahdavi 2025, arXiv:2512.23017, algorithm 1"""
    ends: list[dict[str, torch.Tensor]] = []
    trial = Trial(a_multi_run(tmp_path))

    def note(_: loop.TrainState, step: int) -> None:
        if step % 2 == 0:
            ends.append(trial.weights())

    trial.train(until=4, poison=note)
    first, second = ends
    opened = trial.weights()
    for name, tensor in trial.continual_schedule.merged.items():
        if "lora_B" in name:
            assert torch.allclose(tensor, first[name] + 2**-0.5 * (second[name] - first[name]))
            assert torch.equal(opened[name], second[name])
        else:
            assert torch.equal(tensor, second[name])
            rank = tensor.shape[0]
            assert torch.allclose(opened[name] @ opened[name].T, torch.eye(rank), atol=1e-5)
    assert trial.state.step_of_run == 0
    moments = torch_model(trial.state).updater.optimizer.state.values()
    assert all(not each["exp_avg"].any() for each in moments)


def test_steps_count_on_and_every_run_has_its_own_rows_and_schedule(tmp_path: Path) -> None:
    trial = Trial(changed(a_multi_run(tmp_path), max_steps=0, epochs=2))
    continual_schedule = trial.continual_schedule
    # Eight samples are one step of eight; two passes a run, three runs.
    assert (continual_schedule.run_steps, continual_schedule.steps, continual_schedule.epochs) == (
        2,
        6,
        6,
    )
    assert [continual_schedule.epoch_of(step) for step in range(1, 7)] == list(range(1, 7))
    seen = [continual_schedule.rows_at(step) for step in range(6)]
    assert [rows == POOL[8 * (step // 2) : 8 * (step // 2) + 8] for step, rows in enumerate(seen)]
    rates: list[float] = []
    for _ in range(4):
        figures = loop.take_step(trial.state, POOL[:8], steps=2, healed=lambda _: None)
        rates.append(figures.learning_rate)
        continual_schedule.after_step(trial.state, figures)
    assert rates[:2] == rates[2:]


def test_an_ordinary_training_is_a_course_of_one_run(tmp_path: Path) -> None:
    trial = Trial(a_plan(work_folder=str(tmp_path)), rows=POOL[:20])
    assert (
        trial.continual_schedule.run_steps,
        trial.continual_schedule.steps,
        trial.continual_schedule.epochs,
    ) == (3, 3, 1)
    trial.train()
    before = trial.weights()
    trial.continual_schedule.finish(trial.state)
    assert are_equal(before, trial.weights())
    assert trial.continual_schedule.document() is None
    assert trial.continual_schedule.tensors() == {}
    assert write_history(trial, tmp_path) is None


def test_a_merge_that_is_not_finite_is_refused_and_the_adapter_stays(tmp_path: Path) -> None:
    """002-22: the runs after it go on from the last good one"""
    trial = Trial(a_multi_run(tmp_path))
    trial.train(until=2)
    good = trial.continual_schedule.merged

    def overflow(state: loop.TrainState, step: int) -> None:
        if step == 4:
            with torch.no_grad():
                next(iter(torch_model(state).trainable.values())).view(-1)[0] = float("nan")

    trial.train(until=4, poison=overflow)
    assert trial.outcomes == [MergeOutcome.MERGED, MergeOutcome.NOT_FINITE]
    assert are_equal(trial.continual_schedule.merged, good)
    (warned,) = trial.warnings
    assert warned[0] is FaultCode.RUNTIME_MERGE_REFUSED
    assert "Run 2 of 3 was not merged" in warned[1]
    assert slao.is_finite(trial.weights())
    trial.train()
    trial.continual_schedule.finish(trial.state)
    assert trial.outcomes[2:] == [MergeOutcome.MERGED]
    # Lambda counts the runs that are in the adapter, so run 3 is the second of them.
    assert trial.continual_schedule.progress.history[2].weight == pytest.approx(2**-0.5)
    json.dumps(trial.continual_schedule.document(), allow_nan=False)


def test_the_drift_gate_keeps_the_adapter_and_says_so(tmp_path: Path) -> None:
    trial = Trial(a_multi_run(tmp_path, drift_minimum_cosine=1.0))
    trial.train()
    trial.continual_schedule.finish(trial.state)
    assert trial.outcomes == [MergeOutcome.MERGED, *[MergeOutcome.DRIFTED] * 2]
    assert [code for code, _ in trial.warnings] == [FaultCode.RUNTIME_MERGE_REFUSED] * 2
    kept = trial.continual_schedule.progress.history
    assert all(record.drift_cosine < 1.0 for record in kept[1:])
    assert all(record.held_out_loss_after is None for record in kept[1:])
    first = load_file(tmp_path / "merges" / "run-001" / "adapter_model.safetensors")
    final = {name.replace(".default", ""): tensor for name, tensor in trial.weights().items()}
    assert are_equal(final, first)


def test_the_eval_gate_refuses_what_the_held_out_rows_lose_by(tmp_path: Path) -> None:
    """Held out are the rows of run 1: what other rows teach costs them."""
    plan = a_multi_run(tmp_path, eval_maximum_regression=0.0, run_count=2)
    trial = Trial(changed(plan, max_steps=12), held=POOL[:8])
    trial.train()
    first, second = trial.continual_schedule.progress.history
    assert first.held_out_loss_after < first.held_out_loss_before
    assert second.outcome is MergeOutcome.REGRESSED
    assert second.held_out_loss_after > second.held_out_loss_before == first.held_out_loss_after
    assert trial.continual_schedule.progress.held_out_loss == first.held_out_loss_after
    assert trial.continual_schedule.validation.latest_loss == first.held_out_loss_after


def test_validation_without_memory_leaves_train_mode_and_the_next_run_learns(
    tmp_path: Path,
) -> None:
    """002-21"""
    plan = a_multi_run(tmp_path, eval_maximum_regression=1.0)
    trial = Trial(changed(plan, micro_batch_size=1, accumulation_steps=8))
    backbone = torch_model(trial.state).module.get_base_model().model
    forward = backbone.forward

    def without_memory(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    def fill_memory(_: loop.TrainState, step: int) -> None:
        if step == 2:
            backbone.forward = without_memory

    trial.train(until=2, poison=fill_memory)
    assert torch_model(trial.state).module.training
    assert trial.outcomes == [MergeOutcome.NOT_VALIDATED]
    backbone.forward = forward
    trial.train(until=4)
    assert trial.outcomes == [MergeOutcome.NOT_VALIDATED, MergeOutcome.MERGED]
    assert trial.continual_schedule.progress.history[1].delta_norm > 1e-3


def test_a_run_that_moves_nothing_ends_the_training(tmp_path: Path) -> None:
    """002-22"""
    trial = Trial(changed(a_multi_run(tmp_path), lr_peak=0.0))
    with pytest.raises(Fault, match="Run 1 of 3 ended, but it has moved no weight") as caught:
        trial.train()
    assert caught.value.code is FaultCode.RUNTIME_ADAPTER_UNCHANGED


def test_flat_losses_from_run_two_on_are_flagged(tmp_path: Path) -> None:
    """002-22"""
    trial = Trial(changed(a_multi_run(tmp_path), lr_peak=1e-9))
    trial.train()
    flat = replace(trial.continual_schedule.progress.history[1], loss_begin=2.0, loss_end=2.0)
    progress = trial.continual_schedule.progress
    trial.continual_schedule.progress = replace(
        progress, history=(progress.history[0], *[flat] * 2)
    )
    trial.continual_schedule.finish(trial.state)
    assert trial.warnings[-1][0] is FaultCode.RUNTIME_ADAPTER_UNCHANGED
    assert "flat from run 2 on" in trial.warnings[-1][1]


def test_no_merge_at_all_is_a_failure_with_its_reasons(tmp_path: Path) -> None:
    trial = Trial(a_multi_run(tmp_path, run_count=2))

    def overflow(state: loop.TrainState, step: int) -> None:
        if step % 2 == 0:
            with torch.no_grad():
                next(iter(torch_model(state).trainable.values())).fill_(float("inf"))

    trial.train(poison=overflow)
    with pytest.raises(Fault, match=r"No run was merged\. Run 1 of 2") as caught:
        trial.continual_schedule.finish(trial.state)
    assert caught.value.code is FaultCode.RUNTIME_MERGE_REFUSED


def test_a_run_that_is_cut_short_is_folded_in(tmp_path: Path) -> None:
    trial = Trial(a_multi_run(tmp_path))
    trial.train(until=3)
    trial.continual_schedule.finish(trial.state)
    assert [record.step_count for record in trial.continual_schedule.progress.history] == [2, 1]
    assert are_equal(trial.continual_schedule.merged, trial.weights())


def test_a_stop_before_a_run_has_moved_anything_keeps_the_runs_before_it(tmp_path: Path) -> None:
    """As when fp16 skips the first step of a run, and the user stops it then."""
    trial = Trial(a_multi_run(tmp_path))
    trial.train(until=2)
    trial.state.step += 1
    trial.continual_schedule.finish(trial.state)
    assert trial.outcomes == [MergeOutcome.MERGED]
    assert are_equal(trial.continual_schedule.merged, trial.weights())


def test_patience_counts_runs_and_the_best_adapter_is_promoted(tmp_path: Path) -> None:
    patient = replace(HOLDOUT, early_stop_patience=1)
    plan = changed(a_multi_run(tmp_path, patient), max_steps=12)
    trial = Trial(plan, held=POOL[:8])
    trial.train()
    assert len(trial.outcomes) == 2
    trial.continual_schedule.finish(trial.state)
    first = load_file(tmp_path / "merges" / "run-001" / "adapter_model.safetensors")
    final = {name.replace(".default", ""): tensor for name, tensor in trial.weights().items()}
    assert are_equal(final, first)


def test_more_samples_than_the_pool_are_a_clean_error(tmp_path: Path) -> None:
    """002-20"""
    with pytest.raises(Fault, match="samples_per_run exceeds training pool: 41 of 40") as caught:
        Trial(a_multi_run(tmp_path, samples_per_run=41))
    assert caught.value.code is FaultCode.CONFIG_INVALID
    assert caught.value.remedy == "Reduce --samples (Python: samples_per_run) below 40"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Trial:
    """A training with dropout that nothing interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    trial = Trial(changed(a_multi_run(folder), adapter=a_plan(adapter_dropout=0.1).build.adapter))
    trial.train()
    trial.continual_schedule.finish(trial.state)
    return trial


@pytest.mark.parametrize("at_step", [1, 2, 3, 6])
def test_a_resumed_training_is_the_same_bit_for_bit(
    whole: Trial, tmp_path: Path, at_step: int
) -> None:
    """001-24, 002-34: in the middle of a run, right after a merge, and at the end"""
    first = Trial(changed(whole.plan, work_folder=str(tmp_path / "first")))
    first.train(until=at_step)
    folder = write_checkpoint(first, tmp_path / "store")
    if at_step > 1:
        (tmp_path / "first" / "merges").rename(tmp_path / "store" / "merges")
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["progress"]["run"] == first.plan.attempt.run
    assert len(manifest["progress"]["course"]["history"]) == at_step // 2

    second = Trial(
        changed(whole.plan, work_folder=str(tmp_path / "second"), checkpoint_folder=str(folder))
    )
    resume(second, folder)
    second.train()
    second.continual_schedule.finish(second.state)
    assert are_equal(second.weights(), whole.weights())
    assert second.continual_schedule.progress == whole.continual_schedule.progress
    assert [record for record, _ in second.on_merge] == [record for record, _ in whole.on_merge]
    assert not second.warnings
    for record in whole.continual_schedule.progress.history:
        one, other = (history.file_of(trial.plan.places, record) for trial in (whole, second))
        assert one is not None
        assert other is not None
        assert one.read_bytes() == other.read_bytes()


def test_a_lost_adapter_costs_the_way_back_and_no_more(tmp_path: Path) -> None:
    first = Trial(a_multi_run(tmp_path / "first"))
    first.train(until=5)
    folder = write_checkpoint(first, tmp_path / "store")
    second = Trial(
        changed(first.plan, work_folder=str(tmp_path / "second"), checkpoint_folder=str(folder))
    )
    resume(second, folder)
    assert [code for code, _ in second.warnings] == [FaultCode.STATE_CHECKPOINT_INVALID] * 2
    assert [record.sha256 for record, _ in second.on_merge] == ["", ""]
    second.train()
    second.continual_schedule.finish(second.state)
    assert second.outcomes == [MergeOutcome.MERGED] * 3


def test_a_disk_that_refuses_an_adapter_does_not_end_the_training(tmp_path: Path) -> None:
    trial = Trial(a_multi_run(tmp_path))
    (tmp_path / "merges").write_text("in the way")
    trial.train(until=4)
    assert trial.outcomes == [MergeOutcome.MERGED] * 2
    assert [code for code, _ in trial.warnings] == [FaultCode.STORAGE_FULL] * 2
    assert [path for _, path in trial.on_merge] == [None, None]


@contextmanager
def a_full_disk(*, after_bytes: int) -> Iterator[None]:
    """No file of this process can grow further: a write stops in the middle with an error."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (after_bytes, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


def test_half_an_adapter_never_stays(tmp_path: Path) -> None:
    """What lies in the folder becomes the artifact, so nothing may lie there that is not whole."""
    trial = Trial(a_multi_run(tmp_path))
    with a_full_disk(after_bytes=4096):
        trial.train(until=2)
    trial.train(until=4)
    assert [code for code, _ in trial.warnings] == [FaultCode.STORAGE_FULL]
    assert [bool(record.sha256) for record, _ in trial.on_merge] == [False, True]
    left = [path.relative_to(tmp_path) for path in tmp_path.rglob("*") if path.is_file()]
    assert left == [Path("merges/run-002/adapter_model.safetensors")]


def test_the_history_names_the_run_and_holds_adapters_that_load(tmp_path: Path) -> None:
    """002-34"""
    trial = Trial(a_multi_run(tmp_path))
    trial.train()
    trial.continual_schedule.finish(trial.state)
    adapter = tmp_path / "adapter"
    torch_model(trial.state).module.save_pretrained(str(adapter))
    folder = write_history(trial, adapter)
    document = json.loads((folder / "history.json").read_text())
    assert document["run"] == trial.plan.attempt.run
    assert [run["outcome"] for run in document["runs"]] == ["merged"] * 3
    last = folder / "run-003"
    assert (last / "adapter_config.json").read_bytes() == (
        adapter / "adapter_config.json"
    ).read_bytes()
    # The adapter that a user gets is the one after the last merge, to the byte.
    weights = "adapter_model.safetensors"
    assert (last / weights).read_bytes() == (adapter / weights).read_bytes()


def write_checkpoint(trial: Trial, root: Path) -> Path:
    continual_schedule, state = trial.continual_schedule, trial.state
    progress = checkpoint.TrainingProgress(
        run=trial.plan.attempt.run,
        attempt=1,
        fencing_epoch=1,
        step=state.step,
        fingerprint="f",
        micro_batch_size=state.recovery.micro_batch_size,
        trained_token_count=state.trained_token_count,
        continual_schedule=continual_schedule.document(),
    )
    return checkpoint.write(root, progress, {**loop.capture(state), **continual_schedule.tensors()})


def write_history(trial: Trial, adapter_folder: Path) -> Any:
    run, base_model = trial.plan.attempt.run, trial.plan.base.base_model
    return trial.continual_schedule.write_history(adapter_folder, run=run, base_model=base_model)


def resume(trial: Trial, folder: Path) -> None:
    progress, tensors = checkpoint.read(folder, run=trial.plan.attempt.run, fingerprint="f")
    merges = trial.continual_schedule.read(progress.continual_schedule)
    sides = (BEST_PREFIX, TUNED_PREFIX, MERGED_PREFIX)
    loop.restore(trial.state, {k: v for k, v in tensors.items() if not k.startswith(sides)})
    trial.continual_schedule.restore(trial.state, merges, tensors, folder=folder)
    trial.state.step = progress.step
