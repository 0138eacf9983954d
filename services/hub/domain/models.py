"""Base models: how a user names them, and the waiver of the refund for unverified models."""

import hashlib
import re
from dataclasses import dataclass
from datetime import datetime
from typing import Final
from urllib.parse import urlsplit

from lexicon.faults import Fault, FaultCode
from lexicon.names import ModelName

# The addresses of the public model hub. Only the id inside such a URL is used, never the URL
# itself: what is fetched later is always asked of the configured hub.
HUB_HOSTS: Final = frozenset({"huggingface.co", "www.huggingface.co", "hf.co"})

DEFAULT_REVISION: Final = "main"

# The model hub's own rules: letters, digits, `-`, `_`, `.`, at most 96 characters a part.
_ID_PART: Final = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9_])?"
_HUB_ID: Final = re.compile(rf"{_ID_PART}/{_ID_PART}", re.ASCII)
_REVISION: Final = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._/-]{0,126}[A-Za-z0-9])?", re.ASCII)
_MAX_TEXT_CHARACTERS: Final = 512

# Names have at most 63 characters: 54 of the id, a hyphen, 8 of its digest.
_SLUG_CHARACTERS: Final = 54
_DIGEST_CHARACTERS: Final = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """A model as a user named it: an id, and a revision where the URL had one."""

    model_id: str
    revision: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Consent:
    """Who waived the refund for an unverified model, and when."""

    user: str
    consent_time: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFile:
    """A file of a model in the platform's own store."""

    path: str
    object_key: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Model:
    """A base model; without a name it is one that only the model hub knows."""

    name: ModelName | None
    model_id: str
    revision: str
    family: str = ""
    verified: bool = False
    architecture: str = ""
    parameter_count: int = 0
    context_tokens: int = 0
    license: str = ""
    gated: bool = False
    files: tuple[ModelFile, ...] = ()
    consent: Consent | None = None
    create_time: datetime | None = None


def parse_reference(text: str) -> Reference:
    """Returns what a hub id or a hub URL names.

    Raises:
        Fault: MODEL_NOT_FOUND for anything else; a URL of another host is never followed.
    """
    text = text.strip()
    if len(text) > _MAX_TEXT_CHARACTERS or not text.isprintable():
        raise _unreadable()
    reference = _from_url(text) if "://" in text else Reference(model_id=text, revision="")
    if not _HUB_ID.fullmatch(reference.model_id) or ".." in reference.model_id:
        raise _unreadable()
    return Reference(
        model_id=reference.model_id,
        revision=check_revision(reference.revision) if reference.revision else "",
    )


def check_revision(text: str) -> str:
    """Returns a branch, tag or commit; empty means the default branch.

    Raises:
        Fault: INPUT_FIELD_INVALID.
    """
    revision = text or DEFAULT_REVISION
    if not _REVISION.fullmatch(revision) or ".." in revision or "//" in revision:
        raise Fault(
            FaultCode.INPUT_FIELD_INVALID,
            "revision must be a branch, tag or commit of the model hub.",
            field="revision",
        )
    return revision


def catalog_slug(model_id: str) -> str:
    """The resource id of a catalog model: its id in lower case with hyphens."""
    return re.sub(r"[^a-z0-9]+", "-", model_id.lower()).strip("-")[:63].strip("-")


def added_slug(model_id: str) -> str:
    """The resource id of an added model; the digest separates ids that differ only in signs."""
    digest = hashlib.sha256(model_id.encode()).hexdigest()[:_DIGEST_CHARACTERS]
    return f"{catalog_slug(model_id)[:_SLUG_CHARACTERS].strip('-')}-{digest}"


def consent_of(*, refund_waived: bool, user: str, now: datetime, model_id: str) -> Consent:
    """Records the waiver (000-05).

    Raises:
        Fault: MODEL_CONSENT_MISSING when the box was not ticked.
    """
    if not refund_waived:
        raise Fault(FaultCode.MODEL_CONSENT_MISSING, model=model_id)
    return Consent(user=user, consent_time=now)


def _from_url(text: str) -> Reference:
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError as error:
        raise _unreadable() from error
    plain = parts.scheme == "https" and port is None and "@" not in parts.netloc
    if not plain or parts.hostname not in HUB_HOSTS or parts.query or parts.fragment:
        raise _unreadable()
    match parts.path.strip("/").split("/"):
        case [org, name]:
            return Reference(model_id=f"{org}/{name}", revision="")
        case [org, name, "tree" | "resolve" | "blob", *revision] if revision:
            return Reference(model_id=f"{org}/{name}", revision="/".join(revision))
        case _:
            raise _unreadable()


def _unreadable() -> Fault:
    return Fault(
        FaultCode.MODEL_NOT_FOUND,
        "The base model is neither an id like `org/name` nor a URL of the model hub.",
    )
