"""The contracts hold their own rules: paging, request ids, documented fields, closed sets."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import grpc_tools
import pytest
from google.protobuf import descriptor_pb2
from grpc_tools import protoc

from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2, run_service_pb2, spec_pb2

ROOT = Path(__file__).parents[2]
PROTOS = sorted((ROOT / "protos").rglob("*.proto"))
BEHAVIOURS = ("Required. ", "Optional. ", "Output only. ")
# Verbs that change nothing; every other method is a mutation.
READING = (
    *("Get", "List", "Watch", "Preview", "Validate"),
    *("Explain", "Resolve", "Compare", "Report", "Verify"),
)
# Worker calls are keyed by lease and report number; a duplicated spec is returned, not stored.
KEYED_OTHERWISE = ("WorkService", "DuplicateRun", "SignObjects", "CreateDownload")


@pytest.fixture(scope="module")
def files() -> list[descriptor_pb2.FileDescriptorProto]:
    """All contract files with their comments."""
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / "all.pb"
        well_known = Path(grpc_tools.__file__).parent / "_proto"
        includes = ["protoc", f"-I{ROOT / 'protos'}", f"-I{well_known}", "--include_source_info"]
        assert protoc.main([*includes, f"--descriptor_set_out={target}", *map(str, PROTOS)]) == 0
        found = descriptor_pb2.FileDescriptorSet.FromString(target.read_bytes())
    return list(found.file)


def _methods(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> Iterator[tuple[str, descriptor_pb2.MethodDescriptorProto, descriptor_pb2.DescriptorProto]]:
    for file in files:
        messages = {f".{file.package}.{m.name}": m for m in file.message_type}
        for service in file.service:
            for method in service.method:
                yield service.name, method, messages[method.input_type]


def test_every_field_comment_opens_with_its_behaviour(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """A reader of the contract never has to guess whether a field may be left out."""
    silent = []
    for file in files:
        for place in file.source_code_info.location:
            # Path of a field of a top-level message: message_type=4, index, field=2, index.
            if len(place.path) == 4 and place.path[0] == 4 and place.path[2] == 2:
                message = file.message_type[place.path[1]]
                field = message.field[place.path[3]]
                in_union = field.HasField("oneof_index") and not field.proto3_optional
                if not in_union and not place.leading_comments.strip().startswith(BEHAVIOURS):
                    silent.append(f"{message.name}.{field.name}")
    assert silent == []


def test_every_mutation_carries_a_request_id(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """A client that lost the answer repeats the call and changes nothing twice."""
    missing = [
        f"{service}/{method.name}"
        for service, method, request in _methods(files)
        if not method.name.startswith(READING)
        and service not in KEYED_OTHERWISE
        and method.name not in KEYED_OTHERWISE
        and "request_id" not in {field.name for field in request.field}
    ]
    assert missing == []


def test_every_list_is_paged(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """A list has a page size and a token, so that no answer grows without a bound."""
    for service, method, request in _methods(files):
        if method.name.startswith("List"):
            names = {field.name for field in request.field}
            assert {"page_size", "page_token"} <= names, f"{service}/{method.name}"


def test_submit_can_only_validate() -> None:
    """Submit has validate_only, so that a price is known before a run exists (003-27)."""
    assert "validate_only" in run_service_pb2.SubmitRunRequest.DESCRIPTOR.fields_by_name


def test_there_are_exactly_seven_user_states() -> None:
    """001-01, A18: these seven and no more."""
    names = [v.name.removeprefix("RUN_STATE_") for v in run_pb2.RunState.DESCRIPTOR.values]
    assert names == [
        "UNSPECIFIED",
        "QUEUED",
        "WAITING_FOR_GPU",
        "TRAINING",
        "RETRYING",
        "COMPLETED",
        "FAILED",
        "CANCELLED",
    ]


def test_a_spec_has_the_six_required_parts() -> None:
    """The six parts of a submission: base model, datasets, training, LoRA, tier, attestations."""
    parts = spec_pb2.RunSpec.DESCRIPTOR.fields_by_name
    assert {"base_model", "datasets", "training", "lora", "gpu_tier", "attestations"} <= set(parts)


def test_stages_stand_in_the_order_in_which_a_run_passes_them() -> None:
    """A18: finer progress is a stage, and its numbers rise along the run."""
    names = [v.name.removeprefix("STAGE_") for v in fault_pb2.Stage.DESCRIPTOR.values]
    assert names == [
        "UNSPECIFIED",
        "QUEUED",
        "PROVISIONING",
        "DATA_DOWNLOAD",
        "INITIALIZATION",
        "TRAINING",
        "SAVING",
        "UPLOAD",
        "EXPORTING",
        "DONE",
    ]


def test_a_failure_has_one_category_of_a_closed_set() -> None:
    """A fault carries one enum value, not a list and not a text (part of 000-01)."""
    field = fault_pb2.Fault.DESCRIPTOR.fields_by_name["category"]
    assert field.enum_type is not None
    assert field.enum_type.full_name == "tunesmith.api.fault.v1.Category"
    assert not field.is_repeated


def test_no_contract_undoes_a_cancel(files: list[descriptor_pb2.FileDescriptorProto]) -> None:
    """Part of 001-30: there is no un-cancel to call."""
    names = {method.name for _, method, _ in _methods(files)}
    assert not {n for n in names if n.startswith(("Uncancel", "Undo", "ResumeRun", "RestoreRun"))}


def test_every_secret_field_says_that_it_is_one(
    files: list[descriptor_pb2.FileDescriptorProto],
) -> None:
    """003-26: fingerprints and printers leave out what is marked."""
    unmarked = [
        f"{message.name}.{field.name}"
        for file in files
        for message in file.message_type
        for field in message.field
        if field.name.endswith(("token", "password", "secret"))
        and not field.name.endswith("page_token")
        and not field.options.debug_redact
    ]
    assert unmarked == []
