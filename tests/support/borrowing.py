"""Tensors lent to the writer of checkpoints, and a thread that reads them as late as it may."""

from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

import torch


class Borrowing:
    """A lender of whatever it is given; `before_change` waits as training does."""

    def __init__(self, tensors: dict[str, torch.Tensor]) -> None:
        self.tensors = tensors
        self.before_change: Callable[[], None] = lambda: None

    def borrow(self, release: Callable[[], None]) -> dict[str, torch.Tensor]:
        self.before_change = release
        return self.tensors


class AtTheLastMoment(Executor):
    """A thread so slow that its work is done only when somebody waits for it.

    Whatever was changed without waiting is thus read after the change, each time and not by luck.
    """

    def __init__(self) -> None:
        self._waiting: list[_Late] = []

    def submit(self, work: Callable[..., Any], /, *args: Any, **named: Any) -> Future[Any]:
        late = _Late(self._run_to, lambda: work(*args, **named))
        self._waiting.append(late)
        return late

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        while wait and self._waiting:
            self._run_to(self._waiting[-1])

    @property
    def is_behind(self) -> bool:
        """Whether there is work that nobody has waited for yet."""
        return bool(self._waiting)

    def _run_to(self, last: "_Late") -> None:
        """Do the work up to `last` in its order; nothing if it is done."""
        while last in self._waiting:
            late = self._waiting.pop(0)
            try:
                late.set_result(late.work())
            except Exception as error:  # noqa: BLE001 - the future carries it on
                late.set_exception(error)


class _Late(Future[Any]):
    def __init__(self, run_to: Callable[["_Late"], None], work: Callable[[], Any]) -> None:
        super().__init__()
        self.work = work
        self._run = run_to

    def result(self, timeout: float | None = None) -> Any:
        self._run(self)
        return super().result(timeout)

    def exception(self, timeout: float | None = None) -> BaseException | None:
        self._run(self)
        return super().exception(timeout)
