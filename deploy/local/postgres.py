"""Postgres of one stack: initialised once, then run as a process like the others.

The superuser can connect only through the socket and only from the account that runs the stack
(peer authentication); each service has a role of its own, which needs its password and may connect
to the one database.
"""

from __future__ import annotations

import contextlib
import json
import os
import pwd
import shutil
import signal
import subprocess
from collections.abc import Mapping
from pathlib import Path

import asyncpg

from deploy.local import places
from deploy.local.layout import Layout
from deploy.local.process import MARK, ProcessSpec
from deploy.local.refusal import SetupRefused

SUPERUSER = "postgres"
DATABASE = "tunesmith"
ROLES = ("scheduler", "billing", "hub")
INITDB_SECONDS = 60.0
CONNECT_SECONDS = 2.0
# Three services with a pool of eight, their listeners, and room for an operator.
MAX_CONNECTIONS = 60
STOP_SECONDS = 20.0

CONFIGURATION = """\
# Written by `tunesmith up` at every start.
listen_addresses = '127.0.0.1'
port = {port}
unix_socket_directories = '{socket_folder}'
unix_socket_permissions = 0700
max_connections = {max_connections}
password_encryption = scram-sha-256
shared_buffers = 128MB
log_timezone = UTC
timezone = UTC
log_line_prefix = '%m [%p] %u '
log_checkpoints = off
"""
ACCESS = """\
# Written by `tunesmith up` at every start: anything that is not listed is refused.
local all postgres peer map=operator
host tunesmith scheduler,billing,hub 127.0.0.1/32 scram-sha-256
"""
ACCOUNTS = """\
# Written by `tunesmith up` at every start.
operator {account} postgres
"""


def prepare(layout: Layout, install: Path) -> None:
    """Create the data folder unless it exists, and write this start's settings into it.

    Raises:
        SetupRefused: initdb failed; the message ends with its output.
    """
    _account_name()
    if layout.postgres_user is not None:
        _remove_orphans(layout)
    _make_home(layout)
    data = layout.postgres_home / "data"
    if not (data / "PG_VERSION").is_file():
        _initialise(layout, install)
    _write_settings(layout, data)


def spec(layout: Layout, install: Path) -> ProcessSpec:
    """The process for the supervisor."""

    async def is_ready() -> bool:
        try:
            connection = await _connect(layout, "template1")
        except (OSError, asyncpg.PostgresError, TimeoutError):
            return False
        await connection.close(timeout=CONNECT_SECONDS)
        return True

    data = layout.postgres_home / "data"
    return ProcessSpec(
        name="postgres",
        level=0,
        argv=(str(install / "bin" / "postgres"), "-D", str(data)),
        environment=_environment(layout),
        folder=layout.postgres_home,
        log=layout.logs / "postgres.log",
        is_ready=is_ready,
        port=layout.ports["postgres"],
        user=layout.postgres_user,
        # Fast shutdown: open transactions are rolled back, nothing is lost.
        stop_signal=signal.SIGINT,
        stop_seconds=STOP_SECONDS,
    )


def forget(layout: Layout) -> None:
    """Remove the data of a stack that is down."""
    shutil.rmtree(layout.postgres_home, ignore_errors=True)
    (layout.postgres_home.parent / f"{layout.postgres_home.name}.owner").unlink(missing_ok=True)
    if layout.socket_folder != layout.postgres_home:
        shutil.rmtree(layout.socket_folder, ignore_errors=True)


def database_url(layout: Layout, role: str) -> str:
    """The URL for the connections of a service."""
    password = layout.secrets[f"{role}_db"]
    return f"postgresql://{role}:{password}@127.0.0.1:{layout.ports['postgres']}/{DATABASE}"


async def provision(layout: Layout) -> None:
    """Create the database, the roles and their schemas; repeating it changes nothing."""
    admin = await _connect(layout, "template1")
    try:
        if not await admin.fetchval("SELECT 1 FROM pg_database WHERE datname = $1", DATABASE):
            await admin.execute(f"CREATE DATABASE {DATABASE}")
        for role in ROLES:
            if not await admin.fetchval("SELECT 1 FROM pg_roles WHERE rolname = $1", role):
                await admin.execute(f"CREATE ROLE {role}")
            quoted = await admin.fetchval("SELECT quote_literal($1)", layout.secrets[f"{role}_db"])
            await admin.execute(f"ALTER ROLE {role} LOGIN PASSWORD {quoted}")
        await admin.execute(f"REVOKE ALL ON DATABASE {DATABASE} FROM PUBLIC")
        await admin.execute(f"GRANT CONNECT ON DATABASE {DATABASE} TO {', '.join(ROLES)}")
    finally:
        await admin.close(timeout=CONNECT_SECONDS)
    inside = await _connect(layout, DATABASE)
    try:
        await inside.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
        for role in ROLES:
            await inside.execute(f"CREATE SCHEMA IF NOT EXISTS {role} AUTHORIZATION {role}")
            await inside.execute(
                f"ALTER ROLE {role} IN DATABASE {DATABASE} SET search_path = {role}"
            )
    finally:
        await inside.close(timeout=CONNECT_SECONDS)


