"""What the tests on a GPU share; `pytest -m gpu tests/gpu` runs them on a machine with CUDA."""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path

import pytest
import torch

from trainer.child import Child
from trainer.domain.device import UnslothPolicy
from trainer.pipe import Terms

StartChild = Callable[[UnslothPolicy], Awaitable[Child]]


@pytest.fixture(autouse=True)
def cuda() -> torch.device:
    """The GPU; a machine without one is told so by a failure, as nothing was tested."""
    if not torch.cuda.is_available():
        pytest.fail("tests/gpu need CUDA; this machine has none")
    return torch.device("cuda")


@pytest.fixture
async def start_child(tmp_path: Path) -> AsyncIterator[StartChild]:
    """Starts training children with or without Unsloth: each is a process of its own."""
    async with AsyncExitStack() as stack:

        async def start(unsloth: UnslothPolicy) -> Child:
            child = await Child.start(tmp_path / "child.log", Terms(tier="gpu", unsloth=unsloth))
            stack.push_async_callback(child.kill)
            await child.ready()
            return child

        yield start
