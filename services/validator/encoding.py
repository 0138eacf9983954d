"""Runs the encoding of rows in a process of its own, and tells its end from its answer."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import msgspec

from chassis import telemetry
from lexicon.faults import Fault, FaultCode
from validator.child import Answer, Job, Row
from validator.domain.preview import SeenRow

log = telemetry.logger(__name__)

WALL_SECONDS = 20.0
PARALLEL = 2
# What a Python process needs to start; secrets are not among it.
PASSED_ON = ("LANG", "LC_ALL", "PATH", "PYTHONHOME", "PYTHONPATH", "VIRTUAL_ENV")


@dataclass(frozen=True, slots=True, kw_only=True)
class TooSlow:
    """The machine was too busy to tell; it speaks neither for the rows nor against them."""

    seconds: float


class Encoder:
    """Encodes the first rows of datasets with a model's own tokenizer and template."""

    def __init__(self) -> None:
        self._gate = asyncio.Semaphore(PARALLEL)

    async def encode(
        self, folder: Path, rows: Sequence[Row], *, max_tokens: int, train_on: str
    ) -> list[SeenRow] | Fault | TooSlow:
        """The rows as the trainer sees them, or what is wrong with them."""
        job = Job(folder=str(folder), rows=list(rows), max_tokens=max_tokens, train_on=train_on)
        async with self._gate:
            began = time.monotonic()
            try:
                # In a thread: uvloop now and then closes a young child's standard input too soon.
                done = await asyncio.to_thread(_run, msgspec.json.encode(job))
            except subprocess.TimeoutExpired:
                return TooSlow(seconds=WALL_SECONDS)
        if done.returncode == -signal.SIGKILL:
            # Nothing of ours does that: the machine ran out of memory.
            return TooSlow(seconds=time.monotonic() - began)
        if done.returncode != 0:
            text = done.stderr[-2000:].decode(errors="replace")
            log.warning("encoding died", returncode=done.returncode, stderr=text)
            return _died(done.returncode)
        answer = msgspec.json.decode(done.stdout, type=Answer)
        if answer.code:
            return Fault(FaultCode(answer.code), answer.message, **answer.metadata)
        return answer.rows


def _run(job: bytes) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [sys.executable, "-m", "validator.child"],
        input=job,
        capture_output=True,
        timeout=WALL_SECONDS,
        env=_environment(),
        check=False,
    )


def _died(returncode: int | None) -> Fault:
    return Fault(
        FaultCode.MODEL_CHAT_TEMPLATE_INVALID,
        "The first rows could not be encoded: the model's tokenizer or chat template fails, or "
        "takes too much time or memory.",
        returncode=returncode or 0,
    )


def _environment() -> dict[str, str]:
    kept = {name: os.environ[name] for name in PASSED_ON if name in os.environ}
    return kept | {"TOKENIZERS_PARALLELISM": "false"}
