"""Signed URLs: a right to GET or PUT one object until a moment, without a credential of the store.

The signature is HMAC-SHA256 over method, path and the query in its one canonical spelling, so that
a change of any character, also one that would decode to the same text, makes the URL worthless.
Several keys may verify at once while one is replaced; the first one signs.
"""

import hashlib
import hmac
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Final, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from lexicon.faults import Fault, FaultCode
from objects.keys import check_key

Method = Literal["GET", "PUT"]

# 16 characters of key text carry at least the 64 bits below which guessing becomes thinkable.
MIN_KEY_CHARACTERS: Final = 16

# The most that S3 and GCS sign for, too: 7 days.
MAX_LIFETIME: Final = timedelta(days=7)

_PATH: Final = "/objects/"
_MICROS: Final = timedelta(microseconds=1)
_EPOCH: Final = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_QUERY_CHARACTERS: Final = 2048


@dataclass(frozen=True, slots=True, kw_only=True)
class Grant:
    """What a verified URL allows."""

    key: str
    method: Method
    expire_time: datetime
    size_bytes: int | None
    file_name: str | None


class UrlSigner:
    """Signs and verifies URLs below one base URL."""

    def __init__(self, keys: Sequence[str], base_url: str) -> None:
        """Takes the keys, newest first, and the address under which the gateway serves objects.

        Raises:
            Fault: CONFIG_INVALID without a key or with one that is too short.
        """
        if not keys or any(len(key) < MIN_KEY_CHARACTERS for key in keys):
            raise Fault(
                FaultCode.CONFIG_INVALID,
                f"Signed URLs need keys of at least {MIN_KEY_CHARACTERS} characters.",
            )
        self._keys = tuple(key.encode() for key in keys)
        self._base_url = base_url.rstrip("/")
        self._path_prefix = urlsplit(self._base_url).path + _PATH

    def sign(
        self,
        key: str,
        method: Method,
        *,
        expire_time: datetime,
        size_bytes: int | None = None,
        file_name: str | None = None,
    ) -> str:
        """Returns a URL that allows `method` on one object until `expire_time`.

        Args:
            size_bytes: for PUT, the exact size that is allowed.
            file_name: for GET, the name under which a browser saves the file.
        """
        grant = Grant(
            key=check_key(key),
            method=method,
            expire_time=expire_time,
            size_bytes=size_bytes,
            file_name=file_name,
        )
        path = self._path_prefix + grant.key
        query = _canonical_query(grant)
        signature = _signature(self._keys[0], path=path, query=query)
        return f"{self._base_url}{_PATH}{grant.key}?{query}&signature={signature}"

    def verify(self, method: str, url_path: str, query: str, now: datetime) -> Grant:
        """Returns what a URL allows.

        Args:
            method: of the HTTP request; HEAD goes with a URL for GET.
            url_path: path as it was sent, percent-encoding untouched.
            query: query as it was sent, without `?`.
        Raises:
            Fault: STORAGE_URL_INVALID for anything that was not signed exactly so,
                STORAGE_URL_EXPIRED after its time. Neither says more, so that guessing learns
                nothing.
        """
        grant, signature = self._parse(url_path, query)
        path = self._path_prefix + grant.key
        canonical = _canonical_query(grant)
        # All keys are tried, so that the time taken does not reveal which of them signed.
        matches = [
            hmac.compare_digest(_signature(key, path=path, query=canonical), signature)
            for key in self._keys
        ]
        spelled_as_signed = url_path == path and query == f"{canonical}&signature={signature}"
        if not any(matches) or not spelled_as_signed:
            raise Fault(FaultCode.STORAGE_URL_INVALID)
        if method != grant.method and not (method == "HEAD" and grant.method == "GET"):
            raise Fault(FaultCode.STORAGE_URL_INVALID)
        if grant.expire_time - now > MAX_LIFETIME:
            raise Fault(FaultCode.STORAGE_URL_INVALID)
        if now >= grant.expire_time:
            raise Fault(FaultCode.STORAGE_URL_EXPIRED)
        return grant

    def _parse(self, url_path: str, query: str) -> tuple[Grant, str]:
        if not url_path.startswith(self._path_prefix) or len(query) > _MAX_QUERY_CHARACTERS:
            raise Fault(FaultCode.STORAGE_URL_INVALID)
        try:
            fields = dict(parse_qsl(query, keep_blank_values=True, strict_parsing=True))
            signature = fields.pop("signature")
            signature.encode("ascii")
            method = fields.pop("method")
            size = fields.pop("size", None)
            name = fields.pop("name", None)
            expire_time = _EPOCH + int(fields.pop("expires")) * _MICROS
            key = check_key(url_path.removeprefix(self._path_prefix))
            size_bytes = None if size is None else int(size)
        except (KeyError, ValueError, OverflowError, Fault) as error:
            raise Fault(FaultCode.STORAGE_URL_INVALID) from error
        if fields or method not in {"GET", "PUT"}:
            raise Fault(FaultCode.STORAGE_URL_INVALID)
        grant = Grant(
            key=key,
            method="GET" if method == "GET" else "PUT",
            expire_time=expire_time,
            size_bytes=size_bytes,
            file_name=name,
        )
        return grant, signature


def _canonical_query(grant: Grant) -> str:
    """The one spelling of a grant: fields in fixed order, absent ones left out, RFC 3986 encoding.

    `expires` is in microseconds since 1970, so that two URLs for one file made in a row differ.
    """
    fields = {
        "method": grant.method,
        "expires": str((grant.expire_time - _EPOCH) // _MICROS),
    }
    if grant.size_bytes is not None:
        fields["size"] = str(grant.size_bytes)
    if grant.file_name is not None:
        fields["name"] = grant.file_name
    return urlencode(fields, quote_via=quote, safe="")


def _signature(key: bytes, *, path: str, query: str) -> str:
    return hmac.new(key, f"{path}\n{query}".encode(), hashlib.sha256).hexdigest()
