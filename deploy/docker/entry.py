"""Entry point of every image: adds the private settings of this service and executes the service.

The settings are in a file that only this service's account can read, so that no secret is in the
compose file, in the image, or in the output of `docker inspect`.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

PRIVATE = Path("/run/tunesmith/env")


def read_settings(text: str) -> dict[str, str]:
    """NAME=VALUE lines; the value is everything after the first sign."""
    pairs = (line.split("=", 1) for line in text.splitlines() if "=" in line)
    return {name.strip(): value for name, value in pairs}


def main() -> None:
    """Execute `python -m SERVICE` in place of this process."""
    service = os.environ.get("SERVICE", "")
    if not service:
        sys.exit("SERVICE environment variable not set! Hint: build with --build-arg SERVICE=…")
    try:
        private = read_settings(PRIVATE.read_text(encoding="utf-8"))
    except OSError as error:
        sys.exit(
            f"{PRIVATE} cannot be read: {error.strerror}. Hint: let the init service run first."
        )
    environment = {**private, **os.environ}
    program = [sys.executable, "-P", "-m", service]
    os.execve(program[0], program, environment)  # noqa: S606 (no shell is wanted)


if __name__ == "__main__":
    main()
