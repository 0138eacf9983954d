"""The gateway's HTTP server: signed GET and PUT of objects, and a health check.

A signed URL is the whole credential, so URLs are never logged, and a refusal contains only its code
and text.
"""

import re
from collections.abc import AsyncIterator, Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import quote

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from chassis import telemetry
from lexicon.faults import Fault, FaultCode
from objects.signing import Grant, UrlSigner
from objects.store import ObjectInfo, ObjectStore

CODE_HEADER = "x-tunesmith-code"
# All content is data: browsers must not render, frame, sniff or fetch it from other sites.
SECURITY_HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"content-security-policy", b"default-src 'none'; frame-ancestors 'none'; sandbox"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cache-control", b"private, no-store"),
)
STATUS_BY_CODE = {
    FaultCode.STORAGE_URL_INVALID: 403,
    FaultCode.STORAGE_URL_EXPIRED: 403,
    FaultCode.STORAGE_KEY_INVALID: 403,
    FaultCode.STORAGE_OBJECT_NOT_FOUND: 404,
    FaultCode.STORAGE_OBJECT_EXISTS: 409,
    FaultCode.STORAGE_SIZE_MISMATCH: 413,
    FaultCode.STORAGE_FULL: 507,
    FaultCode.DEP_SERVICE_UNAVAILABLE: 503,
    FaultCode.ACCESS_HOST_UNKNOWN: 421,
}
_ONE_RANGE = re.compile(r"bytes=(\d{0,19})-(\d{0,19})", re.ASCII)

log = telemetry.logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """Bytes of a file from `start` up to but without `end`."""

    start: int
    end: int


