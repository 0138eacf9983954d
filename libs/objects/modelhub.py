"""Base models on a hub that speaks the Hugging Face protocol: what is there, and its files.

A model comes as safetensors, JSON and text or not at all: pickled weights are never fetched.
"""

import asyncio
import errno
import fnmatch
import json
import os
import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httpx
import stamina
from huggingface_hub import HfApi, get_hf_file_metadata, hf_hub_download, hf_hub_url
from huggingface_hub.errors import (
    DisabledRepoError,
    EntryNotFoundError,
    FileMetadataError,
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    LocalEntryNotFoundError,
    RevisionNotFoundError,
)

from lexicon.faults import Fault, FaultCode

Result = TypeVar("Result")

CONFIG_FILE = "config.json"
TOKENIZER_CONFIG_FILE = "tokenizer_config.json"
TEMPLATE_FILE = "chat_template.jinja"
# Any one of these is a tokenizer.
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt")
SAFE_PATTERNS = (
    "*.jinja",
    "*.json",
    "*.safetensors",
    "*.txt",
    "spiece.model",
    "tokenizer.model",
)
MAX_JSON_BYTES = 16 << 20
# Objects, lists and their members: in memory each takes some thirty times what it is as text.
MAX_JSON_PARTS = 1_000_000
MAX_FILE_COUNT = 10_000

REQUEST_SECONDS = 8.0
# The first try and three more; together with the waits it stays under the ten seconds of a check.
ATTEMPTS = 4
RETRY_WAIT_SECONDS = 0.2
RETRY_WAIT_MAX_SECONDS = 2.0
RETRIED_STATUSES = frozenset({408, 429, 500, 502, 503, 504})

_MODEL_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,95}(?:/[A-Za-z0-9][A-Za-z0-9._-]{0,95})?")
# How transformers names the weights of a model, whole or in shards.
_WEIGHTS = re.compile(r"model(?:-[0-9]+-of-[0-9]+)?\.safetensors")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_REVISION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


@dataclass(frozen=True, slots=True, kw_only=True)
class HubModel:
    """A model at one commit.

    Attributes:
        gated: whether the hub asks for an accepted licence.
        files: sizes in bytes by path; -1 where the hub does not say.
        redirected_to: id under which it is now, when it was renamed or moved.
    """

    model_id: str
    revision_sha: str
    gated: bool
    files: Mapping[str, int]
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    template_source: str | None
    redirected_to: str | None

    @property
    def tokenizer_files_present(self) -> bool:
        """Whether there is a tokenizer."""
        return any(name in self.files for name in TOKENIZER_FILES)

    @property
    def safetensors_present(self) -> bool:
        """Whether there are weights that can be read without running code."""
        return any(name.endswith(".safetensors") for name in self.files)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Listing:
    """What the hub says of a revision before any file is read."""

    name: str
    sha: str
    gated: bool
    files: dict[str, int]
    private: bool = False


