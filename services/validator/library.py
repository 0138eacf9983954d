"""Base models: fetch the files that checks need, and read facts from them."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc.aio

from chassis.evictions import make_room
from corpus.chat import TEMPLATE_FILE, TOKENIZER_CONFIG_FILE, find_source, read_tokenizer_config
from lexicon.faults import Fault, FaultCode
from modelspec.shape import ModelShape
from objects.cache import DESK_PLACES, FolderCache, folder_bytes
from objects.modelhub import CONFIG_FILE, MAX_JSON_BYTES, TOKENIZER_FILES, ModelHub
from objects.transfer import download
from tunesmith.api.artifact.v1 import object_service_pb2, object_service_pb2_grpc
from tunesmith.api.model.v1 import model_pb2, model_service_pb2, model_service_pb2_grpc
from validator.domain.facts import ModelFacts

FAST_TOKENIZER_FILE = "tokenizer.json"
SENTENCEPIECE_FILE = "tokenizer.model"
# The largest vocabularies of today are about half of it.
MAX_TOKENIZER_BYTES = 64 << 20
# What is fetched of a model to check it.
CHECKED_FILES = (CONFIG_FILE, TOKENIZER_CONFIG_FILE, TEMPLATE_FILE, FAST_TOKENIZER_FILE)
CALL_SECONDS = 8.0
FETCH_SECONDS = 20.0
# Longer than any check takes, so that a file is not deleted while a check reads it.
IDLE_SECONDS = 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """A base model.

    Attributes:
        model: as the hub describes it.
        tokenizer_folder: with the fast tokenizer and the template; None without a fast tokenizer.
    """

    model: model_pb2.Model
    facts: ModelFacts
    tokenizer_folder: Path | None


@dataclass(frozen=True, slots=True, kw_only=True)
class _File:
    path: str
    url: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Contents:
    """Facts from the files of a model, independent of their source."""

    revision: str
    files: Mapping[str, int]
    config: Mapping[str, Any]
    tokenizer_config: Mapping[str, Any]
    template_source: str | None
    folder: Path | None
    redirected_to: str | None = None


class Library:
    """Finds base models by what a user typed."""

    def __init__(
        self, hub: grpc.aio.Channel, model_hub: ModelHub, *, cache: Path, cache_bytes: int = 0
    ) -> None:
        self._models = model_service_pb2_grpc.ModelServiceStub(hub)
        self._objects = object_service_pb2_grpc.ObjectServiceStub(hub)
        self._model_hub = model_hub
        self._cache = cache
        self._kept = FolderCache(
            cache, bound_bytes=cache_bytes, places=DESK_PLACES, idle_seconds=IDLE_SECONDS
        )

    async def find(self, parent: str, text: str, *, hub_token: str = "") -> Found:
        """The model, with configs and tokenizer on the local disk.

        Args:
            hub_token: of the user for the model hub, in place of the platform's own.
        Raises:
            Fault: MODEL_NOT_FOUND, DEP_MODEL_LOAD_FAILED, MODEL_CONFIG_INVALID,
                DEP_SERVICE_UNAVAILABLE.
        """
        response = await self._models.ResolveModel(
            model_service_pb2.ResolveModelRequest(parent=parent, base_model=text),
            timeout=CALL_SECONDS,
        )
        model: model_pb2.Model = response.model
        try:
            async with asyncio.timeout(FETCH_SECONDS):
                if model.files:
                    contents = await self._stored(model)
                else:
                    hub = self._model_hub.with_token(hub_token) if hub_token else self._model_hub
                    contents = await self._hosted(hub, model)
        except TimeoutError as error:
            raise Fault(
                FaultCode.DEP_MODEL_LOAD_FAILED,
                f"Model {model.model_id} did not arrive within {FETCH_SECONDS:g} s.",
                variant="hub_unreachable",
            ) from error
        return Found(
            model=model,
            facts=_facts(model, contents),
            tokenizer_folder=(
                contents.folder
                if contents.files.get(FAST_TOKENIZER_FILE, MAX_TOKENIZER_BYTES + 1)
                <= MAX_TOKENIZER_BYTES
                else None
            ),
        )

    async def _stored(self, model: model_pb2.Model) -> _Contents:
        """A model with files in the platform's own store."""
        wanted = [
            file
            for file in model.files
            if file.path in CHECKED_FILES and file.size_bytes <= MAX_TOKENIZER_BYTES
        ]
        digest = hashlib.sha256("".join(file.sha256 for file in wanted).encode()).hexdigest()
        folder = self._cache / "stored" / digest[:32]
        self._note_use(folder)
        missing = sum(file.size_bytes for file in wanted) - folder_bytes(folder)
        await make_room(self._kept, max(0, missing))
        await download(await self._signed(wanted), folder)
        template = folder / TEMPLATE_FILE
        return _Contents(
            revision=model.revision,
            files={file.path: file.size_bytes for file in model.files},
            config=_read_config(folder / CONFIG_FILE),
            tokenizer_config=_read_tokenizer_config(folder / TOKENIZER_CONFIG_FILE),
            template_source=template.read_text("utf-8", "replace") if template.is_file() else None,
            folder=folder,
        )

    async def _hosted(self, hub: ModelHub, model: model_pb2.Model) -> _Contents:
        """A model that is fetched from the model hub."""
        self._note_use(hub.folder_of(model.model_id))
        described = await hub.describe(model.model_id, model.revision or "main")
        folder: Path | None = None
        if described.files.get(FAST_TOKENIZER_FILE, MAX_TOKENIZER_BYTES + 1) <= MAX_TOKENIZER_BYTES:
            revision = described.revision_sha
            missing = await hub.missing_bytes(model.model_id, revision, patterns=CHECKED_FILES)
            await make_room(self._kept, missing)
            folder = await hub.fetch(model.model_id, revision, patterns=CHECKED_FILES)
        return _Contents(
            revision=described.revision_sha,
            files=described.files,
            config=described.config,
            tokenizer_config=described.tokenizer_config,
            template_source=described.template_source,
            folder=folder,
            redirected_to=described.redirected_to,
        )

    def _note_use(self, folder: Path) -> None:
        with self._kept.using(folder):
            pass

    async def _signed(self, files: Sequence[model_pb2.ModelFile]) -> list[_File]:
        if not files:
            return []
        response = await self._objects.SignObjects(
            object_service_pb2.SignObjectsRequest(
                objects=[
                    object_service_pb2.ObjectRequest(
                        uri=file.uri, method=object_service_pb2.OBJECT_METHOD_GET
                    )
                    for file in files
                ]
            ),
            timeout=CALL_SECONDS,
        )
        return [
            _File(path=file.path, url=signed.url, size_bytes=file.size_bytes, sha256=file.sha256)
            for file, signed in zip(files, response.objects, strict=True)
        ]


