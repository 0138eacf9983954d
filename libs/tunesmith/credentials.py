"""Address and credentials of a platform: one small JSON file, readable by its owner alone."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from ipaddress import ip_address
from pathlib import Path

from tunesmith.errors import AccessError

ENVIRONMENT_FILE = "TUNESMITH_CREDENTIALS"
ENVIRONMENT_STATE = "TUNESMITH_STATE"
FILE_NAME = "credentials.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client needs to reach a platform.

    Attributes:
        address: `host:port` of the gateway, `https://host:port` where it speaks TLS.
        project: id of the project, without `projects/`.
        token: token of that project.
        http_url: base of the up- and downloads, for people; signed URLs carry their own.
        ca_file: certificates to trust in place of the system's; empty for the system's.
        cert_file: our own certificate, where the gateway asks for one; empty without.
        key_file: its private key. The three files may be relative to the credentials' folder.
        operator_token: token of the operator of a local platform; empty elsewhere.
        nats_url: NATS server of the events for subscribers; empty without one.
        nats_user: user that may only subscribe.
        nats_password: its password.
    """

    address: str
    project: str
    token: str
    http_url: str = ""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    operator_token: str = ""
    nats_url: str = ""
    nats_user: str = ""
    nats_password: str = ""

    def __repr__(self) -> str:
        """Address and project; secrets stay out of logs and tracebacks."""
        return f"Credentials(address={self.address!r}, project={self.project!r})"

    @property
    def parent(self) -> str:
        """Resource name of the project."""
        return f"projects/{self.project}"

    @property
    def target(self) -> str:
        """`host:port` as gRPC dials it."""
        return self.address.removeprefix("https://").rstrip("/")

    @property
    def is_tls(self) -> bool:
        """Whether the connection is encrypted.

        Raises:
            AccessError: plain text beyond this machine; anyone could read the token.
        """
        if self.address.startswith("https://"):
            return True
        if not is_loopback(self.target):
            raise AccessError(
                "ACCESS_DENIED",
                f"The gateway {self.address} is not on this machine and has no TLS.",
                remedy="Give its address as https://host:port.",
            )
        return False


def load(path: Path | None = None, *, environ: Mapping[str, str] = os.environ) -> Credentials:
    """The credentials of a file: `path`, $TUNESMITH_CREDENTIALS, or the default state folder.

    Raises:
        AccessError: ACCESS_TOKEN_MISSING when there is no file or it cannot be read.
    """
    file = path or default_file(environ)
    try:
        document = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise _refused(f"There are no credentials at {file}.") from None
    except (OSError, ValueError) as error:
        raise _refused(f"The credentials at {file} cannot be read: {error}.") from None
    known = {field.name for field in fields(Credentials)}
    if not isinstance(document, dict):
        raise _refused(f"The credentials at {file} are not a JSON object.")
    values = {key: str(value) for key, value in document.items() if key in known}
    missing = [key for key in ("address", "project", "token") if not values.get(key)]
    if missing:
        raise _refused(f"The credentials at {file} lack {', '.join(missing)}.")
    for key in ("ca_file", "cert_file", "key_file"):
        if values.get(key):
            values[key] = str(file.parent / values[key])
    return Credentials(**values)


def resolve(
    credentials: Credentials | Path | None, *, address: str, token: str, project: str
) -> Credentials:
    """Credentials from an object, a file or the default place, with parts replaced."""
    if credentials is None and address and token and project:
        return Credentials(address=address, token=token, project=project)
    found = credentials if isinstance(credentials, Credentials) else load(credentials)
    return replace(
        found,
        address=address or found.address,
        token=token or found.token,
        project=project or found.project,
    )


def save(credentials: Credentials, path: Path) -> None:
    """Write the file, all or nothing, readable by its owner alone."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            os.fchmod(file.fileno(), 0o600)
            json.dump({k: v for k, v in asdict(credentials).items() if v}, file, indent=2)
            file.write("\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(path)
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise


def default_file(environ: Mapping[str, str] = os.environ) -> Path:
    """$TUNESMITH_CREDENTIALS, otherwise `credentials.json` of the default state folder."""
    named = environ.get(ENVIRONMENT_FILE, "")
    return Path(named) if named else default_state_folder(environ) / FILE_NAME


def default_state_folder(environ: Mapping[str, str] = os.environ) -> Path:
    """$TUNESMITH_STATE, otherwise `tunesmith` in the user's state folder."""
    named = environ.get(ENVIRONMENT_STATE, "")
    if named:
        return Path(named)
    base = environ.get("XDG_STATE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return home / "tunesmith"


def is_loopback(target: str) -> bool:
    """Whether `host:port` stays on this machine."""
    host = target.rpartition(":")[0].strip("[]")
    if host == "localhost":
        return True
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _refused(message: str) -> AccessError:
    return AccessError(
        "ACCESS_TOKEN_MISSING",
        message,
        remedy="Start a local platform with `tunesmith up`, or run `tunesmith login`.",
    )