class ModelHub:
    """A hub, with a cache of files on the local disk that several processes may share."""

    def __init__(
        self,
        endpoint: str,
        cache_dir: Path,
        token: str | None = None,
        *,
        retry_wait_seconds: float = RETRY_WAIT_SECONDS,
    ) -> None:
        self._endpoint = endpoint.rstrip("/")
        self._cache_dir = cache_dir
        # False keeps the library from looking for a token of its own on this machine.
        self._token: str | bool = token or False
        self._retry_wait_seconds = retry_wait_seconds
        self._api = HfApi(endpoint=self._endpoint, token=self._token)

    def with_token(self, token: str) -> "ModelHub":
        """The same hub and cache, asked as somebody else; what this one may not see stays hidden.

        Args:
            token: of a user; it goes into the requests and nowhere else.
        """
        return ModelHub(
            self._endpoint, self._cache_dir, token, retry_wait_seconds=self._retry_wait_seconds
        )

    async def describe(self, model_id: str, revision: str = "main") -> HubModel:
        """What the hub knows of a model, its configs included; no weights are fetched.

        Raises:
            Fault: DEP_MODEL_LOAD_FAILED with the remedy of the hub's answer, MODEL_CONFIG_INVALID
                when a config is not JSON.
        """
        _check_names(model_id, revision)
        return await asyncio.to_thread(self._describe, model_id, revision)

    async def fetch(self, model_id: str, revision: str, *, patterns: Sequence[str]) -> Path:
        """Folder with the files of a commit that match `patterns` and are safe to read.

        Raises:
            Fault: DEP_MODEL_LOAD_FAILED, MODEL_WEIGHTS_INVALID when no file matches.
        """
        _check_names(model_id, revision)
        return await asyncio.to_thread(self._fetch, model_id, revision, tuple(patterns))

    async def missing_bytes(self, model_id: str, revision: str, *, patterns: Sequence[str]) -> int:
        """What `fetch` would write, as far as the hub says how long its files are.

        Raises:
            Fault: DEP_MODEL_LOAD_FAILED.
        """
        _check_names(model_id, revision)
        return await asyncio.to_thread(self._missing_bytes, model_id, revision, tuple(patterns))

    def folder_of(self, model_id: str) -> Path:
        """Where everything that was fetched of a model lies, whether there is anything or not."""
        return self._cache_dir / f"models--{model_id.replace('/', '--')}"

    def _missing_bytes(self, model_id: str, revision: str, patterns: tuple[str, ...]) -> int:
        listing = self._listing(model_id, revision)
        here = self.folder_of(model_id) / "snapshots" / listing.sha
        return sum(
            max(0, listing.files[name])
            for name in _wanted(listing, patterns)
            if not (here / name).exists()
        )

    def _describe(self, model_id: str, revision: str) -> HubModel:
        listing = self._listing(model_id, revision)
        sha, files = listing.sha, listing.files
        template = self._read(model_id, sha, TEMPLATE_FILE, files)
        return HubModel(
            model_id=model_id,
            revision_sha=sha,
            gated=listing.gated,
            files=files,
            config=self._read_json(model_id, sha, CONFIG_FILE, files),
            tokenizer_config=self._read_json(model_id, sha, TOKENIZER_CONFIG_FILE, files),
            template_source=None if template is None else template.decode("utf-8", "replace"),
            redirected_to=listing.name if listing.name != model_id else None,
        )

    def _fetch(self, model_id: str, revision: str, patterns: tuple[str, ...]) -> Path:
        listing = self._listing(model_id, revision)
        wanted = _wanted(listing, patterns)
        if not wanted:
            raise Fault(
                FaultCode.MODEL_WEIGHTS_INVALID,
                f"Model {model_id} has no file like {', '.join(patterns)[:120]} in a safe format",
                model=model_id,
            )
        folder: Path | None = None
        for name in wanted:
            path = self._download(model_id, listing.sha, name)
            # The folder of the commit: the file's path without its own name inside the model.
            folder = path.parents[name.count("/")]
        assert folder is not None
        return folder

    def _listing(self, model_id: str, revision: str) -> _Listing:
        """The files of a revision; a commit never changes, so that its listing is kept.

        What lies in the cache was fetched with somebody's token. Of a model that is not open to
        all, the hub is asked each time whether this token may read it.
        """
        listing = self._known_listing(model_id, revision)
        if (listing.gated or listing.private) and listing.files:
            name = CONFIG_FILE if CONFIG_FILE in listing.files else min(listing.files)
            url = hf_hub_url(model_id, name, revision=listing.sha, endpoint=self._endpoint)
            self._call(
                model_id,
                lambda: get_hf_file_metadata(
                    url, token=self._token, timeout=REQUEST_SECONDS, endpoint=self._endpoint
                ),
            )
        return listing

    def _known_listing(self, model_id: str, revision: str) -> _Listing:
        known = self._cache_dir / "listings" / f"{model_id.replace('/', '--')}@{revision}.json"
        if _COMMIT.fullmatch(revision) and known.is_file():
            return _Listing(**json.loads(known.read_bytes()))
        info = self._call(
            model_id,
            lambda: self._api.model_info(
                model_id, revision=revision, files_metadata=True, timeout=REQUEST_SECONDS
            ),
        )
        listing = _Listing(
            name=info.id or model_id,
            sha=info.sha or revision,
            gated=bool(info.gated),
            private=bool(info.private),
            files=_sizes(info.siblings or []),
        )
        kept = known.with_name(f"{model_id.replace('/', '--')}@{listing.sha}.json")
        kept.parent.mkdir(parents=True, exist_ok=True)
        # Several processes may write the same text at the same time.
        partial = kept.with_name(f"{kept.name}.{os.getpid()}.{threading.get_ident()}.partial")
        partial.write_text(json.dumps(asdict(listing)))
        partial.replace(kept)
        return listing

    def _read_json(
        self, model_id: str, sha: str, name: str, files: Mapping[str, int]
    ) -> dict[str, Any]:
        content = self._read(model_id, sha, name, files)
        if content is None:
            return {}
        if sum(map(content.count, (b"{", b"[", b","))) > MAX_JSON_PARTS:
            raise _config_fault(model_id, name, f"has more than {MAX_JSON_PARTS:,} parts")
        try:
            value = json.loads(content)
        except (ValueError, RecursionError) as error:
            raise _config_fault(model_id, name, "is not JSON") from error
        if not isinstance(value, dict):
            raise _config_fault(model_id, name, "is not a JSON object")
        return value

    def _read(self, model_id: str, sha: str, name: str, files: Mapping[str, int]) -> bytes | None:
        if name not in files:
            return None
        too_large = _config_fault(model_id, name, f"is larger than {MAX_JSON_BYTES >> 20} MiB")
        if files[name] > MAX_JSON_BYTES:
            raise too_large
        path = self._download(model_id, sha, name)
        # A hub may say nothing of a file's size, or not the truth.
        if path.stat().st_size > MAX_JSON_BYTES:
            raise too_large
        return path.read_bytes()

    def _download(self, model_id: str, sha: str, name: str) -> Path:
        return Path(
            self._call(
                model_id,
                lambda: hf_hub_download(
                    model_id,
                    name,
                    revision=sha,
                    cache_dir=self._cache_dir,
                    token=self._token,
                    endpoint=self._endpoint,
                    etag_timeout=REQUEST_SECONDS,
                ),
            )
        )

    def _call(self, model_id: str, work: Callable[[], Result]) -> Result:
        """One request with its retries; only what may pass by itself is tried again."""
        try:
            for attempt in stamina.retry_context(
                on=_may_pass,
                attempts=ATTEMPTS,
                timeout=None,
                wait_initial=self._retry_wait_seconds,
                wait_max=RETRY_WAIT_MAX_SECONDS,
                wait_jitter=self._retry_wait_seconds,
            ):
                with attempt:
                    return work()
        except (HfHubHTTPError, HFValidationError, httpx.HTTPError, OSError) as error:
            _refuse(model_id, error)
        raise AssertionError("the loop returns or raises")


