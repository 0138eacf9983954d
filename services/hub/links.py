"""Signed URLs of the hub: short-lived, for one object, a new one for each call."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta

from objects.signing import UrlSigner


@dataclass(frozen=True, slots=True, kw_only=True)
class Link:
    """A signed URL and when it ends."""

    url: str
    expire_time: datetime


class Links:
    """Signs URLs that are valid for a fixed time from now."""

    def __init__(
        self, signer: UrlSigner, *, lifetime: timedelta, clock: Callable[[], datetime]
    ) -> None:
        self._signer = signer
        self.lifetime = lifetime
        self._clock = clock

    def get(self, key: str, *, file_name: str | None = None) -> Link:
        """A URL for GET; with a file name a browser saves the object under it."""
        expire_time = self._clock() + self.lifetime
        url = self._signer.sign(key, "GET", expire_time=expire_time, file_name=file_name)
        return Link(url=url, expire_time=expire_time)

    def put(self, key: str, *, size_bytes: int | None) -> Link:
        """A URL for PUT of exactly so many bytes; None leaves the size to the store's limit."""
        expire_time = self._clock() + self.lifetime
        url = self._signer.sign(key, "PUT", expire_time=expire_time, size_bytes=size_bytes)
        return Link(url=url, expire_time=expire_time)
