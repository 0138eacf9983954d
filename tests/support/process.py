"""A real server for tests, run by the mechanics of the local stack, that a test may kill."""

import asyncio
import os
import signal
import subprocess

from deploy.local.process import ProcessSpec, launch_argv

READY_SECONDS = 30.0
POLL_SECONDS = 0.02


class TestProcess:
    """One process of a ProcessSpec; it dies with the test run, whatever happens."""

    __test__ = False

    def __init__(self, spec: ProcessSpec) -> None:
        self._spec = spec
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it and wait until it serves; not within a running loop."""
        self._launch()
        asyncio.run(self._until_ready())

    async def start_again(self) -> None:
        """Start it once more, within a running loop."""
        # Not in a thread: the process would end with the thread that started it.
        self._launch()
        await self._until_ready()

    def kill(self) -> None:
        """End it as `kill -9` does, with everything that it started."""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """End it as its supervisor does."""
        self._end(self._spec.stop_signal)

    def _end(self, number: signal.Signals) -> None:
        process, self._process = self._process, None
        if process is None:
            return
        os.killpg(process.pid, number)
        try:
            process.wait(self._spec.stop_seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait(self._spec.stop_seconds)

    def _launch(self) -> None:
        assert self._process is None
        with self._spec.log.open("ab") as log:
            self._process = subprocess.Popen(
                launch_argv(self._spec, parent=os.getpid()),
                env=dict(self._spec.environment),
                cwd=self._spec.folder,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    async def _until_ready(self) -> None:
        process, log = self._process, self._spec.log
        assert process is not None
        async with asyncio.timeout(READY_SECONDS):
            while not await self._spec.is_ready():
                assert process.poll() is None, log.read_text(encoding="utf-8", errors="replace")
                await asyncio.sleep(POLL_SECONDS)
