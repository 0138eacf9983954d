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


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `--dist loadgroup` one process runs the whole stack, the others the rest by file.

    A stack has ten processes of its own; two of them at once would only wait for each other.
    """
    for item in items:
        on_the_stack = any(item.iter_markers("e2e")) or any(item.iter_markers("chaos"))
        item.add_marker(pytest.mark.xdist_group("stack" if on_the_stack else str(item.path)))
