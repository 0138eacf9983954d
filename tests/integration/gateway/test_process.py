"""The gateway as a process: what it refuses to start with, and TLS from the client's side."""

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path

import httpx
import pytest

from chassis import identity
from tests.support.certificates import make_tls
from tests.support.ports import free_port
from tunesmith import Client, Credentials
from tunesmith.errors import UnavailableError
from tunesmith.transfer import trust
from tunesmith.transport import RetryPolicy

pytestmark = [pytest.mark.integration, pytest.mark.timeout(120)]
KEY = "a-signing-key-of-at-least-32-bytes!"
START_SECONDS = 20
ONE_TRY = RetryPolicy(tries=1)


def environment(folder: Path, **changes: str) -> dict[str, str]:
    settings = {
        "PATH": os.defpath,
        "TUNESMITH_LISTEN": f"127.0.0.1:{free_port()}",
        "TUNESMITH_HTTP_LISTEN": f"127.0.0.1:{free_port()}",
        "TUNESMITH_SIGNING_KEY": KEY,
        "TUNESMITH_OBJECTS_URL": (folder / "objects").as_uri(),
        "TUNESMITH_OBJECTS_SIGNING_KEYS": KEY,
        **{
            f"TUNESMITH_{name}_ADDR": f"127.0.0.1:{free_port()}"
            for name in ("SCHEDULER", "VALIDATOR", "BILLING", "HUB")
        },
    }
    merged = settings | changes
    return {name: value for name, value in merged.items() if value}


@contextmanager
def running(environ: dict[str, str], folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    with (folder / "gateway.log").open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-P", "-m", "gateway"], env=environ, stdout=log, stderr=log, cwd=folder
        )
    try:
        host, _, port = environ["TUNESMITH_HTTP_LISTEN"].rpartition(":")
        deadline = time.monotonic() + START_SECONDS
        while True:
            assert process.poll() is None, (folder / "gateway.log").read_text()
            try:
                socket.create_connection((host, int(port)), timeout=1).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                time.sleep(0.05)
        yield process
    finally:
        process.terminate()
        process.wait(15)


def refusal(environ: dict[str, str], folder: Path) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", "gateway"],
        env=environ,
        capture_output=True,
        text=True,
        timeout=START_SECONDS,
        check=False,
        cwd=folder,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_missing_setting_is_named_with_a_hint(tmp_path: Path) -> None:
    """003-19"""
    said = refusal(environment(tmp_path, TUNESMITH_HUB_ADDR=""), tmp_path)
    assert "TUNESMITH_HUB_ADDR environment variable not set!" in said
    assert "Hint: " in said


@pytest.mark.parametrize("door", ["TUNESMITH_LISTEN", "TUNESMITH_HTTP_LISTEN"])
def test_neither_door_opens_to_the_network_without_tls(tmp_path: Path, door: str) -> None:
    said = refusal(environment(tmp_path, **{door: f"0.0.0.0:{free_port()}"}), tmp_path)
    assert "RUNTIME_AUTH_NOT_ENFORCED" in said


def test_tokens_go_to_no_other_machine_without_tls(tmp_path: Path) -> None:
    said = refusal(environment(tmp_path, TUNESMITH_HUB_ADDR="10.0.0.9:7000"), tmp_path)
    assert "RUNTIME_AUTH_NOT_ENFORCED" in said


def test_the_client_speaks_tls_with_its_own_certificate(tmp_path: Path) -> None:
    tls = make_tls("localhost")
    files = {"cert": tls.certificate, "key": tls.key, "ca": tls.authority}
    for name, content in files.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    environ = environment(
        tmp_path,
        **{f"TUNESMITH_TLS_{name.upper()}": str(tmp_path / f"{name}.pem") for name in files},
    )
    token = identity.mint(
        KEY, subject="me", role=identity.Role.PROJECT, project="p", now=datetime.now(UTC)
    )
    grpc_port = environ["TUNESMITH_LISTEN"].rpartition(":")[2]
    http_port = environ["TUNESMITH_HTTP_LISTEN"].rpartition(":")[2]
    mine = Credentials(
        address=f"https://localhost:{grpc_port}",
        project="p",
        token=token,
        ca_file=str(tmp_path / "ca.pem"),
        cert_file=str(tmp_path / "cert.pem"),
        key_file=str(tmp_path / "key.pem"),
    )
    strange = Credentials(address=mine.address, project="p", token=token, ca_file=mine.ca_file)
    with running(environ, tmp_path):
        with Client(mine, retry=ONE_TRY) as client, pytest.raises(UnavailableError) as answered:
            client.nodes.list()
        # The gateway itself has answered: the scheduler behind it is what is away.
        assert answered.value.metadata == {"service": "scheduler"}
        with Client(strange, retry=ONE_TRY) as client, pytest.raises(UnavailableError) as refused:
            client.nodes.list()
        assert refused.value.metadata == {}
        with httpx.Client(verify=trust(mine.ca_file), trust_env=False) as http:
            assert http.get(f"https://localhost:{http_port}/healthz").text == "ok"