def application(
    *,
    signer: UrlSigner,
    store: ObjectStore,
    hosts: frozenset[str],
    object_bytes_max: int,
    clock: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> ASGIApp:
    """The HTTP side of the gateway.

    Args:
        hosts: names that the Host header may carry, without port.
        object_bytes_max: largest PUT in bytes.
    """
    objects = _Objects(signer=signer, store=store, limit=object_bytes_max, clock=clock)
    routes = [
        Route("/healthz", _healthz, methods=["GET"]),
        Route("/objects/{key:path}", objects.get, methods=["GET"]),
        Route("/objects/{key:path}", objects.put, methods=["PUT"]),
    ]
    handlers = {Fault: _refused, HTTPException: _unknown, Exception: _unexpected}
    app = Starlette(routes=routes, exception_handlers=handlers)
    return _Guard(app, hosts=hosts)


def part_of(header: str | None, *, size_bytes: int) -> Part | None:
    """The part that a Range header asks for; None for the whole file.

    A malformed range and a list of ranges are ignored, as the RFC allows.

    Raises:
        ValueError: the range begins after the end of the file.
    Source: RFC 9110, section 14.
    """
    found = _ONE_RANGE.fullmatch(header.strip()) if header else None
    if found is None or not (found[1] or found[2]):
        return None
    if not found[1]:
        last_count = int(found[2])
        if last_count == 0 or size_bytes == 0:
            raise ValueError(header)
        return Part(start=max(0, size_bytes - last_count), end=size_bytes)
    start = int(found[1])
    end = min(int(found[2]) + 1, size_bytes) if found[2] else size_bytes
    if found[2] and int(found[2]) < start:
        return None
    if start >= size_bytes:
        raise ValueError(header)
    return Part(start=start, end=end)


class _Objects:
    def __init__(
        self, *, signer: UrlSigner, store: ObjectStore, limit: int, clock: Callable[[], datetime]
    ) -> None:
        self._signer = signer
        self._store = store
        self._limit = limit
        self._clock = clock

    async def get(self, request: Request) -> Response:
        """The object, or the part that a Range header asks for."""
        grant = self._verify(request)
        info = await self._store.head(grant.key)
        if info is None:
            raise Fault(FaultCode.STORAGE_OBJECT_NOT_FOUND)
        headers = _object_headers(info, grant)
        is_same = request.headers.get("if-range", headers["etag"]) == headers["etag"]
        wanted = request.headers.get("range") if is_same else None
        try:
            part = part_of(wanted, size_bytes=info.size_bytes)
        except ValueError:
            return _answer(
                Fault(
                    FaultCode.INPUT_FIELD_INVALID,
                    f"The range is not within the {info.size_bytes} bytes of the file.",
                    field="range",
                ),
                status=416,
                headers={"content-range": f"bytes */{info.size_bytes}"},
            )
        whole = Part(start=0, end=info.size_bytes)
        span = part or whole
        headers["content-length"] = str(span.end - span.start)
        if part is not None:
            headers["content-range"] = f"bytes {span.start}-{span.end - 1}/{info.size_bytes}"
        status = 200 if part is None else 206
        if request.method == "HEAD":
            return Response(status_code=status, headers=headers)
        chunks = await self._store.get(grant.key, start=span.start, end=span.end)
        return StreamingResponse(chunks, status_code=status, headers=headers)

    async def put(self, request: Request) -> Response:
        """Store the object, completely or not at all."""
        grant = self._verify(request)
        announced = request.headers.get("content-length", "")
        exact = grant.size_bytes
        if exact is not None and announced.isdecimal() and int(announced) != exact:
            raise Fault(
                FaultCode.STORAGE_SIZE_MISMATCH,
                f"{announced} bytes were announced where {exact} are allowed.",
            )
        info = await self._store.put(
            grant.key, _body(request), size_limit=self._limit, exact_bytes=exact
        )
        return JSONResponse({"size_bytes": info.size_bytes, "sha256": info.sha256})

    def _verify(self, request: Request) -> Grant:
        # The signature covers the text as it was sent, before decoding.
        path = bytes(request.scope["raw_path"]).decode("latin-1")
        query = bytes(request.scope["query_string"]).decode("latin-1")
        return self._signer.verify(request.method, path, query, self._clock())


class _Guard:
    """Refuses foreign Host headers and adds the security headers to every response."""

    def __init__(self, app: ASGIApp, *, hosts: frozenset[str]) -> None:
        self._app = app
        self._hosts = hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass the request on, or refuse it."""
        if scope["type"] != "http":
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                present = {name for name, _ in message["headers"]}
                message["headers"] = [
                    *message["headers"],
                    *(pair for pair in SECURITY_HEADERS if pair[0] not in present),
                ]
            await send(message)

        app = self._app if self._is_ours(scope) else _answer(Fault(FaultCode.ACCESS_HOST_UNKNOWN))
        await app(scope, receive, guarded)

    def _is_ours(self, scope: Scope) -> bool:
        """Whether exactly one Host header names this gateway (against DNS rebinding)."""
        found = [value for name, value in scope["headers"] if name == b"host"]
        if len(found) != 1:
            return False
        host = found[0].decode("latin-1").lower()
        name = host if host.endswith("]") else host.rpartition(":")[0] or host
        return name.strip("[]") in self._hosts


async def _healthz(_request: Request) -> Response:
    return PlainTextResponse("ok")


async def _body(request: Request) -> AsyncIterator[bytes]:
    try:
        async for chunk in request.stream():
            yield chunk
    except ClientDisconnect:
        raise Fault(
            FaultCode.STORAGE_SIZE_MISMATCH, "The connection ended before the last byte."
        ) from None


def _object_headers(info: ObjectInfo, grant: Grant) -> dict[str, str]:
    headers = {
        "content-type": "application/octet-stream",
        "accept-ranges": "bytes",
        "etag": f'"{info.sha256}"',
    }
    if grant.file_name:
        plain = "".join(
            char if char.isascii() and (char.isalnum() or char in "._- ") else "_"
            for char in grant.file_name
        )
        exact = quote(grant.file_name, safe="")
        headers["content-disposition"] = (
            f"attachment; filename=\"{plain}\"; filename*=UTF-8''{exact}"
        )
    return headers


async def _refused(_request: Request, error: Exception) -> Response:
    assert isinstance(error, Fault)
    return _answer(error)


async def _unknown(_request: Request, error: Exception) -> Response:
    """The refusal of an unknown path, or of a method that the path does not have."""
    assert isinstance(error, HTTPException)
    fault = Fault(
        FaultCode.INPUT_METHOD_UNKNOWN,
        "There is no such path, or it does not answer this method.",
        remedy="Signed URLs take GET, HEAD or PUT, the one that they were signed for; all else is "
        "gRPC.",
    )
    return _answer(fault, status=error.status_code, headers=error.headers)


async def _unexpected(_request: Request, error: Exception) -> Response:
    log.error("request failed", error_type=type(error).__name__, exc_info=error)
    return _answer(Fault(FaultCode.INTERNAL_UNEXPECTED))


def _answer(
    fault: Fault, *, status: int | None = None, headers: Mapping[str, str] | None = None
) -> Response:
    """The response for every refusal; `status` overrides the table by code."""
    document = {"code": fault.code.value, "message": fault.message, "remedy": fault.remedy}
    return JSONResponse(
        {"error": document},
        status_code=status or STATUS_BY_CODE.get(fault.code, 500),
        headers={**(headers or {}), CODE_HEADER: fault.code.value},
    )
