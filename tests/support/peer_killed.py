"""transformers.Trainer killed inside its own save, and resumed from the last checkpoint there."""

import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from transformers import Trainer, TrainerCallback

from tests.support.forked import in_fork
from tests.support.peer_trainer import Figures, a_trainer
from tests.support.ptrace import boundary_count, kill_at_boundary

STEPS = 60
# The save that is killed, with a whole checkpoint of the step before it beside it.
SAVED_AT = 20
COMPARED_STEPS = 3


class _Schedule(TrainerCallback):
    """Saves after one step, ends after another."""

    def __init__(self, *, save_at: int, end_at: int) -> None:
        self._save_at, self._end_at = save_at, end_at

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        control.should_save = state.global_step == self._save_at
        control.should_training_stop = state.global_step >= self._end_at


def trial(count: int, say: Callable[[str], None]) -> dict[str, Any]:
    """What becomes of `count` runs that are killed at boundaries spread over a save.

    Returns:
        How many went on as the uninterrupted run, went on differently, or could not be resumed
        while the checkpoint that was cut lay there.
    """
    return in_fork(partial(_trial, count, say))


def _trial(count: int, say: Callable[[str], None]) -> dict[str, Any]:
    equal = different = stuck = 0
    causes: set[str] = set()
    end = SAVED_AT + COMPARED_STEPS
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        whole, _ = _train(folder / "whole", end_at=end)
        whole_losses = whole.losses
        _, trainer = _train(folder / "prepared", save_at=SAVED_AT - 1, end_at=SAVED_AT)
        total = boundary_count(partial(_save, trainer, folder / "counted"))
        boundaries = sorted({1 + round(i * (total - 1) / (count - 1)) for i in range(count)})
        for boundary in boundaries:
            cut = folder / "cut"
            shutil.copytree(folder / "prepared", cut)
            kill_at_boundary(partial(_save, trainer, cut), boundary)
            found = in_fork(partial(_resumed, cut, end_at=end))
            if isinstance(found, str):
                stuck += 1
                causes.add(found)
            elif found == whole_losses[len(whole_losses) - len(found) :]:
                equal += 1
            else:
                different += 1
            shutil.rmtree(cut)
    say(f"peer: {len(boundaries)} kills in its save: equal {equal}, stuck {stuck}")
    return {
        "kill_points": len(boundaries),
        "of_boundaries": total,
        "equal": equal,
        "different": different,
        "cannot_resume": stuck,
        "causes": sorted(causes),
    }


def _train(
    folder: Path, *, end_at: int, save_at: int = 0, resume: bool = False
) -> tuple[Figures, Trainer]:
    figures = Figures()
    trainer = a_trainer(folder, STEPS, figures)
    trainer.add_callback(_Schedule(save_at=save_at, end_at=end_at))
    trainer.train(resume_from_checkpoint=resume)
    return figures, trainer


def _resumed(folder: Path, *, end_at: int) -> list[float] | str:
    try:
        return _train(folder, end_at=end_at, resume=True)[0].losses
    except Exception as error:  # noqa: BLE001 - whatever keeps it from resuming is the finding
        return type(error).__name__


def _save(trainer: Trainer, folder: Path) -> None:
    trainer.args.output_dir = str(folder)
    trainer._save_checkpoint(trainer.model, None)  # type: ignore[arg-type]
