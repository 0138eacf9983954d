"""Artifacts: what may be registered, and which file a download means."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from hub.domain.artifacts import (
    Artifact,
    ArtifactFile,
    ArtifactKind,
    artifact_name,
    check_file,
    check_own,
    check_said,
    choose,
    leftovers,
    output_folder,
)
from lexicon.faults import Fault, FaultCode
from lexicon.names import RunName

RUN = RunName(project="acme", run="run-1")
NOW = datetime(2024, 2, 29, tzinfo=UTC)
LORA = ArtifactFile(
    kind=ArtifactKind.LORA_ADAPTER,
    quantization="",
    file_name="run-lora.zip",
    size_bytes=12,
    sha256="0" * 64,
    object_key="runs/run-1/1/adapter.zip",
    entries=("adapter_model.safetensors",),
    create_time=NOW,
)
GGUF = replace(LORA, kind=ArtifactKind.GGUF_BUNDLE, quantization="Q4_K_M")


def an_artifact(*files: ArtifactFile) -> Artifact:
    return Artifact(
        name=artifact_name(RUN), run=RUN, base_model="a/b", files=files, create_time=NOW
    )


def test_the_hub_entry_of_a_run_has_its_id() -> None:
    assert str(artifact_name(RUN)) == "projects/acme/artifacts/run-1"
    assert LORA.object_key.startswith(output_folder(RUN) + "/")


@pytest.mark.parametrize("file", [LORA, GGUF])
def test_well_described_files_pass(file: ArtifactFile) -> None:
    assert check_file(file) == file


@pytest.mark.parametrize(
    "file",
    [
        replace(LORA, file_name="a/b.zip"),
        replace(LORA, file_name="a\\b.zip"),
        replace(LORA, file_name=""),
        replace(LORA, file_name="a\x00"),
        replace(LORA, size_bytes=0),
        replace(LORA, sha256="A" * 64),
        replace(LORA, quantization="Q4_K_M"),
        replace(GGUF, quantization=""),
        replace(GGUF, quantization="q4"),
        replace(GGUF, quantization="Q" * 17),
        replace(LORA, entries=("a\x00b",)),
        replace(LORA, entries=("a",) * 1001),
    ],
)
def test_malformed_descriptions_are_refused(file: ArtifactFile) -> None:
    """Attack 11: what a node says is data from outside."""
    with pytest.raises(Fault) as caught:
        check_file(file)
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


def test_what_the_store_has_counts_not_what_a_node_says() -> None:
    check_said("a", said=(12, "0" * 64), stored=(12, "0" * 64))
    for size_bytes, sha256 in ((13, "0" * 64), (12, "1" * 64)):
        with pytest.raises(Fault) as caught:
            check_said("a", said=(12, "0" * 64), stored=(size_bytes, sha256))
        assert caught.value.code is FaultCode.STORAGE_CHECKSUM_MISMATCH


def test_without_a_quantisation_the_newest_of_the_kind_is_meant() -> None:
    newer = replace(GGUF, quantization="Q8_0", create_time=NOW + timedelta(hours=1))
    artifact = an_artifact(LORA, GGUF, newer)
    assert choose(artifact, ArtifactKind.GGUF_BUNDLE, quantization="") == newer
    assert choose(artifact, ArtifactKind.GGUF_BUNDLE, quantization="Q4_K_M") == GGUF
    assert choose(artifact, ArtifactKind.LORA_ADAPTER, quantization="") == LORA


def test_a_file_that_is_not_there_is_answered_with_what_is() -> None:
    with pytest.raises(Fault) as caught:
        choose(an_artifact(LORA), ArtifactKind.GGUF_BUNDLE, quantization="")
    assert caught.value.code is FaultCode.ARTIFACT_NOT_FOUND
    assert "it has lora_adapter" in caught.value.message


def test_the_size_of_an_entry_is_that_of_its_files() -> None:
    assert an_artifact(LORA, GGUF).size_bytes == 24


def test_a_run_without_an_entry_needs_nothing_and_one_with_it_its_files_and_adapter() -> None:
    """A5, 001-33: the loose files of an adapter outlive the run only with its hub entry."""
    stored = [LORA.object_key, "runs/r/1/state", "runs/r/1/adapter_config.json"]
    adapter = ["runs/r/1/adapter_config.json"]
    assert leftovers(stored, None, adapter=adapter) == stored
    assert leftovers(stored, an_artifact(LORA), adapter=adapter) == ["runs/r/1/state"]


@pytest.mark.parametrize("key", ["runs/run-10/x", "runs/run-1", "datasets/upload-1"])
def test_only_objects_in_the_folder_of_a_run_are_its_own(key: str) -> None:
    """Attack 14: use across runs."""

    check_own(["runs/run-1/1/state"], RUN, field="only_uris")
    with pytest.raises(Fault) as caught:
        check_own([key], RUN, field="only_uris")
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
