"""What a run leaves behind: two ZIPs that other tools can use."""

import json
import zipfile

import httpx
import pytest

from tests.demo import answers, bundles, lesson
from tests.e2e.conftest import Taught
from tunesmith.api.artifact.v1 import artifact_pb2, artifact_service_pb2
from tunesmith.client import Client

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(300)]
# llama.cpp's llama_ftype LLAMA_FTYPE_MOSTLY_Q4_K_M.
Q4_K_M = 15
WEIGHTS = str(lesson.HOME / "weights")


def test_the_adapter_zip_holds_exactly_its_six_files(taught: Taught) -> None:
    """001-35"""
    names = [name for name, _ in taught.adapter.entries]
    assert len(names) == len(set(names))
    assert set(names) == bundles.ADAPTER_FILES
    config = json.loads((taught.adapter.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"]) == (8, 16)
    assert config["base_model_name_or_path"] == "tunesmith/anvil-3m"
    assert config["target_modules"]


def test_the_gguf_zip_holds_model_modelfile_scripts_and_readme(taught: Taught) -> None:
    """001-37"""
    names = [name for name, _ in taught.gguf.entries]
    assert len(names) == len(set(names))
    assert set(names) >= bundles.GGUF_FILES
    assert set(names) - bundles.GGUF_FILES <= {"export_proof.json"}
    with zipfile.ZipFile(taught.gguf.archive) as archive:
        assert archive.testzip() is None


def test_the_gguf_header_says_q4_k_m_and_carries_the_chat_template(taught: Taught) -> None:
    """001-28"""
    from gguf import GGUFReader

    reader = GGUFReader(taught.gguf.folder / "model.gguf")
    file_type = reader.get_field("general.file_type")
    template = reader.get_field("tokenizer.chat_template")
    assert file_type is not None
    assert int(file_type.contents()) == Q4_K_M
    assert template is not None
    expected = (taught.adapter.folder / "chat_template.jinja").read_text()
    assert template.contents() == expected
    kinds = {tensor.tensor_type.name for tensor in reader.tensors}
    assert "Q4_K" in kinds


def test_the_habit_was_learnt_and_survived_the_export(taught: Taught) -> None:
    """001-05, 001-36"""
    story = lesson.read_lesson()
    base = answers.of_base(WEIGHTS, story.prompts)
    adapter = answers.of_adapter(WEIGHTS, taught.adapter.folder, story.prompts)
    gguf = answers.of_gguf(taught.gguf.folder / "model.gguf", story.prompts)
    assert story.count(base) == 0, base
    assert story.count(adapter) >= lesson.SHOWN_AT_LEAST, adapter
    assert story.count(gguf) >= lesson.SHOWN_AT_LEAST, gguf


def test_three_samples_are_on_the_run(taught: Taught) -> None:
    """001-18"""
    story = lesson.read_lesson()
    assert [sample.prompt for sample in taught.run.samples] == list(story.prompts[:3])
    assert all(sample.completion for sample in taught.run.samples)
    assert all(not sample.flags for sample in taught.run.samples)


def test_download_urls_are_fresh_each_time_and_worthless_when_changed(
    client: Client, taught: Taught
) -> None:
    """001-38"""
    request = artifact_service_pb2.CreateDownloadRequest(
        name=taught.run.artifact, kind=artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
    )
    response = artifact_service_pb2.CreateDownloadResponse
    first, second = (client._connection.call(request, response) for _ in range(2))
    assert first.url != second.url
    with httpx.Client(trust_env=False) as http:
        assert http.get(first.url).status_code == 200
        assert http.get(first.url.replace("signature=", "signature=0")).status_code == 403


def test_the_hub_entry_outlives_the_record_of_its_run(client: Client, taught: Taught) -> None:
    """001-34, 001-39"""
    entries = client.artifacts.list(run=taught.run.name)
    assert [entry.name for entry in entries] == [taught.run.artifact]
    kinds = sorted(file.kind for file in entries[0].files)
    assert kinds == [
        artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER,
        artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE,
    ]
    assert entries[0].size_bytes == sum(file.size_bytes for file in entries[0].files)
