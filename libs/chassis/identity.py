"""Who calls: one format of token; this module alone creates and checks tokens.

A token is a JSON Web Token (RFC 7519) signed with HMAC-SHA256; it names a subject, one of four
roles and, for projects, the project. The signing key may be several, separated by commas: the
first signs, all verify, so that a key can be replaced without an interruption.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any, Protocol

import jwt

from lexicon import names
from lexicon.faults import Fault, FaultCode

ALGORITHM = "HS256"
METADATA_KEY = "authorization"
SCHEME = "Bearer "
# RFC 7518, section 3.2: the key must be at least as long as the hash.
KEY_BYTES_MIN = 32
# Longer than any token that is made here; longer text is refused before it is decoded.
TOKEN_CHARACTERS_MAX = 4096
# Clocks of two machines of one platform may differ by so much.
CLOCK_SKEW_SECONDS = 60
SERVICE_TOKEN_SECONDS = 300
# A node token with this subject speaks for every node: a pool that scales by itself.
ANY_NODE = "nodes/*"


class Role(StrEnum):
    """The kind of caller that a token identifies."""

    SERVICE = "service"
    NODE = "node"
    PROJECT = "project"
    OPERATOR = "operator"


class _InProject(Protocol):
    @property
    def project(self) -> str | None: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Caller:
    """Who calls.

    Attributes:
        subject: who it is: name of a service, `nodes/{node}`, or of a person or key.
        role: what kind of caller.
        project: the project that the token is for; None for the other roles.
    """

    subject: str
    role: Role
    project: str | None = None

    def require_project(self, name: str | _InProject) -> None:
        """Refuse names of another project; services and operators may use all.

        Args:
            name: a parsed resource name, a name that begins with `projects/{project}`, or the id
                of a project. A catalog name belongs to no project and is everybody's.
        Raises:
            Fault: ACCESS_PROJECT_FORBIDDEN.
        """
        match self.role:
            case Role.SERVICE | Role.OPERATOR:
                return
            case Role.NODE:
                raise Fault(FaultCode.ACCESS_PROJECT_FORBIDDEN)
            case Role.PROJECT:
                project = _project_of(name)
                if project is not None and project != self.project:
                    raise Fault(FaultCode.ACCESS_PROJECT_FORBIDDEN, project=project)

    def require_node(self, name: str) -> None:
        """Refuse a node that calls in the name of another node; services may name all.

        Raises:
            Fault: ACCESS_DENIED.
        """
        if self.role is Role.SERVICE:
            return
        if self.role is not Role.NODE or self.subject not in (name, ANY_NODE):
            raise Fault(FaultCode.ACCESS_DENIED, "The token belongs to another node.")


_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


def check_key(key: str) -> tuple[str, ...]:
    """The keys that a setting holds, first the one that signs.

    Raises:
        Fault: CONFIG_INVALID when there is none or one is too short.
    """
    keys = tuple(part.strip() for part in key.split(",") if part.strip())
    if not keys or any(len(part.encode()) < KEY_BYTES_MIN for part in keys):
        raise Fault(
            FaultCode.CONFIG_INVALID,
            f"The signing key must be at least {KEY_BYTES_MIN} bytes long.",
            remedy='Make one: `python -c "import secrets; print(secrets.token_urlsafe(48))"`.',
        )
    return keys


def mint(
    key: str,
    *,
    subject: str,
    role: Role,
    project: str | None = None,
    ttl_seconds: float | None = None,
    now: datetime,
) -> str:
    """A signed token.

    Args:
        key: signing key or keys.
        subject: who it is for.
        project: required for role project, forbidden for the others.
        ttl_seconds: how long it is valid; None for good.
        now: time with zone.
    """
    assert subject
    assert (project is not None) == (role is Role.PROJECT), role
    claims: dict[str, Any] = {"sub": subject, "role": role.value, "iat": int(now.timestamp())}
    if project is not None:
        claims["project"] = names.check_id(project, field="project")
    if ttl_seconds is not None:
        claims["exp"] = int((now + timedelta(seconds=ttl_seconds)).timestamp())
    return jwt.encode(claims, check_key(key)[0], algorithm=ALGORITHM)


def verify(key: str, token: str, now: datetime) -> Caller:
    """Who the token speaks for.

    Raises:
        Fault: ACCESS_TOKEN_INVALID for everything that is not a valid token of these keys.
    """
    claims = _decoded(key, token)
    subject, role_text, project = claims.get("sub"), claims.get("role"), claims.get("project")
    issued, expires = claims.get("iat"), claims.get("exp")
    try:
        role = Role(str(role_text))
    except ValueError:
        raise Fault(FaultCode.ACCESS_TOKEN_INVALID) from None
    sound = (
        isinstance(subject, str)
        and subject != ""
        and isinstance(issued, int)
        and issued <= now.timestamp() + CLOCK_SKEW_SECONDS
        and (expires is None or isinstance(expires, int))
        and isinstance(project, str) == (role is Role.PROJECT)
    )
    if not sound:
        raise Fault(FaultCode.ACCESS_TOKEN_INVALID)
    if expires is not None and now.timestamp() >= expires:
        raise Fault(FaultCode.ACCESS_TOKEN_INVALID, "The token has expired.", variant="expired")
    return Caller(subject=str(subject), role=role, project=project)


def token_of(header: str | bytes | None) -> str:
    """The token of an `authorization` header.

    Raises:
        Fault: ACCESS_TOKEN_MISSING, or ACCESS_TOKEN_INVALID for another scheme.
    """
    if not header:
        raise Fault(FaultCode.ACCESS_TOKEN_MISSING)
    text = header.decode("latin-1") if isinstance(header, bytes) else header
    scheme, _, token = text.partition(" ")
    if scheme.lower() != SCHEME.strip().lower() or not token:
        raise Fault(FaultCode.ACCESS_TOKEN_INVALID)
    return token.strip()


def service_token(
    key: str, service: str, *, clock: Callable[[], float] = time.time
) -> Callable[[], str]:
    """A function that gives a valid token of this service, renewed before it expires.

    Args:
        clock: seconds since 1970.
    """
    check_key(key)
    made: list[tuple[float, str]] = []

    def token() -> str:
        seconds = clock()
        if not made or not 0 <= seconds - made[0][0] < SERVICE_TOKEN_SECONDS / 2:
            fresh = mint(
                key,
                subject=service,
                role=Role.SERVICE,
                ttl_seconds=SERVICE_TOKEN_SECONDS,
                now=datetime.fromtimestamp(seconds, UTC),
            )
            made[:] = [(seconds, fresh)]
        return made[0][1]

    return token


def current_caller() -> Caller:
    """Who makes the call that is being answered.

    Raises:
        Fault: ACCESS_TOKEN_MISSING outside an authenticated call.
    """
    caller = _CALLER.get()
    if caller is None:
        raise Fault(FaultCode.ACCESS_TOKEN_MISSING)
    return caller


def enter(caller: Caller) -> None:
    """Make this the caller for the rest of the current task; each call runs in its own."""
    _CALLER.set(caller)


@contextmanager
def calling_as(caller: Caller) -> Iterator[None]:
    """Within the block this is the caller."""
    mark = _CALLER.set(caller)
    try:
        yield
    finally:
        _CALLER.reset(mark)


@functools.lru_cache(maxsize=1024)
def _decoded(key: str, token: str) -> Mapping[str, Any]:
    """The claims of a token with a valid signature, which does not change with time."""
    if len(token) > TOKEN_CHARACTERS_MAX:
        raise Fault(FaultCode.ACCESS_TOKEN_INVALID)
    options: Any = {"verify_exp": False, "verify_iat": False, "verify_aud": False}
    for candidate in check_key(key):
        try:
            claims: dict[str, Any] = jwt.decode(
                token, candidate, algorithms=[ALGORITHM], options=options
            )
        except jwt.InvalidSignatureError:
            continue
        except (jwt.PyJWTError, ValueError):
            break
        return claims
    raise Fault(FaultCode.ACCESS_TOKEN_INVALID)


def _project_of(name: str | _InProject) -> str | None:
    if not isinstance(name, str):
        return name.project
    if "/" not in name:
        return name
    parts = name.split("/")
    # Any other text is outside of the caller's project.
    return parts[1] if parts[0] == "projects" else ""
