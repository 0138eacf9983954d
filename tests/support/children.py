"""The users of `chassis.child`, each with a job for its child: one face for one suite.

`python -m tests.support.children USER FOLDER DEED` is a parent that waits for the end of its job.
"""

import asyncio
import sys
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import exporter.child
import exporter.pipe
import hub.reading
import trainer.child
import validator.encoding
from lexicon.faults import Fault, FaultCode
from tests.support.plans import a_plan

ODD = "tests.support.odd_child"


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """A job for a child.

    Attributes:
        module: what the child runs, and its first argument.
        text: `FOLDER/odd-DEED`, for an odd child.
        seconds: how long it may be silent.
    """

    module: str
    folder: Path
    text: str
    seconds: float


async def train(work: Work) -> None:
    """As the trainer's agent has a run trained."""
    log_path = work.folder / "child.log"
    child = await trainer.child.Child.start(
        log_path, module=work.module, silence_seconds=work.seconds
    )
    try:
        await child.ready()
        async for _ in child.train(a_plan(run=work.text, log_path=str(log_path))):
            pass
    finally:
        if not child.is_stuck:
            await child.kill()


async def export(work: Work) -> None:
    """As the exporter's agent has a bundle made."""
    child = await exporter.child.Child.start(
        log_path=work.folder / "child.log",
        cache=work.folder,
        vendor=work.folder,
        thread_count=1,
        module=work.module,
        silence_seconds=work.seconds,
    )
    job = exporter.pipe.Export(
        checkpoint="", base_key="k", base_model="m", adapter="a", quantization="Q8_0",
        target="t", run=work.text,
    )  # fmt: skip
    try:
        await child.ready()
        await child.export(job, lambda _: None)
    finally:
        await child.kill()


async def read(work: Work) -> None:
    """As the hub has a dataset file read."""
    path = Path(work.text)
    await asyncio.to_thread(path.touch)
    limits = hub.reading.Limits(cpu_seconds=1, wall_factor=work.seconds)
    readers = hub.reading.Readers(limits, module=work.module)
    try:
        await readers.preview(path, row_count=1)
    finally:
        readers.close()


async def encode(work: Work) -> None:
    """As the validator has rows encoded for a preview."""
    encoder = validator.encoding.Encoder(wall_seconds=work.seconds, module=work.module)
    seen = await encoder.encode(Path(work.text), [], max_tokens=8, train_on="all")
    if isinstance(seen, validator.encoding.TooBusy):
        raise Fault(FaultCode.DEP_SERVICE_UNAVAILABLE, seen.reason)
    if isinstance(seen, Fault):
        raise seen


USERS: Mapping[str, Callable[[Work], Awaitable[None]]] = {
    "trainer": train,
    "exporter": export,
    "hub": read,
    "validator": encode,
}


# What each runs when it is no test.
MODULES: Mapping[str, str] = {
    "trainer": trainer.child.MODULE,
    "exporter": exporter.child.MODULE,
    "hub": hub.reading.MODULE,
    "validator": validator.encoding.MODULE,
}


async def outcome(
    user: str, folder: Path, deed: str, *, seconds: float = 60.0, module: str = ""
) -> Fault:
    """What the user is told after its child has done the deed.

    Args:
        module: another child than an odd one.
    """
    work = Work(
        module=module or f"{ODD} {user}",
        folder=folder,
        text=f"{folder}/odd-{deed}",
        seconds=seconds,
    )
    try:
        await USERS[user](work)
    except Fault as fault:
        return fault
    raise AssertionError("the child did its job")


if __name__ == "__main__":
    asyncio.run(outcome(sys.argv[1], Path(sys.argv[2]), sys.argv[3]))
