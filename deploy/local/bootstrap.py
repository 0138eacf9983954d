"""`python3 -m deploy.local.bootstrap`: install everything that the stack needs.

Needs Python 3.11, a C/C++ compiler and a network the first time. Uses the standard library alone,
and reports a missing requirement in one sentence. A second run has nothing to do and ends at once.

Older Pythons must be able to parse this file, which then refuses them.
"""

import os
import shutil
import subprocess
import sys

MINIMUM = (3, 11)
PROBE = "import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 11))"
CANDIDATES = ("python3.13", "python3.12", "python3.11", "python3.14")


def main():  # type: () -> int
    """Check the interpreter, then run the setup with it."""
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
    """A newer interpreter on PATH that can create environments; some shims cannot."""
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
