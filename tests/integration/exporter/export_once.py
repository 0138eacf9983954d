"""`python -m tests.integration.exporter.export_once JOB`: exports onto a disk that gets full.

Meant to run in a mount namespace of its own. The first attempt meets the small disk; then the disk
grows and the same export is tried again over what the first left. Prints the two outcomes as JSON.
"""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from exporter.engine import disk
from exporter.engine.export import Engine, export
from exporter.engine.kernel.kernel import Kernel
from exporter.pipe import Export
from lexicon.faults import Fault


def main() -> None:
    """Mount, fail, grow, succeed."""
    wishes: dict[str, Any] = json.loads(sys.argv[1])
    folder = Path(wishes["folder"])
    mount = ["mount", "-t", "tmpfs", "-o", f"size={wishes['disk_bytes']}", "tmpfs", str(folder)]
    subprocess.run(mount, check=True)
    if not wishes["checks_first"]:
        # Let the disk run full in the middle of the work, as another process could make it.
        disk.RESERVE_BYTES = -(1 << 60)  # type: ignore[misc]  # a constant, except here
        del os.posix_fallocate
    engine = Engine(
        cache=folder / "cache" if wishes["cache"] is None else Path(wishes["cache"]),
        vendor=Path(wishes["vendor"]),
        thread_count=2,
        kernel=Kernel.prepare(Path(wishes["kernels"])),
        llama_version="test",
    )
    job = Export(**wishes["job"], target=str(folder / "bundle.zip"))
    first = _attempt(engine, job)
    names = sorted(path.name for path in folder.iterdir())
    subprocess.run(["mount", "-o", "remount,size=1g", str(folder)], check=True)
    second = _attempt(engine, job)
    print(json.dumps({"first": first, "left": names, "second": second}))


def _attempt(engine: Engine, job: Export) -> str:
    try:
        export(engine, job, lambda _step, _percent: None)
    except Fault as fault:
        return str(fault.code)
    return "exported"


if __name__ == "__main__":
    main()