async def _connect(layout: Layout, database: str) -> asyncpg.Connection:
    return await asyncpg.connect(
        host=str(layout.socket_folder),
        port=layout.ports["postgres"],
        user=SUPERUSER,
        database=database,
        timeout=CONNECT_SECONDS,
    )


def _environment(layout: Layout) -> Mapping[str, str]:
    return {
        "LC_ALL": "C.UTF-8" if os.uname().sysname == "Linux" else "C",
        "TZ": "UTC",
        "PATH": os.defpath,
        MARK: layout.stack_id,
    }


def _make_home(layout: Layout) -> None:
    home = layout.postgres_home
    home.mkdir(mode=0o700, parents=True, exist_ok=True)
    if layout.postgres_user is not None:
        account = pwd.getpwnam(layout.postgres_user)
        os.chown(home, account.pw_uid, account.pw_gid)
        places.write_whole(
            home.parent / f"{home.name}.owner",
            json.dumps({"state": str(layout.state), "stack_id": layout.stack_id}),
        )
        if layout.socket_folder != home:
            os.chown(layout.socket_folder, account.pw_uid, account.pw_gid)
    home.chmod(0o700)


def _initialise(layout: Layout, install: Path) -> None:
    """Run initdb beside the final folder and rename it, so that a partial one is never used."""
    data = layout.postgres_home / "data"
    making = layout.postgres_home / "data.making"
    shutil.rmtree(making, ignore_errors=True)
    account = pwd.getpwnam(layout.postgres_user) if layout.postgres_user else None
    drop = {"user": account.pw_uid, "group": account.pw_gid, "extra_groups": []} if account else {}
    done = subprocess.run(
        [
            install / "bin" / "initdb",
            "-D",
            making,
            "-U",
            SUPERUSER,
            "-E",
            "UTF8",
            "--no-locale",
            "--auth-local=peer",
            "--auth-host=reject",
            "--data-checksums",
            "--no-instructions",
        ],
        env=dict(_environment(layout)),
        cwd=layout.postgres_home,
        capture_output=True,
        text=True,
        errors="replace",
        timeout=INITDB_SECONDS,
        check=False,
        **drop,  # type: ignore[call-overload]
    )
    if done.returncode != 0:
        raise SetupRefused(
            "Postgres could not make its data folder.",
            next_step=f"Check the space and the permissions of {layout.postgres_home}.",
            detail=(done.stdout + done.stderr).strip(),
        )
    making.rename(data)


def _write_settings(layout: Layout, data: Path) -> None:
    account = _account_name()
    texts = {
        "postgresql.auto.conf": "",
        "postgresql.conf": CONFIGURATION.format(
            port=layout.ports["postgres"],
            socket_folder=str(layout.socket_folder).replace("'", "''"),
            max_connections=MAX_CONNECTIONS,
        ),
        "pg_hba.conf": ACCESS,
        "pg_ident.conf": ACCOUNTS.format(account=f'"{account}"'),
    }
    owner = data.stat()
    for name, text in texts.items():
        places.write_whole(data / name, text, mode=0o600)
        if os.geteuid() == 0:
            os.chown(data / name, owner.st_uid, owner.st_gid)


def _account_name() -> str:
    """Our account name, as Postgres sees it on its socket.

    Raises:
        SetupRefused: our user id has no name, which Postgres does not accept.
    """
    try:
        return pwd.getpwuid(os.geteuid()).pw_name
    except KeyError as error:
        raise SetupRefused(
            f"User id {os.geteuid()} has no account name here, and Postgres needs one.",
            next_step="Run as a user that the system knows.",
        ) from error


def _remove_orphans(layout: Layout) -> None:
    """Remove the Postgres homes in root's shared folder whose state folder was deleted."""
    for owner in layout.postgres_home.parent.glob("stack-*.owner"):
        home = owner.with_suffix("")
        try:
            record = json.loads(owner.read_text(encoding="utf-8"))
            secrets_file = Path(record["state"]) / "secrets.json"
            living = json.loads(secrets_file.read_text(encoding="utf-8"))
            orphan = living.get("stack_id") != record["stack_id"]
        except FileNotFoundError:
            orphan = True
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if orphan and not _postmaster_runs(home):
            shutil.rmtree(home, ignore_errors=True)
            owner.unlink(missing_ok=True)


def _postmaster_runs(home: Path) -> bool:
    with contextlib.suppress(OSError, ValueError, IndexError):
        pid = int((home / "data" / "postmaster.pid").read_text(encoding="ascii").split()[0])
        os.kill(pid, 0)
        return True
    return False
