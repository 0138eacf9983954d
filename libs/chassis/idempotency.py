"""The memory of mutations: the same request id gives the first answer, whatever happens between.

`recall` and `remember` stand in the transaction of the effect. The first caller's row is locked
until that transaction ends, so that a second call with the same id waits and then gets the answer
of the first, and a call whose transaction was rolled back leaves nothing behind. Rows are kept for
good: an id is as old as its request.
"""

import hashlib

from google.protobuf.message import Message

from chassis.postgres import Connection
from lexicon.faults import Fault, FaultCode

# Goes into the migration of a service that has mutations.
DDL = """
CREATE TABLE requests (
    project text NOT NULL,
    method text NOT NULL,
    request_id text NOT NULL,
    fingerprint bytea NOT NULL,
    response bytea,
    create_time timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (project, method, request_id)
);
"""
REQUEST_ID_CHARACTERS_MAX = 128

_CLAIM = """
INSERT INTO requests (project, method, request_id, fingerprint)
VALUES ($1, $2, $3, $4)
ON CONFLICT (project, method, request_id) DO NOTHING
"""
_READ = """
SELECT fingerprint, response FROM requests
WHERE project = $1 AND method = $2 AND request_id = $3
FOR UPDATE
"""
_WRITE = """
UPDATE requests SET response = $4
WHERE project = $1 AND method = $2 AND request_id = $3
"""


def fingerprint(request: Message) -> bytes:
    """SHA-256 of a request without its request id and secrets: what makes two requests the same.

    A secret that was renewed meanwhile asks for nothing else, and its hash is kept nowhere.
    """
    copy = type(request)()
    copy.CopyFrom(request)
    for field in copy.DESCRIPTOR.fields:
        if field.name == "request_id" or field.GetOptions().debug_redact:
            copy.ClearField(field.name)
    return hashlib.sha256(copy.SerializeToString(deterministic=True)).digest()


def check_request_id(request_id: str) -> str:
    """The id itself, when it is one.

    Raises:
        Fault: INPUT_FIELD_MISSING when it is empty, INPUT_FIELD_INVALID when it is too long or has
            characters that do not print.
    """
    if not request_id:
        raise Fault(FaultCode.INPUT_FIELD_MISSING, "request_id is required.", field="request_id")
    if len(request_id) > REQUEST_ID_CHARACTERS_MAX or not request_id.isprintable():
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            f"request_id must be 1 to {REQUEST_ID_CHARACTERS_MAX} printable characters.",
            field="request_id",
        )
    return request_id


async def recall(
    connection: Connection,
    *,
    project: str,
    method: str,
    request_id: str,
    fingerprint: bytes,
) -> bytes | None:
    """The answer that this request got before; None when it is the first, which now owns the id.

    Raises:
        Fault: INPUT_REQUEST_ID_REUSED when the id belongs to a different request.
    """
    assert connection.is_in_transaction()
    check_request_id(request_id)
    await connection.execute(_CLAIM, project, method, request_id, fingerprint)
    row = await connection.fetchrow(_READ, project, method, request_id)
    assert row is not None
    if row["fingerprint"] != fingerprint:
        raise Fault(FaultCode.INPUT_REQUEST_ID_REUSED, request_id=request_id)
    answer: bytes | None = row["response"]
    return answer


async def remember(
    connection: Connection, *, project: str, method: str, request_id: str, response: bytes
) -> None:
    """Keep the answer, in the transaction of the effect."""
    assert connection.is_in_transaction()
    done = await connection.execute(_WRITE, project, method, request_id, response)
    assert done == "UPDATE 1", "remember() without recall()"
