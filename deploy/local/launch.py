"""Executes another program after it has switched accounts and bound its life to the supervisor.

Run as `python -I -S launch.py --parent PID --signal NAME [--user NAME] -- PROGRAM ARGUMENT…`. It is
a program of its own, because code between fork and exec is unsafe in a process with threads.
"""

from __future__ import annotations

import ctypes
import os
import pwd
import signal
import sys
from typing import NoReturn

PR_SET_PDEATHSIG = 1
PRIVATE_UMASK = 0o077


def main(arguments: list[str]) -> NoReturn:
    """Parse by hand, since argparse would double the start time; end in execve."""
    cut = arguments.index("--")
    pairs = dict(zip(arguments[:cut:2], arguments[1:cut:2], strict=True))
    program = arguments[cut + 1 :]
    user = pairs.get("--user")
    if user is not None:
        account = pwd.getpwnam(user)
        os.setgroups([])
        os.setgid(account.pw_gid)
        os.setuid(account.pw_uid)
    if sys.platform == "linux":
        # After setuid, which clears it.
        wanted = signal.Signals[pairs["--signal"]]
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.prctl(PR_SET_PDEATHSIG, int(wanted), 0, 0, 0) != 0:
            sys.stderr.write(f"launch: prctl failed with errno {ctypes.get_errno()}\n")
            sys.exit(1)
    if os.getppid() != int(pairs["--parent"]):
        # The supervisor died before the signal was armed.
        sys.exit(1)
    os.umask(PRIVATE_UMASK)
    os.execv(program[0], program)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main(sys.argv[1:])
