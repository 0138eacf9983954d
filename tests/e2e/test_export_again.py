"""A stored adapter is exported again on the whole stack, and the result is used."""

import json
import os
import signal
import time
import zipfile
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import pytest
from typer.testing import CliRunner

from chassis import identity
from deploy.local.layout import open_layout
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
from tunesmith.errors import ConflictError, NotFoundError, TunesmithError

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
# llama.cpp's llama_ftype LLAMA_FTYPE_MOSTLY_Q8_0.
Q8_0 = 7
GGUF = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
LORA = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
LOG_SECONDS = 60
# Enough of them that a cancellation comes while the exporter is at work.
ALL_TYPES = ("Q2_K", "Q3_K_M", "Q4_0", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0", "BF16", "F16")


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


def test_a_run_that_was_cancelled_in_mid_export_is_exported(
    client: Client, stack: Stack, habit: str
) -> None:
    """001-31, 001-40: nothing of the cancelled export is published, the adapter stays."""
    spec = lesson.spec_for(lesson.read_lesson(), base=BASE)
    assert list(spec.datasets) == [habit]
    spec.export.quantizations[:] = ALL_TYPES
    run = client.runs.submit(spec)
    wait_for_line(stack.state / "logs" / "exporter.log", '"event": "exported"', run.name)
    client.runs.cancel(run.name)
    ended = client.runs.wait(run.name)
    assert ended.state == run_pb2.RUN_STATE_CANCELLED
    (entry,) = client.artifacts.list(run=run.name)
    assert [file.kind for file in entry.files] == [LORA]
    bill = settled(client, run.name)
    assert client.billing.verify(run.name).consistent
    done = client.exports.wait(client.exports.create(run.name, "Q4_K_M").name)
    assert done.state == export_pb2.EXPORT_STATE_COMPLETED
    assert done.proof.proven
    assert client.runs.get(run.name) == ended
    assert settled(client, run.name) == bill


def test_who_asks_at_once_gets_one_export_of_a_type_and_each_type_its_own(
    client: Client, adapter_only: run_pb2.Run
) -> None:
    """001-39: nobody waits for what is made already, and nobody's type is lost."""
    wanted = ["Q3_K_M", "Q6_K"] * 3
    with ThreadPoolExecutor(len(wanted)) as people:
        names = list(
            people.map(lambda kind: client.exports.create(adapter_only.artifact, kind).name, wanted)
        )
    assert len(set(names)) == 2
    assert names[0::2] == [names[0]] * 3
    assert names[1::2] == [names[1]] * 3
    ended = [client.exports.wait(name) for name in set(names)]
    assert {each.state for each in ended} == {export_pb2.EXPORT_STATE_COMPLETED}
    entry = client.artifacts.get(adapter_only.artifact)
    kinds = [file.quantization for file in entry.files if file.kind == GGUF]
    assert len(kinds) == len(set(kinds)) >= 2
    assert {"Q3_K_M", "Q6_K"} <= set(kinds)


def test_a_type_that_is_there_is_made_anew_only_when_asked_for(
    client: Client, adapter_only: run_pb2.Run, tmp_path: Path
) -> None:
    """001-38, 001-39: one file of the type before and after, and the new one comes down."""
    artifact = adapter_only.artifact
    client.exports.wait(client.exports.create(artifact, "Q5_K_M").name)
    with pytest.raises(ConflictError) as there:
        client.exports.create(artifact, "Q5_K_M")
    assert there.value.code == "EXPORT_EXISTS"
    assert "--replace" in there.value.remedy
    before = client.artifacts.get(artifact)
    anew = client.exports.wait(client.exports.create(artifact, "Q5_K_M", replace=True).name)
    assert anew.state == export_pb2.EXPORT_STATE_COMPLETED
    after = client.artifacts.get(artifact)
    assert sorted(file.file_name for file in after.files) == sorted(
        file.file_name for file in before.files
    )
    assert after.size_bytes == sum(file.size_bytes for file in after.files)
    (path,) = client.artifacts.pull(artifact, tmp_path, kinds=[GGUF], quantization="Q5_K_M")
    assert zipfile.ZipFile(path).testzip() is None


def test_another_project_can_neither_export_nor_see_nor_end_it(
    client: Client, stack: Stack, adapter_only: run_pb2.Run
) -> None:
    """Nor does it learn whether there is such an adapter or such an export."""
    export = client.exports.list(artifact=adapter_only.artifact)[0]
    key = open_layout(stack.state).secrets["signing_key"]
    token = identity.mint(
        key,
        subject="user-other",
        role=identity.Role.PROJECT,
        project="other",
        now=datetime.now(UTC),
    )
    before = client.exports.list(), client.artifacts.get(adapter_only.artifact)
    with Client(client.credentials, token=token, project="other") as other:
        for attempt in (
            lambda: other.exports.create(adapter_only.artifact, "Q4_0"),
            lambda: other.exports.get(export.name),
            lambda: other.exports.cancel(export.name),
            lambda: other.exports.list(artifact=adapter_only.artifact),
        ):
            with pytest.raises(TunesmithError) as refused:
                attempt()
            assert refused.value.code == "ACCESS_PROJECT_FORBIDDEN"
        short = adapter_only.artifact.rpartition("/")[2]
        with pytest.raises(NotFoundError) as unknown:
            other.exports.create(short, "Q4_0")
        assert unknown.value.code == "ARTIFACT_NOT_FOUND"
        assert other.exports.list() == []
    assert (client.exports.list(), client.artifacts.get(adapter_only.artifact)) == before


def wait_for_line(log: Path, *words: str) -> None:
    """Follow a log from its beginning until a line holds all words."""
    deadline = time.monotonic() + LOG_SECONDS
    with log.open(encoding="utf-8") as lines:
        while line := lines.readline() or "-":
            if all(word in line for word in words):
                return
            if time.monotonic() > deadline:
                raise TimeoutError(f"{log.name} has no line with {words}")
