"""The base models of a node: fetched once into its cache for all workers, and locked while in use.

A base comes from the object store, file by file with its digest, or from a model hub at a commit.
The download reports its progress on the lease, and resumes after an interruption.
"""

import asyncio
import hashlib
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Final

from chassis import activities, evictions
from chassis.leasing import LeaseSession
from objects import transfer
from objects.cache import FolderCache, folder_bytes
from objects.modelhub import ModelHub
from tunesmith.api.work.v1 import work_pb2

# What is fetched of a model on the hub: weights as safetensors and what describes them; no pickle.
MODEL_PATTERNS: Final = ("*.safetensors", "*.json", "*.jinja", "tokenizer.model", "*.txt")


class Bases:
    """Base models on the local disk; those in use stay locked until they are released."""

    def __init__(
        self, cache: Path, *, bound_bytes: int, hub_url: str, hub_token: str | None
    ) -> None:
        """Neither creates nor fetches anything.

        Args:
            bound_bytes: of the whole cache, 0 for half of its volume.
            hub_token: of this node, for models without a token of their user.
        """
        self._root = cache
        self._cache = FolderCache(cache, bound_bytes=bound_bytes)
        self._hub_url, self._hub_token = hub_url, hub_token
        self._held = ExitStack()

    def let_go(self) -> None:
        """Release every base, so that it may be deleted to make room for another."""
        self._held.close()

    async def commit_of(self, base: work_pb2.BaseModelInput) -> str:
        """The commit of a base on the hub, asked there each time; empty for one from the store.

        Raises:
            Fault: as `ModelHub.describe`.
        """
        if base.files:
            return ""
        return (await self._hub(base).describe(base.model_id, _revision(base))).revision_sha

    async def fetch(
        self,
        session: LeaseSession,
        base: work_pb2.BaseModelInput,
        renewed: transfer.Refresh,
        *,
        commit: str = "",
        is_doubted: bool = False,
    ) -> Path:
        """Folder of the base's files, held; for one on the hub it bears the name of the commit.

        Args:
            renewed: gives URLs of its files once those of the lease have ended.
            commit: which one, when that is known; else the one that the base's revision names.
            is_doubted: compare the cached files with their digests again, or fetch them again.
        Raises:
            Fault: as `transfer.download`, as `ModelHub.fetch`.
        """
        if base.files:
            return await self._fetch_from_store(session, base, renewed, is_doubted=is_doubted)
        hub, revision = self._hub(base), commit or _revision(base)
        place = hub.folder_of(base.model_id)
        if is_doubted:
            self._held.close()
            await asyncio.to_thread(partial(self._cache.forget, place, in_use_too=True))
        self._held.enter_context(self._cache.using(place))
        missing = await hub.missing_bytes(base.model_id, revision, patterns=MODEL_PATTERNS)
        await evictions.make_room(self._cache, missing)
        async with activities.downloading(session, folder=place, needed_bytes=missing):
            return await hub.fetch(base.model_id, revision, patterns=MODEL_PATTERNS)

    async def _fetch_from_store(
        self,
        session: LeaseSession,
        base: work_pb2.BaseModelInput,
        renewed: transfer.Refresh,
        *,
        is_doubted: bool,
    ) -> Path:
        folder = self._root / "store" / digest_of(base.files)
        mark = folder / transfer.COMPLETE_MARK
        self._held.enter_context(self._cache.using(folder))
        if is_doubted:
            mark.unlink(missing_ok=True)
        # With the mark a node need not hash gigabytes before every use.
        if not mark.exists():
            size_bytes = sum(file.size_bytes for file in base.files)
            missing = max(0, size_bytes - folder_bytes(folder))
            await evictions.make_room(self._cache, missing)
            async with activities.downloading(session, folder=folder, needed_bytes=missing):
                await transfer.download_shared(base.files, folder, refresh=renewed)
        return folder

    def _hub(self, base: work_pb2.BaseModelInput) -> ModelHub:
        return ModelHub(self._hub_url, self._root, base.hub_token or self._hub_token)


def digest_of(files: Sequence[work_pb2.InputFile]) -> str:
    """The name of a base whose files are known: the same bytes at the same paths have the same."""
    lines = sorted(f"{file.sha256}  {file.path}\n" for file in files)
    return hashlib.sha256("".join(lines).encode()).hexdigest()[:32]


def _revision(base: work_pb2.BaseModelInput) -> str:
    return base.revision or "main"
