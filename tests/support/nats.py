"""A real nats-server for tests: the local stack's own configuration, users and rights."""

import shutil
from pathlib import Path

from deploy.local import nats, nats_binary, places
from deploy.local.layout import open_layout
from tests.support.process import TestProcess

STREAM = nats.RUN_STREAM


class NatsServer:
    """One server with its own store under `state`."""

    def __init__(self, state: Path) -> None:
        self._layout = open_layout(state)
        configuration = nats.prepare(self._layout)
        self.process = TestProcess(nats.spec(self._layout, binary(), configuration))

    def start(self) -> None:
        """Start it for the first time."""
        self.process.start()

    def url(self, user: str) -> str:
        """What `scheduler`, `billing` or `events` connects with."""
        return nats.url(self._layout, user)

    def delete_store(self) -> None:
        """Remove all streams and messages; only while it is stopped."""
        shutil.rmtree(self._layout.state / "nats")
        (self._layout.state / "nats").mkdir(mode=0o700)

    def remove(self) -> None:
        """Stop it."""
        self.process.stop()


def binary() -> Path:
    """The server's program."""
    parts = places.read_parts()
    if parts is not None and Path(parts.nats_server).is_file():
        return Path(parts.nats_server)
    found = nats_binary.on_path() or nats_binary.in_cache()
    assert found is not None, "there is no nats-server here: run `make setup`"
    return found.path
