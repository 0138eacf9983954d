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


def give_room_for(row_count: int, model: Any) -> None:
    """Let the MLX model run out of memory over more rows than that at once."""
    inner = model.module.model.embed_tokens
    model.module.model.embed_tokens = _narrow(inner, row_count)
    model.module.model.embed_tokens.freeze()


def _narrow(inner: Any, row_count: int) -> Any:
    from mlx import nn

    class Narrow(nn.Module):  # type: ignore[misc]  # MLX is not typed where it is not installed
        """An embedding that has room for so many rows."""

        def __init__(self) -> None:
            super().__init__()
            self.inner = inner

        def __call__(self, ids_BT: Any) -> Any:
            if ids_BT.shape[0] > row_count:
                raise RuntimeError(
                    "[metal::malloc] Attempting to allocate 1 bytes which is greater"
                )
            return self.inner(ids_BT)

        def as_linear(self, hidden: Any) -> Any:
            return self.inner.as_linear(hidden)

    return Narrow()
