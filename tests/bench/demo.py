"""The parts of the demo's door-to-door time.

    python -m tests.bench.demo [--state DIR]

Runs the demo on a stack of its own whose caches are warm, so that the figure is that of a second
`make demo`; the run itself is new each time. The peer is a bare script on transformers + PEFT that
trains the same recipe on the same rows and answers the same prompts: no platform, no checkpoints,
no GGUF, no bill. What is above it is the price of all that.
"""

import argparse
import subprocess
import sys
import tempfile
import time
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
    frame.progress("the peer: a bare script that trains and answers")
    bare = _bare()
    shown = next(line.strip() for line in text.splitlines() if "show the habit" in line)
    frame.finish(
        frame.Result(
            bench="demo",
            value=total,
            unit="s",
            goal=f"a second demo takes at most {GOAL_SECONDS:.0f} s",
            passed=total <= GOAL_SECONDS,
            peer={"name": "bare transformers + PEFT script, no export", "value": round(bare, 1)},
            ratio=bare / total,
            proof={"parts": parts, "answers": shown.lstrip("✔ ")},
        )
    )


def _demo(state: Path) -> str:
    return _run("tests.demo", "--state", str(state))


def _bare() -> float:
    begin = time.monotonic()
    _run("deploy.models.anvil.verify", "--seeds", "1")
    return time.monotonic() - begin


def _run(module: str, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", module, *words],
        capture_output=True,
        text=True,
        timeout=LIMIT_SECONDS,
        check=False,
    )
    if done.returncode != 0:
        sys.stderr.write(done.stdout + done.stderr)
        raise SystemExit(done.returncode)
    return done.stdout


if __name__ == "__main__":
    main()
