"""The links of a service at work: a bus with TLS, and a process that refuses a far one without."""

import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import pytest

from chassis import jetstream
from deploy.docker import certificates
from deploy.local import nats
from deploy.local.layout import open_layout
from tests.support.nats import binary
from tests.support.process import TestProcess
from tests.support.scheduling import ROOT, scheduler_process

pytestmark = pytest.mark.integration

EXIT_SECONDS = 60.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Bus:
    """A nats-server with TLS.

    Attributes:
        login: `user:password@host:port`.
        authority: file with the certificate that signed its own.
    """

    login: str
    authority: Path


@pytest.fixture
def bus(tmp_path: Path) -> Iterator[Bus]:
    layout = open_layout(tmp_path / "state")
    now = datetime.now(UTC)
    authority = certificates.make_authority(now)
    issued = certificates.issue(authority, "nats", hosts=("localhost", "127.0.0.1"), now=now)
    files = {"ca": authority.certificate, "cert": issued.certificate, "key": issued.key}
    for name, content in files.items():
        (tmp_path / f"{name}.pem").write_bytes(content)
    configuration = nats.prepare(layout)
    # What the containers' template gets, with the files of this test.
    tls = certificates.NATS_TLS.replace(certificates.PRIVATE, str(tmp_path))
    configuration.write_text(configuration.read_text("utf-8") + tls, encoding="utf-8")
    process = TestProcess(nats.spec(layout, binary(), configuration))
    process.start()
    try:
        yield Bus(
            login=nats.url(layout, "scheduler").removeprefix("nats://"),
            authority=tmp_path / "ca.pem",
        )
    finally:
        process.stop()


async def test_a_bus_with_tls_is_reached_by_who_knows_its_authority(
    bus: Bus, monkeypatch: pytest.MonkeyPatch
) -> None:
    """002-28: the certificate is checked, and a bus with TLS lets no plain client in."""
    monkeypatch.delenv("SSL_CERT_FILE", raising=False)
    with pytest.raises(jetstream.TROUBLE):
        await jetstream.connect(f"tls://{bus.login}", name="stranger", on_closed=lambda: None)
    monkeypatch.setenv("SSL_CERT_FILE", str(bus.authority))
    client = await jetstream.connect(f"tls://{bus.login}", name="known", on_closed=lambda: None)
    try:
        assert await jetstream.stream_info(jetstream.context(client), nats.RUN_STREAM) is None
    finally:
        await jetstream.close(client)


@pytest.mark.parametrize(
    ("variable", "url"),
    [
        ("TUNESMITH_DATABASE_URL", "postgresql://scheduler:planted-1@db.example.org/tunesmith"),
        ("TUNESMITH_NATS_URL", "nats://scheduler:planted-1@bus.example.org:4222"),
    ],
)
def test_a_service_that_would_reach_beyond_loopback_in_plain_text_does_not_start(
    database_url: str, tmp_path: Path, variable: str, url: str
) -> None:
    """002-28, 002-33"""
    process = scheduler_process(
        database_url=database_url,
        nats_url="nats://scheduler:x@127.0.0.1:9",
        neighbours_address="127.0.0.1:9",
        folder=tmp_path,
    )
    done = subprocess.run(
        [sys.executable, "-m", "scheduler"],
        cwd=ROOT,
        env={**process.environment, "TUNESMITH_LISTEN": "127.0.0.1:0", variable: url},
        capture_output=True,
        text=True,
        timeout=EXIT_SECONDS,
        check=False,
    )
    assert done.returncode == 1
    assert "RUNTIME_AUTH_NOT_ENFORCED" in done.stderr
    assert "planted-1" not in done.stdout + done.stderr
