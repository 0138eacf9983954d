"""A checkpoint that is not sound is refused in words, whatever is wrong with it, and another used.

The hash of the tensors' file is made right again after each change of it: what is left are the
checks behind the hash.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode
from tests.support.training import a_plan, a_state, a_tiny_model, attached, changed, some_rows
from trainer.domain.plan import TrainPlan, ValidationPlan
from trainer.training import checkpoint, loop
from trainer.training.checkpoint import MANIFEST_NAME, STATE_NAME
from trainer.training.continual import ContinualSchedule
from trainer.training.run import fingerprint, resume, save_checkpoint
from trainer.training.validation import Validation
from trainer.training.writer import CheckpointWriter

ROWS = some_rows(24)
HELD = ValidationPlan(
    holdout_ratio=0.1, dataset=None, every_steps=1, early_stop_patience=3, early_stop_min_delta=0.0
)
PLAN = a_plan(validation=HELD, max_steps=8, adapter_rank=1)
FUZZ = settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
STRANGE = st.recursive(
    st.one_of(
        st.none(),
        st.booleans(),
        st.integers(),
        st.sampled_from([10**30, -1, 2**63, 1e308, float("nan"), float("inf"), "", "x", [], {}]),
    ),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=4,
)


class NotFinite(Exception):
    """The numbers of a step were none."""


class Run:
    """A run on tiny weights, from whichever checkpoints its plan names; tells as a channel does."""

    def __init__(self, plan: TrainPlan) -> None:
        self.on_merge: list[Any] = []
        self.state = a_state(attached(a_tiny_model(), plan).train(), plan)
        held = Validation(plan=HELD, rows=ROWS[20:])
        self.continual_schedule = ContinualSchedule.of(
            plan.multi_run,
            ROWS[:20],
            held,
            self.state,
            places=plan.places,
            warn=lambda *_: None,
            on_merge=lambda *_: None,
        )
        self.plan = plan
        resume(plan, self.state, self.continual_schedule, self)  # type: ignore[arg-type]

    def send(self, message: Any) -> None:
        self.on_merge.append(message)

    def train(self, *, until: int) -> list[float]:
        losses = []
        while self.state.step < until:
            try:
                figures = loop.take_step(
                    self.state, self.continual_schedule.rows, steps=8, healed=lambda _: None
                )
            except Fault as fault:
                if fault.code is FaultCode.RUNTIME_LOSS_NOT_FINITE:
                    raise NotFinite from fault
                raise
            self.continual_schedule.after_step(self.state, figures)
            losses.append(figures.loss)
        return losses

    def save(self, root: Path) -> Path:
        folders: list[Path] = []
        writer = CheckpointWriter(
            root, written=lambda _, folder: folders.append(folder), failed=_raise
        )
        with writer:
            save_checkpoint(writer, self.plan, self.state, self.continual_schedule)
        return folders[0]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, list[float]]:
    """Checkpoints of steps 2 and 3 of a run, and the losses of the steps after the second."""
    root, run = tmp_path_factory.mktemp("run"), Run(PLAN)
    run.train(until=2)
    second = run.save(root)
    losses = run.train(until=3)
    third = run.save(root)
    return second, third, losses + run.train(until=5)


@pytest.fixture(scope="module")
def trained() -> Run:
    """A run for one checkpoint after another."""
    return Run(PLAN)


def resumes_or_stays(run: Run, folder: Path) -> None:
    """What is taken for sound is trained on and saved again; what is not has changed nothing."""
    run.on_merge.clear()
    before, step = loop.capture(run.state), run.state.step
    plan = changed(PLAN, checkpoint_folder=str(folder))
    resume(plan, run.state, run.continual_schedule, run)  # type: ignore[arg-type]
    if run.on_merge:
        (warning,) = run.on_merge
        assert warning.code == "STATE_CHECKPOINT_INVALID"
        after = loop.capture(run.state)
        assert run.state.step == step
        assert all(torch.equal(after[name], before[name]) for name in before)
        return
    # Numbers that were moved about need not be finite.
    with suppress(NotFinite):
        run.train(until=run.state.step + 1)
        run.continual_schedule.finish(run.state)


def refusal(folder: Path) -> str:
    """Why the checkpoint is refused."""
    with pytest.raises(Fault) as caught:
        checkpoint.read(folder, run=PLAN.attempt.run, fingerprint=fingerprint(PLAN))
    assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID
    return caught.value.message


def change(folder: Path, target: Path, act: Callable[[dict[str, Any]], None]) -> Path:
    """A copy of the checkpoint with another manifest."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    manifest = json.loads((target / MANIFEST_NAME).read_text())
    act(manifest)
    (target / MANIFEST_NAME).write_text(json.dumps(manifest))
    return target


def paths(document: Any, *above: Any) -> Iterator[tuple[Any, ...]]:
    """Where every value of the document stands."""
    if isinstance(document, dict):
        for key, inner in document.items():
            yield (*above, key)
            yield from paths(inner, *above, key)


