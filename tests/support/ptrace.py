"""Kill a child process at an exact system-call boundary, by ptrace; Linux only."""

import ctypes
import os
import signal
from collections.abc import Callable

_TRACEME = 0
_SYSCALL = 24
_libc = ctypes.CDLL(None, use_errno=True)


def kill_at_boundary(work: Callable[[], None], boundary: int) -> bool:
    """Run `work` in a forked child and SIGKILL it at its n-th system-call boundary.

    Each call has two boundaries: before it happens and after it has happened.

    Args:
        boundary: from 1; a number beyond the last boundary lets the child end by itself.
    Returns:
        Whether the child was killed; False when it ended before the boundary came.
    Raises:
        RuntimeError: the child failed by itself, or tracing is forbidden here.
    """
    pid = os.fork()
    if pid == 0:
        _run_traced(work)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise RuntimeError("the child could not be traced")
    for _ in range(boundary):
        if _trace(_SYSCALL, pid) != 0:
            raise RuntimeError(os.strerror(ctypes.get_errno()))
        _, status = os.waitpid(pid, 0)
        if os.WIFEXITED(status):
            if os.WEXITSTATUS(status):
                raise RuntimeError("the child failed by itself")
            return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def _run_traced(work: Callable[[], None]) -> None:
    code = 1
    try:
        if _trace(_TRACEME, 0) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
    finally:
        os._exit(code)


def _trace(request: int, pid: int) -> int:
    return int(_libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), None, None))