def _facts(model: model_pb2.Model, contents: _Contents) -> ModelFacts:
    try:
        shape: ModelShape | Fault = ModelShape.from_config(contents.config)
    except Fault as fault:
        shape = fault
    template = find_source(contents.tokenizer_config, source=contents.template_source)
    return ModelFacts(
        model_id=model.model_id,
        revision=contents.revision,
        verified=model.verified,
        refund_waived=model.consent.refund_waived,
        family=model.family,
        shape=shape,
        tokenizer_present=any(name in contents.files for name in TOKENIZER_FILES),
        tokenizer_bytes=sum(
            max(0, size)
            for name, size in contents.files.items()
            if name in TOKENIZER_FILES or name == TOKENIZER_CONFIG_FILE
        ),
        has_sentencepiece=SENTENCEPIECE_FILE in contents.files,
        safetensors_present=any(name.endswith(".safetensors") for name in contents.files),
        template_missing=template is None,
        redirected_to=contents.redirected_to,
    )


def _read_config(path: Path) -> Mapping[str, Any]:
    if not path.is_file() or path.stat().st_size > MAX_JSON_BYTES:
        return {}
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Fault(FaultCode.MODEL_CONFIG_INVALID, f"{CONFIG_FILE} is not JSON") from error
    return value if isinstance(value, dict) else {}


def _read_tokenizer_config(path: Path) -> Mapping[str, Any]:
    return read_tokenizer_config(path.read_bytes()) if path.is_file() else {}
