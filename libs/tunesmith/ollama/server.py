"""An Ollama server: its address, and the calls of a registration.

Transient failures are retried with growing delays; refusals are final.
"""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from ipaddress import ip_address
from typing import IO, Any, Final, TypeVar
from urllib.parse import urlsplit

import httpx

from tunesmith.errors import InputError, TunesmithError, UnavailableError
from tunesmith.ollama.modelfile import CODE
from tunesmith.transfer import CHUNK_BYTES, CONNECT_SECONDS, OnBytes, trust, uses_proxy
from tunesmith.transport import RetryPolicy

ENVIRONMENT: Final = "OLLAMA_HOST"
DEFAULT_PORT: Final = 11434
DEFAULT_URL: Final = f"http://localhost:{DEFAULT_PORT}"
# Ollama sends no status while it hashes and copies a model of many gigabytes.
IDLE_SECONDS: Final = 600.0
# A status line or an answer is short; a longer one is not from Ollama.
MAX_ANSWER_BYTES: Final = 8 << 20
POLICY: Final = RetryPolicy(tries=4, first_seconds=1.0, longest_seconds=8.0)

OnStatus = Callable[[str], None]
_Result = TypeVar("_Result")
_PORTS: Final = {"http": 80, "https": 443}
# From this version on Ollama creates no model from an adapter; existing ones still run.
# Source: ollama/ollama, pull request 14969.
NO_ADAPTERS_SINCE: Final = (0, 34, 1)
_NO_ADAPTERS: Final = "adapters are no longer supported"
_VERSION: Final = re.compile(r"v?(\d+)\.(\d+)\.(\d+)")
# Registry host, namespace, model and tag; a part begins with a letter, a digit or an underscore.
_NAME: Final = re.compile(
    r"(?:(?:[A-Za-z0-9_][\w.:-]{0,349}/)?[A-Za-z0-9_][\w-]{0,79}/)?"
    r"[A-Za-z0-9_][\w.-]{0,79}(?::[A-Za-z0-9_][\w.-]{0,79})?",
    re.ASCII,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Blob:
    """A file that Ollama stores by its digest; `open` returns its bytes from the start."""

    file_name: str
    sha256: str
    size_bytes: int
    open: Callable[[], AbstractContextManager[IO[bytes]]]

    @property
    def digest(self) -> str:
        return f"sha256:{self.sha256}"


def server_url(text: str = "", *, environ: Mapping[str, str] = os.environ) -> str:
    """Base URL of the server: `text`, otherwise $OLLAMA_HOST, otherwise the default.

    Both are read as Ollama reads its variable: scheme and port may be missing, and a wildcard
    address means this machine.

    Raises:
        InputError: INPUT_FIELD_INVALID.
    """
    given = (text or environ.get(ENVIRONMENT, "")).strip().strip("\"'")
    if not given:
        return DEFAULT_URL
    scheme, found, rest = given.partition("://")
    if not found:
        scheme, rest = "http", given
    try:
        parts = urlsplit(f"{scheme}://{rest}")
        host, port = parts.hostname or "localhost", parts.port
    except ValueError:
        raise _no_address(given) from None
    if scheme not in _PORTS or parts.query or parts.fragment or "@" in parts.netloc:
        raise _no_address(given)
    if _is_unspecified(host):
        host = "::1" if ":" in host else "127.0.0.1"
    if port is None:
        port = _PORTS[scheme] if found else DEFAULT_PORT
    shown = f"[{host}]" if ":" in host else host
    return f"{scheme}://{shown}:{port}{parts.path.rstrip('/')}"


def checked_name(name: str) -> str:
    """A model name that Ollama accepts.

    Raises:
        InputError: INPUT_FIELD_INVALID.
    """
    if not _NAME.fullmatch(name):
        raise InputError(
            "INPUT_FIELD_INVALID",
            f"{name[:80]!r} is no name that Ollama takes for a model.",
            remedy="Use letters, digits, `_`, `-` and `.`, for example my-model or me/model:v2.",
            metadata={"name": name[:200]},
        )
    return name


def require_adapters(version: str) -> None:
    """Refuses a server whose version does not support adapters; an unknown version is accepted.

    Raises:
        InputError: DEP_OLLAMA_REGISTRATION_FAILED.
    """
    found = _VERSION.match(version)
    # A build from sources calls itself 0.0.0.
    if found and tuple(int(part) for part in found.groups()) >= NO_ADAPTERS_SINCE:
        raise _takes_no_adapters(f"Ollama {version} takes no adapters any more")


class Server:
    """Calls of one Ollama server.

    Args:
        url: base URL; default $OLLAMA_HOST, otherwise http://localhost:11434.
        policy: tries and delays of each call.
        sleep: waits for so many seconds.
    """

    def __init__(
        self,
        url: str = "",
        *,
        policy: RetryPolicy = POLICY,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self.url = server_url(url)
        self._policy = policy
        self._sleep = sleep

    def version(self) -> str:
        """The server's version; also the quickest check that it answers.

        Raises:
            TunesmithError: DEP_OLLAMA_REGISTRATION_FAILED, here as in every other call.
        """
        return str(self._tried(lambda: self._json("GET", "/api/version")).get("version", ""))

    def push(self, blob: Blob, on_bytes: OnBytes | None = None) -> bool:
        """Sends a file unless the server has it; returns whether it was sent."""
        return self._tried(lambda: self._push_once(blob, on_bytes))

    def create(self, request: Mapping[str, Any], on_status: OnStatus | None = None) -> None:
        """Creates a model from pushed files; an older one of its name is replaced."""
        self._tried(lambda: self._stream("/api/create", request, on_status))

    def pull(self, model: str, on_status: OnStatus | None = None) -> None:
        """Lets the server fetch a model from its registry, unless it has the model."""
        self._tried(lambda: self._stream("/api/pull", {"model": model}, on_status))

    def show(self, model: str) -> Mapping[str, Any] | None:
        """Facts of a model that the server has; None when it has none of this name."""
        try:
            found = self._tried(lambda: self._json("POST", "/api/show", {"model": model}))
        except InputError as error:
            if error.metadata.get("http_status") == str(httpx.codes.NOT_FOUND.value):
                return None
            raise
        facts = found.get("model_info")
        return facts if isinstance(facts, Mapping) else {}

    def _push_once(self, blob: Blob, on_bytes: OnBytes | None) -> bool:
        path = f"/api/blobs/{blob.digest}"
        with self._http() as http:
            known = http.head(self.url + path)
            if known.is_success:
                return False
            if known.status_code != httpx.codes.NOT_FOUND:
                self._refuse(known.status_code, b"")
            counted = _Counted(on_bytes)
            try:
                with (
                    blob.open() as file,
                    http.stream(
                        "POST",
                        self.url + path,
                        content=_chunks(file, counted),
                        headers={"Content-Length": str(blob.size_bytes)},
                    ) as answer,
                ):
                    if not answer.is_success:
                        self._refuse(answer.status_code, _content(answer))
            except BaseException:
                counted.take_back()
                raise
        return True

    def _json(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> Mapping[str, Any]:
        with self._http() as http, http.stream(method, self.url + path, json=body) as answer:
            content = _content(answer)
            if not answer.is_success:
                self._refuse(answer.status_code, content)
        found = _document(content)
        if found is None:
            raise self._failed("what answers there is not Ollama", status=0)
        return found

    def _stream(self, path: str, body: Mapping[str, Any], on_status: OnStatus | None) -> None:
        """Reads the statuses of one call until its success."""
        last = ""
        with self._http() as http, http.stream("POST", self.url + path, json=body) as answer:
            if not answer.is_success:
                self._refuse(answer.status_code, _content(answer))
            for line in _lines(answer):
                found = _document(line)
                if found is None:
                    raise self._failed("what answers there is not Ollama", status=0)
                if found.get("error"):
                    # Sent after the first status, when the HTTP status was already sent.
                    raise _PassingError(f"Ollama said: {_shortened(str(found['error']))}")
                status = str(found.get("status", ""))
                if status and status != last and on_status:
                    on_status(status)
                last = status or last
        if last != "success":
            raise _PassingError("Ollama ended in the middle")

    def _http(self) -> httpx.Client:
        return httpx.Client(
            timeout=httpx.Timeout(IDLE_SECONDS, connect=CONNECT_SECONDS),
            trust_env=uses_proxy(self.url),
            verify=trust(""),
        )

    def _tried(self, call: Callable[[], _Result]) -> _Result:
        delays = self._policy.delays()
        while True:
            try:
                return call()
            except (_PassingError, httpx.TransportError) as error:
                delay = next(delays, None)
                if delay is None:
                    raise self._gave_up(error) from None
                self._sleep(delay)

    def _gave_up(self, error: Exception) -> UnavailableError:
        place = urlsplit(self.url).netloc
        reason = str(error) or type(error).__name__
        if isinstance(error, httpx.ConnectError) and "refused" in reason.lower():
            reason = "connection refused"
        return UnavailableError(
            CODE,
            f"The model could not be registered with Ollama: {reason} {place}, "
            f"{self._policy.tries} tries.",
            metadata={"url": self.url, "tries": str(self._policy.tries)},
            retryable=True,
        )

    def _refuse(self, status: int, content: bytes) -> None:
        """Raises what an HTTP status other than success means."""
        document = _document(content) or {}
        said = _shortened(str(document.get("error") or f"HTTP {status}"))
        if status >= httpx.codes.INTERNAL_SERVER_ERROR or status in (
            httpx.codes.REQUEST_TIMEOUT,
            httpx.codes.TOO_MANY_REQUESTS,
        ):
            raise _PassingError(f"Ollama said: {said}")
        if _NO_ADAPTERS in said:
            raise _takes_no_adapters(f"Ollama said: {said}")
        raise self._failed(f"Ollama said: {said}", status=status)

    def _failed(self, reason: str, *, status: int) -> TunesmithError:
        return InputError(
            CODE,
            f"The model could not be registered with Ollama at {self.url}: {reason}.",
            remedy="Check the address and the version of Ollama; `ollama --version` shows it.",
            metadata={"url": self.url, **({"http_status": str(status)} if status else {})},
        )


class _PassingError(Exception):
    """A transient failure; never raised out of this file."""


def _takes_no_adapters(reason: str) -> InputError:
    return InputError(
        CODE,
        f"The adapter could not be registered alone: {reason}.",
        remedy="Register the merged model: `tunesmith pull RUN --ollama`, without --adapter; "
        "`tunesmith artifact export RUN` makes it where it is missing.",
    )


def _no_address(given: str) -> InputError:
    return InputError(
        "INPUT_FIELD_INVALID",
        f"{given[:80]!r} is no address of an Ollama server.",
        remedy=f"Give it like {DEFAULT_URL}, as --ollama-url or as {ENVIRONMENT}.",
    )


def _is_unspecified(host: str) -> bool:
    try:
        return ip_address(host).is_unspecified
    except ValueError:
        return False


class _Counted:
    """Reports the number of sent bytes, and subtracts them when they have to be sent again."""

    def __init__(self, on_bytes: OnBytes | None) -> None:
        self._on_bytes = on_bytes
        self._count = 0

    def __call__(self, count: int) -> None:
        self._count += count
        if self._on_bytes:
            self._on_bytes(count)

    def take_back(self) -> None:
        self(-self._count)


def _chunks(file: IO[bytes], on_bytes: OnBytes) -> Iterator[bytes]:
    while chunk := file.read(CHUNK_BYTES):
        yield chunk
        on_bytes(len(chunk))


def _content(answer: httpx.Response) -> bytes:
    """The whole of a short answer."""
    content = b""
    for chunk in answer.iter_bytes():
        content += chunk
        if len(content) > MAX_ANSWER_BYTES:
            raise _PassingError("an answer has no end")
    return content


def _lines(answer: httpx.Response) -> Iterator[bytes]:
    """The lines of an answer, none longer than MAX_ANSWER_BYTES."""
    rest = b""
    for chunk in answer.iter_bytes():
        *lines, rest = (rest + chunk).split(b"\n")
        if len(rest) > MAX_ANSWER_BYTES:
            raise _PassingError("an answer has no end")
        yield from (line for line in lines if line.strip())
    if rest.strip():
        yield rest


def _document(content: bytes) -> Mapping[str, Any] | None:
    try:
        found = json.loads(content)
    except ValueError:
        return None
    return found if isinstance(found, dict) else None


def _shortened(text: str) -> str:
    return text if len(text) <= 500 else text[:500] + "…"
