"""URLs of a lease's inputs that are renewed for as long as the lease lasts.

A signed URL is valid for minutes; a download of a large base over a slow line takes hours. Only the
holder of the lease can have its inputs signed again.
"""

import asyncio
from collections.abc import Sequence
from typing import Protocol

from lexicon.faults import TABLE, Fault, FaultCode, Owner
from objects.transfer import RemoteFile


class Signing(Protocol):
    """Signs the inputs again, as `chassis.leasing.LeaseSession` does."""

    async def sign_inputs(self) -> Sequence[RemoteFile]:
        """Every file that the task reads, with a URL signed just now."""
        ...


class InputUrls:
    """The newest URLs of one lease's inputs; files that wait together share one request."""

    def __init__(self, session: Signing) -> None:
        self._session = session
        # By sha256: two inputs of the same bytes may be fetched by either URL.
        self._newest: dict[str, str] = {}
        self._asking = asyncio.Lock()

    async def renewed(self, file: RemoteFile, ended_url: str) -> str:
        """A URL of the file that is newer than one that the store no longer takes.

        Raises:
            Fault: RUN_LEASE_LOST; DEP_SERVICE_UNAVAILABLE when the scheduler or the hub stays away;
                STORAGE_URL_NOT_RENEWED when they answer, but not with such a URL.
        """
        async with self._asking:
            if self._newest.get(file.sha256, ended_url) == ended_url:
                self._newest = await self._ask(file)
        url = self._newest.get(file.sha256)
        if url is None:
            raise Fault(
                FaultCode.STORAGE_URL_NOT_RENEWED,
                "The scheduler no longer counts the file among the inputs of this lease.",
                path=file.path,
            )
        return url

    async def _ask(self, file: RemoteFile) -> dict[str, str]:
        try:
            return {each.sha256: each.url for each in await self._session.sign_inputs()}
        except Fault as fault:
            if fault.code is FaultCode.RUN_LEASE_LOST or TABLE[fault.code].owner is Owner.PLATFORM:
                raise
            # When the scheduler refuses our request, the run's owner is not at fault.
            raise Fault(
                FaultCode.STORAGE_URL_NOT_RENEWED,
                f"The scheduler signed no fresh URL: {fault.message}",
                path=file.path,
                cause=fault.code.value,
            ) from fault
