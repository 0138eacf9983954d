"""The page about faults, from the table: `python -m lexicon.document > docs/faults.md`."""

import sys
import textwrap
from collections.abc import Iterator

from lexicon.faults import TABLE, FaultCode, FaultRow, Owner

HEAD = """\
# Faults

Every failure has a stable code. This page is generated from the table in `libs/lexicon`: first the
symptoms, then every code. `python -m lexicon.document > docs/faults.md` regenerates it; a test
fails when it is stale.

On the wire a fault is a `google.rpc.Status` with an `ErrorInfo` whose reason is the code and whose
domain is `tunesmith`; on a failed run it is in `Run.fault`. `tunesmith fault explain CODE`
prints one row.

- **Retry**: `never` fails again, `same` may succeed when it is repeated, `smaller` when it is
  repeated with a smaller configuration.
- **Refunded**: whether a run on a verified model that ends with this code gets its credits back by
  itself.
"""
# Columns of prose in every page of the documentation.
WIDTH = 100
RETRIES = {"NEVER": "never", "SAME": "same", "SMALLER": "smaller"}


def render() -> str:
    """The whole page as Markdown."""
    parts = [HEAD, "## By symptom\n", *_symptoms(), "\n## By code\n", *_codes()]
    return "\n".join(parts)


def _symptoms() -> Iterator[str]:
    yield "| you see | code | do |"
    yield "|---|---|---|"
    rows = [(symptom, code, row) for code, row in TABLE.items() for symptom in row.symptoms]
    for symptom, code, row in sorted(rows, key=lambda item: _sort_key(item[0])):
        yield f"| {_cell(symptom)} | [`{code.value}`](#{_anchor(code)}) | {_cell(row.remedy)} |"


def _codes() -> Iterator[str]:
    area = ""
    for code, row in TABLE.items():
        if code.value.split("_")[0] != area:
            area = code.value.split("_")[0]
            yield f"### {area}\n"
        yield from _entry(code, row)


def _entry(code: FaultCode, row: FaultRow) -> Iterator[str]:
    owner = "the request or its inputs" if row.owner is Owner.USER else "the platform"
    facts = (
        f"category {row.category.value}",
        f"owner: {owner}",
        f"retry: {RETRIES[row.retry.value]}",
        f"refunded: {'yes' if row.refundable else 'no'}",
        f"gRPC {row.grpc_status}",
    )
    yield f'#### <a id="{_anchor(code)}"></a>`{code.value}`\n'
    yield _wrapped(row.meaning) + "\n"
    yield _wrapped(f"*{' · '.join(facts)}*") + "\n"
    for symptom in row.symptoms:
        yield _wrapped(f"- You see: {symptom}", indent="  ")
    yield _wrapped(f"- Do: {row.remedy}", indent="  ")
    for name, remedy in row.variants.items():
        yield _wrapped(f"- When it is `{name}`: {remedy}", indent="  ")
    yield ""


def _wrapped(text: str, *, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _anchor(code: FaultCode) -> str:
    return code.value.lower().replace("_", "-")


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _sort_key(symptom: str) -> str:
    return symptom.strip("`").lower()


if __name__ == "__main__":
    sys.stdout.write(render())
