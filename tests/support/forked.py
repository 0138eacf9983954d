"""Work in a process of its own, forked from this one."""

import os
import pickle
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

AnswerT = TypeVar("AnswerT")


def in_fork(work: Callable[[], AnswerT]) -> AnswerT:
    """The result of `work` in a process of its own.

    Raises:
        RuntimeError: the process ended without one; what it printed says why.
    """
    with tempfile.NamedTemporaryFile() as answer:
        pid = os.fork()
        if pid == 0:
            try:
                Path(answer.name).write_bytes(pickle.dumps(work()))
            except BaseException:  # noqa: BLE001 - shown here, where it would be lost
                traceback.print_exc()
            finally:
                os._exit(0)
        _, status = os.waitpid(pid, 0)
        content = Path(answer.name).read_bytes()
    if not content:
        code = os.waitstatus_to_exitcode(status)
        raise RuntimeError(f"the process ended without an answer, exit code {code}")
    found: AnswerT = pickle.loads(content)  # noqa: S301 - our own child's answer
    return found