def _check_names(model_id: str, revision: str) -> None:
    """Only ids as the hub gives them: no URL, no path and no host of somebody's choosing."""
    if ".." in model_id or not _MODEL_ID.fullmatch(model_id):
        raise _load_fault(model_id[:100], "is not a model id such as org/name", variant="hub_404")
    if ".." in revision or not _REVISION.fullmatch(revision):
        raise _load_fault(model_id, "has no revision of that name", variant="hub_404")


def _sizes(siblings: Sequence[Any]) -> dict[str, int]:
    if len(siblings) > MAX_FILE_COUNT:
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID, f"The model has more than {MAX_FILE_COUNT} files"
        )
    return {sibling.rfilename: -1 if sibling.size is None else sibling.size for sibling in siblings}


def _matches(name: str, patterns: Sequence[str]) -> bool:
    base = name.rsplit("/", 1)[-1]
    return any(
        fnmatch.fnmatchcase(name, pattern) or fnmatch.fnmatchcase(base, pattern)
        for pattern in patterns
    )


def _wanted(listing: _Listing, patterns: Sequence[str]) -> list[str]:
    """Files that match and are safe, without weights that are there for other programs as well.

    Publishers put `consolidated.safetensors`, or folders for other runtimes, beside the files that
    transformers and llama.cpp read: as many gigabytes again.
    """
    names = [
        name for name in listing.files if _matches(name, patterns) and _matches(name, SAFE_PATTERNS)
    ]
    if not any(_WEIGHTS.fullmatch(name) for name in names):
        return names
    return [name for name in names if not name.endswith(".safetensors") or _WEIGHTS.fullmatch(name)]


def _status(error: BaseException) -> int | None:
    response = getattr(error, "response", None)
    status = getattr(response, "status_code", None)
    return status if isinstance(status, int) else None


def _root(error: BaseException) -> BaseException:
    """What made the library say that a file is not in the cache either."""
    if isinstance(error, LocalEntryNotFoundError) and error.__cause__ is not None:
        return error.__cause__
    return error


def _may_pass(error: Exception) -> bool:
    root = _root(error)
    status = _status(root)
    if status is not None:
        return status in RETRIED_STATUSES
    # The library reports a transfer that was cut as a size that does not fit.
    return isinstance(root, httpx.TransportError | ConnectionError | TimeoutError) or (
        type(root) is OSError and root.errno is None
    )


def _refuse(model_id: str, error: Exception) -> NoReturn:
    root = _root(error)
    status = _status(root)
    if isinstance(root, OSError) and root.errno == errno.ENOSPC:
        raise Fault(FaultCode.STORAGE_FULL, f"The disk is full while loading {model_id}") from error
    if isinstance(root, GatedRepoError | DisabledRepoError) or status == 403:
        what, variant = "is gated: access to it was not granted", "hub_403"
    elif status == 401:
        what, variant = "is private, gated or does not exist", "hub_401"
    elif isinstance(root, RevisionNotFoundError):
        what, variant = "has no revision of that name", "hub_404"
    elif status == 404 or isinstance(root, EntryNotFoundError | HFValidationError):
        what, variant = "was not found", "hub_404"
    elif isinstance(root, FileMetadataError):
        what, variant = "was answered in a way that is not the hub's", "hub_unreachable"
    else:
        what, variant = "could not be loaded: the model hub does not answer", "hub_unreachable"
    raise _load_fault(model_id, what, variant=variant, status=status) from error


def _load_fault(model_id: str, what: str, *, variant: str, status: int | None = None) -> Fault:
    suffix = f" (HTTP {status})" if status is not None else ""
    fault = Fault(
        FaultCode.DEP_MODEL_LOAD_FAILED,
        f"Model {model_id} {what}{suffix}",
        variant=variant,
        model=model_id,
    )
    if status is not None:
        fault.metadata["http_status"] = str(status)
    return fault


def _config_fault(model_id: str, name: str, what: str) -> Fault:
    return Fault(FaultCode.MODEL_CONFIG_INVALID, f"Model {model_id}: {name} {what}", file=name)
