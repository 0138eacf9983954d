"""Answers to mutations: the same request id gives the first answer, whatever happens between.

`Answers` works in the transaction of the effect. The first caller's row is locked
until that transaction ends, so that a second call with the same id waits and then gets the answer
of the first, and a call whose transaction was rolled back leaves nothing behind. Rows are kept for
good: an id is as old as its request.
"""

import hashlib

from google.protobuf.message import Message

from chassis.postgres import Connection
from lexicon.faults import Fault, FaultCode

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


class Answers:
    """The answers to mutations, read and written in the transaction of their effect.

    A method is the name of a call, or of its request's type where none is given; project, method
    and request id identify a mutation.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def recall(self, project: str, request: Message, *, method: str = "") -> bytes | None:
        """The answer that this request got before; None for the first, which owns the id now.

        Raises:
            Fault: INPUT_REQUEST_ID_REUSED when the id belongs to a different request, and what
                `check_request_id` raises.
        """
        assert self._connection.is_in_transaction()
        key = _key(project, request, method)
        digest = fingerprint(request)
        await self._connection.execute(_CLAIM, *key, digest)
        row = await self._connection.fetchrow(_READ, *key)
        assert row is not None
        if row["fingerprint"] != digest:
            raise Fault(FaultCode.INPUT_REQUEST_ID_REUSED, request_id=key[2])
        answer: bytes | None = row["response"]
        return answer

    async def peek(self, project: str, request: Message, *, method: str = "") -> bytes | None:
        """The answer that this request got before, without owning its id."""
        savepoint = self._connection.transaction()
        await savepoint.start()
        try:
            return await self.recall(project, request, method=method)
        finally:
            await savepoint.rollback()

    async def remember(
        self, project: str, request: Message, response: bytes | Message, *, method: str = ""
    ) -> None:
        """Keep the answer, in the transaction of the effect."""
        assert self._connection.is_in_transaction()
        answer = response.SerializeToString() if isinstance(response, Message) else response
        done = await self._connection.execute(_WRITE, *_key(project, request, method), answer)
        assert done == "UPDATE 1", "remember() without recall()"


def _key(project: str, request: Message, method: str) -> tuple[str, str, str]:
    request_id: str = request.request_id  # type: ignore[attr-defined]  # every mutation has one
    return project, method or request.DESCRIPTOR.name, check_request_id(request_id)
