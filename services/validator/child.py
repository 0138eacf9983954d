"""The process that runs users' templates and tokenizers: `python -m validator.child CHANNEL`.

The process receives one job, returns one answer and ends. It holds no secret, and the system bounds
its time and memory.
"""

import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import msgspec

from chassis.child.channel import Channel, limit
from corpus.chat import load
from corpus.labels import unbounded
from corpus.shapes import Format
from lexicon.faults import Fault
from modelspec.recipe import TrainOn
from validator.domain.preview import RawRow, SeenRow, see_rows

# Processor time, which does not grow when the machine is busy.
CPU_SECONDS = 8
ADDRESS_SPACE_BYTES = 6 << 30


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A row of a dataset with its number from 1."""

    dataset: str
    data_format: str
    number: int
    values: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """What to encode.

    Attributes:
        folder: with tokenizer.json, tokenizer_config.json and chat_template.jinja.
    """

    folder: str
    rows: list[Row]
    max_tokens: int
    train_on: str


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodeAnswer:
    """The rows, or the fault in their place."""

    rows: list[SeenRow]
    code: str = ""
    message: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict)


def run(job: Job) -> EncodeAnswer:
    """Does the job."""
    from tokenizers import Tokenizer

    folder = Path(job.folder)
    try:
        rows = see_rows(
            [
                RawRow(
                    dataset=row.dataset,
                    data_format=Format(row.data_format),
                    number=row.number,
                    values=row.values,
                )
                for row in job.rows
            ],
            load(folder),
            unbounded(Tokenizer.from_file(str(folder / "tokenizer.json"))),
            max_tokens=job.max_tokens,
            train_on=TrainOn(job.train_on),
        )
    except Fault as fault:
        return EncodeAnswer(
            rows=[], code=fault.code.value, message=fault.message, metadata=fault.metadata
        )
    return EncodeAnswer(rows=rows)


def main() -> None:
    """One job and its answer."""
    limit(resource.RLIMIT_CPU, CPU_SECONDS)
    limit(resource.RLIMIT_AS, ADDRESS_SPACE_BYTES)
    jobs: SimpleQueue[Job] = SimpleQueue()
    channel = Channel(sys.argv[1], msgspec.json.Decoder(Job), jobs.put)
    channel.send(run(jobs.get()))


if __name__ == "__main__":
    main()
