"""A stored adapter is exported again on the whole stack, and the result is used."""

import json
import os
import signal
import zipfile
from pathlib import Path

import pytest
from typer.testing import CliRunner

from tests.demo import answers, lesson
from tests.demo.stack import Stack
from tests.support.ollama_server import Ollama, an_ollama
from tests.support.whole_stack import BASE, settled, wait_until_back
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.export.v1 import export_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli import session
from tunesmith.cli.main import app
from tunesmith.client import Client
from tunesmith.errors import ConflictError, NotFoundError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
# llama.cpp's llama_ftype LLAMA_FTYPE_MOSTLY_Q8_0.
Q8_0 = 7
GGUF = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE


@pytest.fixture(scope="module")
def adapter_only(client: Client, habit: str) -> run_pb2.Run:
    """A completed run that wanted no GGUF."""
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    assert list(spec.datasets) == [habit]
    spec.export.gguf = False
    del spec.export.quantizations[:]
    run = client.runs.wait(client.runs.submit(spec).name)
    assert run.state == run_pb2.RUN_STATE_COMPLETED
    (entry,) = client.artifacts.list(run=run.name)
    assert [file.kind for file in entry.files] == [artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER]
    return run


def test_an_adapter_becomes_a_gguf_after_its_runs_record_is_gone(
    client: Client, stack: Stack, adapter_only: run_pb2.Run, tmp_path: Path
) -> None:
    """001-05, 001-39: both files come down; the GGUF has learnt the habit and goes into Ollama."""
    from gguf import GGUFReader

    before = settled(client, adapter_only.name)
    export = client.exports.create(adapter_only.name, "Q8_0")
    done = client.exports.wait(export.name)
    assert done.proof.proven
    assert done.proof.adapter_top1_agreement > done.proof.base_top1_agreement
    assert client.runs.get(adapter_only.name) == adapter_only
    assert settled(client, adapter_only.name) == before
    with pytest.raises(ConflictError) as there:
        client.exports.create(adapter_only.name, "Q8_0")
    assert there.value.code == "EXPORT_EXISTS"
    client.runs.delete(adapter_only.name)
    with pytest.raises(NotFoundError):
        client.runs.get(adapter_only.name)
    second = client.exports.wait(client.exports.create(adapter_only.artifact, "Q2_K").name)
    assert second.state == export_pb2.EXPORT_STATE_COMPLETED

    with an_ollama(Ollama()) as ollama:
        session._SETTINGS.as_json = False
        words = ["--credentials", str(stack.credentials), "pull", adapter_only.artifact]
        files = ["--to", str(tmp_path), "--lora", "--gguf", "--quantization", "q8_0"]
        named = ["--ollama", "forge", "--ollama-url", ollama.url, "--json"]
        pulled = CliRunner().invoke(app, [*words, *files, *named])
        assert pulled.exit_code == 0, pulled.output
        created = ollama.models["forge"]
    adapter, bundle = sorted(json.loads(pulled.stdout)["files"], key=lambda name: "gguf" in name)
    assert "adapter_model.safetensors" in zipfile.ZipFile(adapter).namelist()
    with zipfile.ZipFile(bundle) as archive:
        archive.extractall(tmp_path / "gguf")
    model = tmp_path / "gguf" / "model.gguf"
    file_type = GGUFReader(model).get_field("general.file_type")
    assert file_type is not None
    assert int(file_type.contents()) == Q8_0
    story = lesson.read_lesson()
    assert story.count(answers.of_gguf(model, story.prompts)) >= lesson.SHOWN_AT_LEAST
    assert created["template"]
    assert created["parameters"]["stop"]
    assert ollama.blobs[created["files"]["model.gguf"]] == model.read_bytes()


def test_a_killed_exporter_costs_an_attempt_and_no_export(
    client: Client, stack: Stack, adapter_only: run_pb2.Run
) -> None:
    """001-40: the adapter stays, another attempt makes the bundle."""
    # Known beforehand, since the export of so small a model takes a moment only.
    pid = stack.pids()["exporter"]
    export = client.exports.create(adapter_only.artifact, "F16")
    while client.exports.get(export.name).state == export_pb2.EXPORT_STATE_QUEUED:
        pass
    os.kill(pid, signal.SIGKILL)
    done = client.exports.wait(export.name)
    assert done.state == export_pb2.EXPORT_STATE_COMPLETED
    assert done.attempt == 2
    wait_until_back(stack, "exporter", killed=pid)
    entry = client.artifacts.get(adapter_only.artifact)
    assert "F16" in {file.quantization for file in entry.files if file.kind == GGUF}
