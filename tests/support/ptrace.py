"""Kill a child at an exact system-call boundary, or let one of its calls fail; Linux, by ptrace."""

import ctypes
import os
import platform
import signal
import sys
from collections.abc import Callable
from typing import Any

_TRACEME = 0
_GETREGS = 12
_SETREGS = 13
_DETACH = 17
_SYSCALL = 24
# Places in x86-64's user_regs_struct, by <sys/user.h>.
_REGISTER_COUNT, _RAX, _RDX, _ORIG_RAX = 27, 10, 12, 15
_NO_CALL = (1 << 64) - 1
# Calls of x86-64 that ask a disk for something.
_WRITE, _FSYNC, _RENAME, _MKDIR, _OPENAT = 1, 74, 82, 83, 257
_ASKING = frozenset({_WRITE, _FSYNC, _RENAME, _MKDIR, _OPENAT})
CAN_FAIL_CALLS = sys.platform == "linux" and platform.machine() == "x86_64"
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
    pid = _stopped_child(work)
    if _run_to(pid, boundary) < boundary:
        return False
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return True


def boundary_count(work: Callable[[], None]) -> int:
    """How many system-call boundaries `work` has, in a forked child that ends by itself."""
    return _run_to(_stopped_child(work), sys.maxsize)


def fail_call(work: Callable[[], None], number: int, error: int) -> bool:
    """Run `work` in a forked child whose n-th call to the disk fails with `error`, and no other.

    Calls to the disk make folders and files, write, flush and rename; files opened to be read are
    none. x86-64 only.

    Args:
        number: from 1; a number beyond the last call lets the child end unharmed.
    Returns:
        Whether a call failed.
    Raises:
        RuntimeError: the child did not end by itself with exit code 0.
    """
    pid = _stopped_child(work)
    registers = (ctypes.c_ulonglong * _REGISTER_COUNT)()
    seen, begins = 0, False
    while True:
        _trace(_SYSCALL, pid)
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            break
        begins = not begins
        if not begins:
            continue
        _trace(_GETREGS, pid, registers)
        seen += _asks_the_disk(registers)
        if seen == number:
            registers[_ORIG_RAX] = _NO_CALL
            _trace(_SETREGS, pid, registers)
            _trace(_SYSCALL, pid)
            os.waitpid(pid, 0)
            _trace(_GETREGS, pid, registers)
            registers[_RAX] = _NO_CALL + 1 - error
            _trace(_SETREGS, pid, registers)
            _trace(_DETACH, pid)
            _, status = os.waitpid(pid, 0)
            break
    if os.waitstatus_to_exitcode(status):
        raise RuntimeError(f"the child ended with {os.waitstatus_to_exitcode(status)}")
    return seen == number


def _asks_the_disk(registers: "ctypes.Array[ctypes.c_ulonglong]") -> bool:
    call = registers[_ORIG_RAX]
    if call == _OPENAT:
        return bool(registers[_RDX] & os.O_CREAT)
    return call in _ASKING


def _stopped_child(work: Callable[[], None]) -> int:
    pid = os.fork()
    if pid == 0:
        _run_traced(work)
    _, status = os.waitpid(pid, 0)
    if not os.WIFSTOPPED(status):
        raise RuntimeError("the child could not be traced")
    return pid


def _run_to(pid: int, boundary: int) -> int:
    """The boundary at which the child stands now, or how many it had when it ended."""
    for passed in range(boundary):
        if _trace(_SYSCALL, pid) != 0:
            raise RuntimeError(os.strerror(ctypes.get_errno()))
        _, status = os.waitpid(pid, 0)
        if not os.WIFSTOPPED(status):
            if os.waitstatus_to_exitcode(status):
                raise RuntimeError("the child failed by itself")
            return passed
    return boundary


def _run_traced(work: Callable[[], None]) -> None:
    code = 1
    try:
        if _trace(_TRACEME, 0) == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            work()
            code = 0
    finally:
        os._exit(code)


def _trace(request: int, pid: int, data: Any = None) -> int:
    address = None if data is None else ctypes.byref(data)
    return int(_libc.ptrace(ctypes.c_long(request), ctypes.c_long(pid), None, address))
