"""Nothing secret is written down: neither what users let slip nor the stack's own keys."""

import json
import re
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.demo.stack import Stack
from tests.e2e.conftest import Taught
from tests.support.whole_stack import BASE
from tunesmith.api.run.v1 import spec_pb2
from tunesmith.client import Client
from tunesmith.errors import TunesmithError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]

# Twelve shapes of token; none of them opens anything.
PLANTED = (
    "hf_plantedPLANTEDplantedPLANTED012345",
    "sk-proj-plantedPLANTED1234567890",
    "ghp_plantedPLANTED0123456789plantedPLANTED",
    "github_pat_11PLANTED0plantedplanted_planted",
    "glpat-plantedPLANTED1234567",
    "xoxb-123456789012-plantedplanted",
    "AKIAPLANTEDPLANTED12",
    "AIzaSyPlanted-plantedplantedplanted0123",
    "npm_plantedplantedplantedplantedplanted0123",
    "dckr_pat_plantedplantedplanted",
    "Bearer plantedplantedplantedplanted",
    "postgresql://me:plantedplanted@host/db",
)
JWT = re.compile(rb"eyJ[\w-]{6,}\.[\w-]{6,}\.[\w-]{6,}")
SIGNATURE = re.compile(rb"[?&]signature=[^*\s]")


def own_secrets(stack: Stack) -> dict[str, bytes]:
    """Keys, passwords and tokens of the stack, by name."""
    secrets: dict[str, str] = json.loads((stack.state / "secrets.json").read_text())
    secrets.pop("stack_id", None)
    known = json.loads(stack.credentials.read_text())
    tokens = {name: known[name] for name in ("token", "operator_token")}
    return {name: value.encode() for name, value in (secrets | tokens).items()}


def written(stack: Stack) -> Iterator[tuple[Path, bytes]]:
    """What the processes wrote: logs and work folders."""
    for folder in (stack.state / "logs", stack.state / "work"):
        for path in folder.rglob("*"):
            if path.is_file():
                yield path, path.read_bytes()


def refused(client: Client, secret: str, folder: Path) -> Iterator[TunesmithError]:
    """What the platform says to requests that carry a secret where none belongs."""
    path = folder / "rows.jsonl"
    path.write_text(json.dumps({"messages": [{"role": secret, "content": "x"}]}) + "\n")
    with pytest.raises(TunesmithError) as told:
        client.datasets.push(path, dataset_id="planted")
    yield told.value
    for spec in (
        spec_pb2.RunSpec(base_model=secret),
        spec_pb2.RunSpec(base_model=BASE, gpu_tier=secret, datasets=[secret]),
    ):
        with pytest.raises(TunesmithError) as told:
            client.runs.check(spec, hub_token=PLANTED[0])
        yield told.value


def test_no_secret_is_in_answers_logs_events_or_artifacts(
    client: Client, stack: Stack, taught: Taught, tmp_path: Path
) -> None:
    """003-26; attack list 16."""
    for secret in PLANTED:
        for error in refused(client, secret, tmp_path):
            assert secret not in f"{error} {error.metadata}"
    forbidden = own_secrets(stack) | {secret: secret.encode() for secret in PLANTED}
    told = b"".join(event.SerializeToString() for event in taught.told)
    artifacts = [path.read_bytes() for path in (stack.state / "downloads").rglob("*.zip")]
    assert artifacts
    for name, secret_bytes in forbidden.items():
        assert secret_bytes not in told, name
        assert not [1 for content in artifacts if secret_bytes in content], name
        assert [str(path) for path, content in written(stack) if secret_bytes in content] == []
    for path, content in written(stack):
        assert not JWT.search(content), path
        assert not SIGNATURE.search(content), path


def test_the_children_that_touch_user_data_hold_no_secret(stack: Stack, taught: Taught) -> None:
    """Attack list 16: the environment of the trainer's and the exporter's child."""
    secrets = own_secrets(stack)
    pids = stack.pids()
    for worker in ("trainer", "exporter"):
        children = psutil.Process(pids[worker]).children(recursive=True)
        assert children, worker
        for child in children:
            environment = child.environ()
            assert not [name for name in environment if name.startswith("TUNESMITH_")], worker
            text = "\0".join(environment.values()).encode()
            assert [name for name, secret in secrets.items() if secret in text] == []
