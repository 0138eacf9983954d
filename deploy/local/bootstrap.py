"""`python3 -m deploy.local.bootstrap`: everything the stack needs, from nothing.

Needs Python 3.11, a C/C++ compiler and a network the first time. Runs with the standard library
alone, and says in one sentence what is missing. A second run finds all in place and ends at once.

This file must also be readable by older Pythons, which it sends away.
"""

import os
import shutil
import subprocess
import sys

MINIMUM = (3, 11)
PROBE = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3.14")


def main():  # type: () -> int
    """Check the interpreter, then do the work with it."""
    if sys.platform == "win32":
        return _refuse(
            "The stack without containers runs on Linux and macOS.",
            "On Windows use docker compose: docker compose up --build.",
        )
    if sys.version_info < MINIMUM:
        newer = _newer_python()
        if newer:
            os.execv(newer, [newer, "-m", "deploy.local.bootstrap"] + sys.argv[1:])  # noqa: RUF005 S606 (old syntax)
        return _refuse(
            "Python %d.%d is too old." % sys.version_info[:2],
            "Install Python 3.11 or newer, or name one: make PYTHON=/path/to/python3 setup.",
        )
    from deploy.local import setup

    return setup.main(sys.argv[1:])


def _newer_python():  # type: () -> str | None
    """A newer interpreter on PATH that can make environments; a version manager's shim may not."""
    for name in CANDIDATES:
        path = shutil.which(name)
        if path and subprocess.call([path, "-c", PROBE], stderr=subprocess.DEVNULL) == 0:
            return path
    return None


def _refuse(sentence, next_step):  # type: (str, str) -> int
    sys.stderr.write("setup: %s %s\n" % (sentence, next_step))
    return 1


if __name__ == "__main__":
    sys.exit(main())
