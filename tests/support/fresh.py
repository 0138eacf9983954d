"""Work in an interpreter of its own, for what forks.

A process that has trained and spoken gRPC holds threads, and locks of theirs; a copy of it that is
made by a fork may spin or crash in any of them. Whatever kills or observes forked children begins
here, in a process that has only the main thread.
"""

from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import ParamSpec, TypeVar

Parameters = ParamSpec("Parameters")
AnswerT = TypeVar("AnswerT")


def in_fresh_process(
    work: Callable[Parameters, AnswerT], *args: Parameters.args, **kwargs: Parameters.kwargs
) -> AnswerT:
    """The result of `work`, a function of a module, in a new interpreter; its exceptions too.

    Raises:
        BrokenProcessPool: the process ended without an answer.
    """
    with ProcessPoolExecutor(max_workers=1, mp_context=get_context("spawn")) as pool:
        return pool.submit(work, *args, **kwargs).result()
