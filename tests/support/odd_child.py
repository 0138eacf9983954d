"""A child that does what its job says, whatever that does to its parent.

`python -m tests.support.odd_child WHOSE CHANNEL …`: WHOSE is the part of the platform whose child
it stands for. The job holds, somewhere, the text `FOLDER/odd-DEED`; the ids of the child and
of one of its own go into FOLDER first, then it does the deed.
"""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from chassis.child.channel import Channel

READY = {
    "trainer": {"type": "Ready", "cached_models": [], "capabilities": []},
    "exporter": {"type": "Ready", "llama_version": "1", "fast_types": []},
}
LAST_WORDS = "these were its last words"
LONG_BYTES = 300 << 20
PULSE_SECONDS = 0.05


def main() -> None:
    """Say that it is ready where that is expected, take a job, and do as it says."""
    jobs: SimpleQueue[Any] = SimpleQueue()
    channel = Channel(sys.argv[2], msgspec.json.Decoder(), jobs.put)
    if ready := READY.get(sys.argv[1]):
        channel.send(ready)
    found = re.search(r'"([^"]*)/odd-(\w+)"', msgspec.json.encode(jobs.get()).decode())
    assert found is not None
    folder = Path(found[1])
    below = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    (folder / "begun").write_text(f"{os.getpid()} {below.pid}")
    (folder / "begun").rename(folder / "pids")
    do(found[2], channel, folder)


def do(deed: str, channel: "Channel[Any]", folder: Path) -> None:
    """The deed; most of them are its last."""
    sys.stderr.write(f"{LAST_WORDS}\n")
    sys.stderr.flush()
    match deed:
        case "exit":
            os._exit(3)
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "memory":
            (folder / "vmstat").write_text("nr_free_pages 1\noom_kill 8\n")
            os.kill(os.getpid(), signal.SIGKILL)
        case "half":
            channel._outgoing.write(b'{"type": "Finis')
            channel._outgoing.flush()
            os.kill(os.getpid(), signal.SIGKILL)
        case "garbage":
            channel.send([[[{"type": "Nobody knows"}]]])
        case "long":
            # Without an end, as long as anybody reads.
            for _ in range(LONG_BYTES >> 20):
                channel._outgoing.write(b"7" * (1 << 20))
        case "close":
            channel._outgoing.close()
        case "stop":
            channel.keep_pulse(PULSE_SECONDS)
            os.kill(os.getpid(), signal.SIGSTOP)
    time.sleep(600)


if __name__ == "__main__":
    main()
