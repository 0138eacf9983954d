"""A tiny model on the disk, for tests that load it both by transformers and by mlx-lm."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from modelspec.recipe import Backend
from tests.support.training import a_plan, a_tiny_model, changed
from trainer.domain.plan import TrainPlan
from trainer.training.mlx_presence import is_available

needs_mlx = pytest.mark.skipif(
    not is_available(), reason="MLX has no build for this machine: pip install mlx[cpu] mlx-lm"
)


def a_model_folder(folder: Path) -> Path:
    """A Llama of a few thousand random weights, as transformers writes it."""
    model = a_tiny_model(attention="eager")
    model.save_pretrained(folder, safe_serialization=True)
    return folder


def an_mlx_plan(folder: Path, **changes: Any) -> TrainPlan:
    """A valid plan for the model in the folder."""
    plan = a_plan(backend=Backend.MLX, packing=False, **changes)
    return changed(plan, base=replace(plan.base, folder=str(folder)))
