"""What every test starts from."""

import gc
from collections.abc import Iterator

import pytest


@pytest.fixture(scope="session", autouse=True)
def _imported_objects_are_not_searched() -> Iterator[None]:
    """Collections look at what a test made, not at the half million objects of torch and others.

    Healing from out-of-memory collects at each rung; it took most of such a test's time.
    """
    gc.collect()
    gc.freeze()
    yield
    gc.unfreeze()