def put(manifest: dict[str, Any], path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        manifest = manifest[key]
    manifest[path[-1]] = value


def remove(manifest: dict[str, Any], path: tuple[Any, ...]) -> None:
    for key in path[:-1]:
        manifest = manifest[key]
    del manifest[path[-1]]


@pytest.mark.parametrize(
    ("path", "named"),
    [
        (("progress",), "progress"),
        (("progress", "step"), "step"),
        (("files",), "files"),
        (("files", STATE_NAME), STATE_NAME),
        (("files", STATE_NAME, "sha256"), "sha256"),
    ],
)
def test_a_manifest_without_a_key_is_refused_by_its_name(
    saved: tuple[Path, Path, Any], tmp_path: Path, path: tuple[str, ...], named: str
) -> None:
    """002-12, 004-10: valid JSON is not yet a manifest."""
    assert named in refusal(change(saved[1], tmp_path / "c", lambda each: remove(each, path)))


def damage(document: dict[str, Any], data: st.DataObject, value: Any) -> None:
    """Take one place out of a document, or put something else there."""
    path = data.draw(st.sampled_from(list(paths(document))))
    is_gone = data.draw(st.booleans())
    remove(document, path) if is_gone else put(document, path, value)


@given(data=st.data(), value=STRANGE)
@FUZZ
def test_a_manifest_with_any_other_value_is_refused_or_the_same_step(
    saved: tuple[Path, Path, Any],
    trained: Run,
    tmp_path: Path,
    data: st.DataObject,
    value: Any,
) -> None:
    """002-12: keys gone, wrong kinds, huge numbers, nested where a number stood."""
    damaged = change(saved[1], tmp_path / "c", lambda manifest: damage(manifest, data, value))
    resumes_or_stays(trained, damaged)


def with_header(folder: Path, target: Path, header: bytes) -> Path:
    """A copy of the checkpoint whose tensors have another header, and a manifest that agrees."""
    shutil.copytree(folder, target, dirs_exist_ok=True)
    content = (folder / STATE_NAME).read_bytes()
    size = int.from_bytes(content[:8], "little")
    content = len(header).to_bytes(8, "little") + header + content[8 + size :]
    (target / STATE_NAME).write_bytes(content)
    entry = {"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)}
    manifest = json.loads((folder / MANIFEST_NAME).read_text())
    put(manifest, ("files", STATE_NAME), entry)
    (target / MANIFEST_NAME).write_text(json.dumps(manifest))
    return target


@given(data=st.data(), value=STRANGE)
@FUZZ
def test_tensors_with_any_other_header_are_refused_or_fit(
    saved: tuple[Path, Path, Any],
    trained: Run,
    tmp_path: Path,
    data: st.DataObject,
    value: Any,
) -> None:
    """004-10: a header may name what it likes; what is not of this run is not looked at."""
    content = (saved[1] / STATE_NAME).read_bytes()
    size = int.from_bytes(content[:8], "little")
    original = json.loads(content[8 : 8 + size])
    damage(original, data, value)
    header = json.dumps(original).encode()
    resumes_or_stays(trained, with_header(saved[1], tmp_path / "c", header))


@pytest.mark.parametrize("header", [b"", b"[]", b"{", b"\xff" * 9, b"[" * 5000, b'{"a":{}}'])
def test_a_header_that_is_none_is_refused(
    saved: tuple[Path, Path, Any], tmp_path: Path, header: bytes
) -> None:
    """004-10"""
    assert STATE_NAME in refusal(with_header(saved[1], tmp_path / "c", header))


@pytest.mark.parametrize("text", ["", "null", "[]", "1", "[" * 100_000, '{"format_version": 2}'])
def test_a_manifest_of_another_kind_is_refused(
    saved: tuple[Path, Path, Any], tmp_path: Path, text: str
) -> None:
    shutil.copytree(saved[1], tmp_path / "c")
    (tmp_path / "c" / MANIFEST_NAME).write_text(text)
    assert "manifest" in refusal(tmp_path / "c") or "format" in refusal(tmp_path / "c")


def test_a_folder_that_is_not_there_is_no_checkpoint(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "gone")


@pytest.mark.parametrize(
    "act",
    [
        lambda each: remove(each, ("progress", "step")),
        lambda each: put(each, ("progress", "step"), 9),
        lambda each: put(each, ("progress", "micro_batch_size"), 5),
        lambda each: put(each, ("progress", "losses"), {"sums": []}),
        lambda each: put(each, ("progress", "best_validation_loss"), None),
        lambda each: put(each, ("progress", "more"), 1),
    ],
)
def test_the_checkpoint_before_a_bad_one_is_used_and_the_run_is_the_same(
    saved: tuple[Path, Path, list[float]], tmp_path: Path, act: Callable[[Any], None]
) -> None:
    """002-13: resumes from the previous good checkpoint, bit for bit, and says what was wrong."""
    second, third, losses = saved
    bad = change(third, tmp_path / "c", act)
    run = Run(changed(PLAN, checkpoint_folder=str(bad), earlier_checkpoint_folders=(str(second),)))
    assert run.state.step == 2
    (warning,) = run.on_merge
    assert warning.code == "STATE_CHECKPOINT_INVALID"
    assert warning.message.endswith("the one before it is tried")
    assert run.train(until=5) == losses


def test_without_a_sound_checkpoint_training_begins_anew(
    saved: tuple[Path, Path, Any], tmp_path: Path
) -> None:
    """002-13"""
    bad = change(saved[1], tmp_path / "c", lambda each: each.clear())
    run = Run(changed(PLAN, checkpoint_folder=str(bad), earlier_checkpoint_folders=(str(bad),)))
    assert run.state.step == 0
    assert [on_merge.message.rpartition("; ")[2] for on_merge in run.on_merge] == [
        "the one before it is tried",
        "training starts over",
    ]
    fresh = Run(PLAN)
    assert run.train(until=2) == fresh.train(until=2)


def _raise(fault: Fault) -> None:
    raise fault
