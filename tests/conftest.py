"""What every test starts from."""

import gc
import os
import sys
from collections.abc import Iterator

import pytest
from hypothesis import settings
from xdist.remote import Producer
from xdist.scheduler import LoadFileScheduling

ON_THE_STACK = ("tests/e2e/", "tests/chaos/")

# Without kept bytecode every process that imports torch and transformers compiles them first, for
# ten seconds of a core and more.
sys.dont_write_bytecode = False
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)

# OpenMP's threads wait for each other asleep: spinning costs more than the small models of tests
# compute, above all beside other processes.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# An example that takes long says something of the machine that day, and nothing of the code.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")


@pytest.fixture(scope="session", autouse=True)
def _imported_objects_are_not_searched() -> Iterator[None]:
    """Collections look at what a test made, not at the half million objects of torch and others.

    Healing from out-of-memory collects at each rung; it took most of such a test's time.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()


class Lanes(LoadFileScheduling):  # type: ignore[misc]  # it has no types
    """A file's tests stay in one process, and all that need the whole stack in one.

    A stack has ten processes of its own; two of them at once would only wait for each other.
    """

    def _split_scope(self, nodeid: str) -> str:
        return "stack" if nodeid.startswith(ON_THE_STACK) else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> Lanes:
    """How tests are spread over processes, whatever `--dist` says."""
    return Lanes(config, log)
