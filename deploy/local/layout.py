"""The state folder of one stack: its paths, its ports, its secrets."""

from __future__ import annotations

import fcntl
import json
import os
import secrets
import socket
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from deploy.local import places
from deploy.local.refusal import SetupRefused

# Below the range that systems use for outgoing connections (Linux 32768, macOS 49152).
FIRST_PORT = 20000
LAST_PORT = 29999
STACK_ID_BYTES = 8
SECRET_BYTES = 32
# sun_path holds 108 bytes with its end on Linux, 104 on macOS; Postgres adds "/.s.PGSQL.NNNNN".
SOCKET_PATH_BYTES = 103
SOCKET_NAME_BYTES = len("/.s.PGSQL.65535")

PORT_NAMES = (
    "postgres",
    "nats",
    "gateway",
    "gateway_http",
    "scheduler",
    "validator",
    "billing",
    "hub",
    "trainer",
    "exporter",
)
SECRET_NAMES = (
    "signing_key",
    "objects_key",
    "scheduler_db",
    "billing_db",
    "hub_db",
    "scheduler_nats",
    "billing_nats",
    "events_nats",
    "operator_nats",
    "system_nats",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """The paths, ports and secrets of one stack.

    Attributes:
        stack_id: created with the folder; marks this stack's processes and outside folders.
        ports: port number by name, all on 127.0.0.1.
        secrets: key or password by name.
        postgres_home: holds data/ and, where the path is short enough, the socket.
        postgres_user: account that runs Postgres when root runs the stack, else None.
        socket_folder: where Postgres puts its socket.
    """

    state: Path
    stack_id: str
    ports: dict[str, int]
    secrets: dict[str, str]
    postgres_home: Path
    postgres_user: str | None
    socket_folder: Path

    @property
    def logs(self) -> Path:
        """One file per process."""
        return self.state / "logs"

    @property
    def pids(self) -> Path:
        """One record per running process."""
        return self.state / "pids"

    @property
    def credentials(self) -> Path:
        """The credentials file of the SDK and the CLI."""
        return self.state / "credentials.json"

    @property
    def status(self) -> Path:
        """The supervisor's last report about its processes."""
        return self.state / "status.json"

    @property
    def lock(self) -> Path:
        """Held by the supervisor as long as it lives."""
        return self.state / "supervisor.lock"


def default_state() -> Path:
    """TUNESMITH_STATE, or the user's state folder."""
    named = os.environ.get("TUNESMITH_STATE", "")
    if named:
        return Path(named).expanduser().resolve()
    base = os.environ.get("XDG_STATE_HOME", "")
    home = Path(base) if base.startswith("/") else Path.home() / ".local" / "state"
    return home / "tunesmith"


def open_layout(state: Path) -> Layout:
    """Create the state folder unless it exists, and read or choose its ports and secrets.

    Ports that another program has taken since are chosen again.

    Raises:
        SetupRefused: the folder belongs to another account, cannot be created, or is damaged.
    """
    state = state.expanduser().absolute()
    _make_private(state)
    for name in ("logs", "pids", "objects", "work", "nats"):
        (state / name).mkdir(mode=0o700, exist_ok=True)
    with (state / "layout.lock").open("a") as lock:
        # Two concurrent commands on a new folder must not choose different secrets.
        fcntl.flock(lock, fcntl.LOCK_EX)
        record = _read_private(state / "secrets.json")
        made = {name: secrets.token_urlsafe(SECRET_BYTES) for name in SECRET_NAMES}
        made["stack_id"] = secrets.token_hex(STACK_ID_BYTES)
        merged = {**made, **record}
        if merged != record:
            places.write_whole(state / "secrets.json", json.dumps(merged, indent=2), mode=0o600)
        ports = _settled_ports(state, merged["stack_id"])
    home, user = _postgres_place(state, merged["stack_id"])
    return Layout(
        state=state,
        stack_id=merged["stack_id"],
        ports=ports,
        secrets={name: merged[name] for name in SECRET_NAMES},
        postgres_home=home,
        postgres_user=user,
        socket_folder=_socket_folder(home, merged["stack_id"]),
    )


def choose_ports(
    names: Sequence[str], *, start: int, is_free: Callable[[int], bool]
) -> dict[str, int]:
    """A free port for each name, searched upwards from a start, with wrap-around.

    Raises:
        SetupRefused: fewer free ports than names.
    """
    span = LAST_PORT - FIRST_PORT + 1
    found: dict[str, int] = {}
    waiting = list(names)
    for offset in range(span):
        if not waiting:
            return found
        port = FIRST_PORT + (start + offset) % span
        if is_free(port):
            found[waiting.pop(0)] = port
    if waiting:
        raise SetupRefused(
            f"Fewer than {len(names)} ports between {FIRST_PORT} and {LAST_PORT} are free.",
            next_step="End some programs that listen on this machine.",
        )
    return found


def port_is_free(port: int) -> bool:
    """Whether a server could listen on this port of 127.0.0.1 now."""
    with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def stack_is_running(state: Path) -> bool:
    """Whether a supervisor holds the lock of this state folder."""
    try:
        with (state / "supervisor.lock").open("a") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def _make_private(state: Path) -> None:
    try:
        state.mkdir(mode=0o700, parents=True, exist_ok=True)
        found = state.stat()
        if found.st_uid == os.geteuid() and found.st_mode & 0o077:
            state.chmod(0o700)
    except OSError as error:
        raise SetupRefused(
            f"The state folder {state} cannot be made: {error.strerror}.",
            next_step="Choose another with --state or TUNESMITH_STATE.",
        ) from error
    if found.st_uid != os.geteuid():
        raise SetupRefused(
            f"The state folder {state} belongs to another account.",
            next_step="Choose another with --state or TUNESMITH_STATE.",
        )


def _read_private(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    try:
        record = json.loads(text)
        if not all(isinstance(value, str) for value in record.values()):
            raise TypeError
    except (ValueError, TypeError, AttributeError) as error:
        raise SetupRefused(
            f"{path} is damaged.",
            next_step=f"Restore it, or remove the whole folder {path.parent} to start over.",
        ) from error
    return dict(record)


def _settled_ports(state: Path, stack_id: str) -> dict[str, int]:
    """The stored ports; missing or taken ones are chosen again while nothing runs."""
    path = state / "ports.json"
    try:
        filed = {str(k): int(v) for k, v in json.loads(path.read_text(encoding="utf-8")).items()}
    except (OSError, ValueError, AttributeError, TypeError):
        filed = {}
    if stack_is_running(state):
        return filed
    kept = {name: filed[name] for name in PORT_NAMES if name in filed and port_is_free(filed[name])}
    missing = [name for name in PORT_NAMES if name not in kept]
    if missing:
        taken = set(kept.values())
        # Two new folders begin their search at different places.
        start = int(stack_id, 16)
        chosen = choose_ports(
            missing, start=start, is_free=lambda port: port not in taken and port_is_free(port)
        )
        kept.update(chosen)
        places.write_whole(path, json.dumps(kept, indent=2), mode=0o600)
    return kept


def _postgres_place(state: Path, stack_id: str) -> tuple[Path, str | None]:
    """The home folder and the account of Postgres.

    For root Postgres runs under another account, which cannot enter a private state folder; then
    its home is in a folder of root that other accounts can enter.
    """
    if os.geteuid() != 0:
        return state / "postgres", None
    return places.make_shared_folder() / f"stack-{stack_id}", "nobody"


def _socket_folder(home: Path, stack_id: str) -> Path:
    """The Postgres home, or a short folder of our own when its path is too long for a socket."""
    if len(os.fsencode(home)) + SOCKET_NAME_BYTES <= SOCKET_PATH_BYTES:
        return home
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    base = Path(runtime) if runtime and os.access(runtime, os.W_OK) else Path("/tmp")  # noqa: S108
    folder = base / f"tunesmith-{os.geteuid()}-{stack_id}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if found.st_uid != os.geteuid() or found.st_mode & 0o077 or folder.is_symlink():
        raise SetupRefused(
            f"{folder} was prepared by another account.", next_step="Remove it or set TMPDIR."
        )
    return folder


def require_supported() -> None:
    """Refuse an unsupported platform.

    Raises:
        SetupRefused: on anything but Linux and macOS.
    """
    if sys.platform not in {"linux", "darwin"}:
        raise SetupRefused(
            "The stack without containers runs on Linux and macOS.",
            next_step="Use docker compose: docker compose up --build.",
        )
