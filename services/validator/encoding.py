"""Encodes rows in a child process, and distinguishes a crash from an answer."""

import asyncio
import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import msgspec

from chassis.child.process import Cause, End, Process, Program, environment_of
from lexicon.faults import Fault, FaultCode
from validator.child import EncodeAnswer, Job, Row
from validator.domain.preview import SeenRow

MODULE: Final = "validator.child"
WALL_SECONDS: Final = 20.0
PARALLEL: Final = 2
# The rows that are looked at together hold 48 MiB of text at the most, and may be escaped in JSON.
MAX_ANSWER_BYTES: Final = 256 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class TooBusy:
    """The machine was too busy to encode the rows, so their labels are unknown."""

    reason: str


class Encoder:
    """Encodes the first rows of datasets with a model's own tokenizer and template."""

    def __init__(self, *, wall_seconds: float = WALL_SECONDS, module: str = MODULE) -> None:
        self._wall_seconds = wall_seconds
        self._program = Program(
            module=module,
            environment=environment_of(os.environ),
            message_bytes_max=MAX_ANSWER_BYTES,
        )
        self._gate = asyncio.Semaphore(PARALLEL)

    async def encode(
        self, folder: Path, rows: Sequence[Row], *, max_tokens: int, train_on: str
    ) -> list[SeenRow] | Fault | TooBusy:
        """The rows as the trainer sees them, or what is wrong with them."""
        job = Job(folder=str(folder), rows=list(rows), max_tokens=max_tokens, train_on=train_on)
        async with self._gate:
            deadline = asyncio.get_running_loop().time() + self._wall_seconds
            process = Process.start(self._program, msgspec.json.Decoder(EncodeAnswer))
            try:
                await process.send(job, seconds=self._wall_seconds)
                left_seconds = max(0.0, deadline - asyncio.get_running_loop().time())
                answer = await process.receive(seconds=left_seconds)
            finally:
                await process.end()
        if isinstance(answer, End):
            return self._meaning_of(answer)
        if answer.code:
            return Fault(FaultCode(answer.code), answer.message, **answer.metadata)
        return answer.rows

    def _meaning_of(self, end: End) -> Fault | TooBusy:
        match end.cause:
            case Cause.DEADLINE | Cause.STUCK:
                return TooBusy(reason=f"the rows were not encoded within {self._wall_seconds:g} s")
            case Cause.OUT_OF_MEMORY:
                return TooBusy(reason="the machine's memory ran out while the rows were encoded")
            case Cause.SIGNALLED if end.exit_code == -signal.SIGKILL:
                # No code of ours ends it in this way.
                return TooBusy(reason="the encoding of the rows was interrupted")
            case _:
                return Fault(
                    FaultCode.MODEL_CHAT_TEMPLATE_INVALID,
                    "The first rows could not be encoded: the model's tokenizer or chat template "
                    "fails, or takes too much time or memory.",
                    **end.metadata,
                )
