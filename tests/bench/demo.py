"""The parts of the demo's door-to-door time.

    python -m tests.bench.demo [--state DIR]

Runs the demo on a stack of its own whose caches are warm, so that the figure is that of a second
`make demo`; the run itself is new each time.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from tests.bench import frame
from tests.demo.screen import read_times

GOAL_SECONDS = 90.0
LIMIT_SECONDS = 600


def main() -> None:
    """Run the demo once for its caches and once for its time."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--state", type=Path, default=None, help="default a fresh folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="tunesmith-bench-") as folder:
        state = options.state or Path(folder)
        frame.progress("first demo, which fills the caches")
        _demo(state)
        frame.progress("second demo, which is measured")
        text = _demo(state)
    parts = read_times(text)
    total = parts.pop("door to door")
    shown = next(line.strip() for line in text.splitlines() if "show the habit" in line)
    frame.finish(
        frame.Result(
            bench="demo",
            value=total,
            unit="s",
            goal=f"a second demo takes at most {GOAL_SECONDS:.0f} s",
            passed=total <= GOAL_SECONDS,
            proof={"parts": parts, "answers": shown.lstrip("✔ ")},
        )
    )


def _demo(state: Path) -> str:
    command = [sys.executable, "-m", "tests.demo", "--state", str(state)]
    done = subprocess.run(
        command, capture_output=True, text=True, timeout=LIMIT_SECONDS, check=False
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
