"""torch.compile: off by default, the same curve when on, and gone after training."""

from typing import Any

import pytest
import torch

from tests.support.training import a_plan, a_state, a_tiny_model, attached, some_rows
from trainer.training import loop
from trainer.training.compiling import compiled
from tunesmith.api.run.v1 import spec_pb2

ROWS = some_rows(16)
STEPS = 4


def curve(backend: str | None) -> tuple[list[float], Any]:
    plan = a_plan()
    adapted = attached(a_tiny_model(), plan).train()
    state = a_state(adapted, plan)
    with compiled(adapted, wanted=backend is not None, backend=backend or "inductor") as count:
        # A norm before attention, one before the feed-forward block, and that; the last norm.
        assert count == (2 * 3 + 1 if backend else 0)
        losses = [
            loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None).loss
            for _ in range(STEPS)
        ]
    return losses, adapted


def test_a_run_is_not_compiled_unless_it_asks_for_it() -> None:
    """003-08"""
    assert a_plan().compute.torch_compile is False
    assert spec_pb2.TrainingConfig().torch_compile is False


@pytest.mark.slow
def test_rows_of_every_length_share_one_compilation_and_the_curve() -> None:
    """003-08: what is traced and replayed is the same computation."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    losses, adapted = curve("aot_eager")
    assert losses == pytest.approx(curve(None)[0], abs=1e-6)
    unique_graphs = torch._dynamo.utils.counters["stats"]["unique_graphs"]
    assert 0 < unique_graphs < 4 * STEPS
    assert all(module._compiled_call_impl is None for module in adapted.modules())


def test_what_does_not_compile_runs_as_it_is() -> None:
    """003-08: on cards where compiling fails, the run does not."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("OutOfResources: shared memory, Required: 98304")

    torch._dynamo.reset()
    plan = a_plan()
    adapted = attached(a_tiny_model(), plan).train()
    state = a_state(adapted, plan)
    with compiled(adapted, wanted=True, backend=broken):  # type: ignore[arg-type]
        figures = loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None)
    assert figures.loss == pytest.approx(curve(None)[0][0], abs=1e-6)
