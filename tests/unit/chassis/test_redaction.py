"""Secrets are taken out of whatever is logged or sent."""

import json
import logging
from collections.abc import Iterator

import pytest
import structlog

from chassis import identity, redaction, telemetry
from chassis.errors import fault_to_proto, to_status
from lexicon.faults import Fault, FaultCode
from tests.support.chassis import KEY
from tests.unit.chassis.support import NOW

SECRETS = [
    "hf_abcdefghijklmnopqrstuvwxyz012345",
    "sk-proj-abcdefghijklmnop1234567890",
    "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
    "github_pat_11ABCDEFG0abcdefghijkl_mnop",
    "glpat-abcdefghijklmnopqrst",
    "xoxb-123456789012-abcdefghijkl",
    "AKIAIOSFODNN7EXAMPLE",
    "AIzaSyA-abcdefghijklmnopqrstuvwxyz0123",
    "npm_abcdefghijklmnopqrstuvwxyz0123456789",
    "dckr_pat_abcdefghijklmnopqrstuv",
    "-----BEGIN RSA PRIVATE KEY-----\nMIIEow\n-----END RSA PRIVATE KEY-----",
    identity.mint(KEY, subject="me", role=identity.Role.OPERATOR, now=NOW),
]


@pytest.mark.parametrize("secret", SECRETS, ids=lambda secret: secret[:8])
def test_every_shape_of_token_is_taken_out(secret: str) -> None:
    """003-26; attack list 16: twelve shapes of token."""
    for text in (secret, f"token is {secret}.", f"Authorization: Bearer {secret}", f'"{secret}"'):
        assert secret not in redaction.redact(text)
    fault = Fault(FaultCode.INTERNAL_UNEXPECTED, f"failed with {secret}", detail=secret)
    assert secret not in str(fault_to_proto(fault))
    assert secret.encode() not in to_status(fault).SerializeToString()


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "[Errno 2] No such file or directory: '/srv/node 7/cache/config.json'",
            "[Errno 2] No such file or directory: '…/config.json'",
        ),
        ('File "/usr/lib/python3.11/json/decoder.py", line 3', 'File "…/decoder.py", line 3'),
        ("cannot open /opt/cache/.a/b.so: no such file", "cannot open …/b.so: no such file"),
        ("cache_dir=/srv/.cache/hub and ~/x/y.txt", "cache_dir=…/hub and …/y.txt"),
        ("see file:///var/lib/tunesmith/log.txt", "see …/log.txt"),
        (r"C:\Users\op\model.safetensors is broken", "…/model.safetensors is broken"),
        ("(/opt/conda/lib/libcuda.so.1:12)", "(…/libcuda.so.1:12)"),
    ],
)
def test_of_a_path_of_the_machine_the_name_is_told_alone(text: str, shown: str) -> None:
    """Attack list 16: an error of a library names folders that are nobody's business."""
    assert redaction.hide_paths(text) == shown
    fault = Fault(FaultCode.RUNTIME_TRAINING_FAILED, text, cause=text, remedy=text)
    proto = fault_to_proto(fault)
    assert [proto.message, proto.metadata["cause"], proto.remedy] == [shown] * 3
    assert to_status(fault).message == shown


@pytest.mark.parametrize(
    "text",
    [
        "projects/acme/runs/run-1 of nodes/gpu-1",
        "There is no method /tunesmith.api.run.v1.RunService/Fly.",
        "object://runs/r/1/adapter/a.safetensors and https://host:1/objects/a/b?x=/c",
        "tunesmith/anvil-3m, 3/4 of it, and/or <s>[/INST]</s>, TCP/IP, 1 / 2 / 3",
        "adapter/adapter_model.safetensors in ./out/../x",
    ],
)
def test_what_only_looks_like_a_path_stays(text: str) -> None:
    assert redaction.hide_paths(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://me:hunter22@host/db", "postgresql://me:***@host/db"),
        ("https://x/objects/a?method=GET&signature=abcdef&x=1", "signature=***&x=1"),
        ("password=hunter22 host=a", "password=*** host=a"),
        ("Bearer abcdefghijkl", "Bearer ***"),
    ],
)
def test_what_is_around_a_secret_stays(text: str, shown: str) -> None:
    assert redaction.redact(text).endswith(shown)


@pytest.mark.parametrize(
    "text",
    [
        "projects/acme/runs/run-01m7ydykg2069yy9fve915s2tc",
        "tokens: 123456 of 200000",
        "No valid training rows found; check that columns match",
        "sha256 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
    ],
)
def test_ordinary_text_is_left_alone(text: str) -> None:
    assert redaction.redact(text) == text


def test_values_under_secret_names_are_masked_whole() -> None:
    event = {"hub_token": "x", "nested": {"password": "y", "n": 1}, "list": ["Bearer abcdefgh1"]}
    assert redaction.redact_value(event) == {
        "hub_token": "***",
        "nested": {"password": "***", "n": 1},
        "list": ["Bearer ***"],
    }


@pytest.fixture
def _restored_logs() -> Iterator[None]:
    """Whatever a test sets up for logs is gone after it."""
    yield
    structlog.reset_defaults()
    logging.captureWarnings(capture=False)
    logging.basicConfig(force=True)


@pytest.mark.usefixtures("_restored_logs")
def test_log_lines_are_json_with_service_run_and_no_secret(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """002-34: the run id is in every line of the log."""
    telemetry.start("unit", {})
    with telemetry.bind(run="projects/p/runs/r"), telemetry.span("work"):
        telemetry.logger("room").info("hello", url=f"https://x?token={SECRETS[0]}")
        logging.getLogger("library").warning("leaks %s", SECRETS[1])
        try:
            raise ValueError(SECRETS[2])
        except ValueError:
            telemetry.logger("room").exception("failed")
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["event"] for line in lines] == ["hello", "leaks ***", "failed"]
    for line in lines:
        assert line["service"] == "unit"
        assert line["run"] == "projects/p/runs/r"
        assert line["trace_id"] == lines[0]["trace_id"]
        assert not any(secret in json.dumps(line) for secret in SECRETS)
    assert "ValueError" in lines[2]["exception"]
