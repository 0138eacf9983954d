"""Faults on the wire and back, and what is made of answers that are not ours."""

from dataclasses import dataclass
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2

from chassis import errors
from lexicon.faults import TABLE, Fault, FaultCode, Stage
from tunesmith.api.fault.v1 import fault_pb2

# What HTTP/2 peers take as metadata unless told otherwise.
METADATA_BYTES_MAX = 8192


@dataclass
class Answer(grpc.RpcError):
    """A failed call."""

    status: Any
    metadata: tuple[tuple[str, bytes], ...] = ()

    def code(self) -> Any:
        return self.status

    def trailing_metadata(self) -> Any:
        return self.metadata


@pytest.mark.parametrize("code", FaultCode)
def test_every_fault_survives_the_wire(code: FaultCode) -> None:
    fault = Fault(code, "What happened.", stage=Stage.SAVING, node="nodes/n", remedy="Do.", n=1)
    answer = Answer(errors.status_code(fault), errors.to_trailing_metadata(fault))
    back = errors.fault_from_rpc(answer)
    assert (back.code, back.message, back.remedy) == (code, "What happened.", "Do.")
    assert (back.stage, back.node, back.metadata) == (Stage.SAVING, "nodes/n", {"n": "1"})


@pytest.mark.parametrize("code", FaultCode)
def test_the_contract_says_what_the_table_says(code: FaultCode) -> None:
    proto = errors.fault_to_proto(Fault(code))
    row = TABLE[code]
    assert fault_pb2.Category.Name(proto.category) == f"CATEGORY_{row.category.value}"
    assert fault_pb2.Owner.Name(proto.owner) == f"OWNER_{row.owner.value}"
    assert (proto.retryable, proto.refundable) == (row.retryable, row.refundable)


def test_however_long_a_fault_is_its_status_fits_into_metadata() -> None:
    many: dict[str, Any] = {f"key{number:03}": "v" * 5000 for number in range(100)}
    fault = Fault(FaultCode.INTERNAL_UNEXPECTED, "…" * 100_000, remedy="é" * 100_000, **many)
    status = errors.to_status(fault)
    assert len(status.SerializeToString()) * 4 / 3 < METADATA_BYTES_MAX
    info = error_details_pb2.ErrorInfo()
    assert status.details[0].Unpack(info)
    assert info.reason == "INTERNAL_UNEXPECTED"


def test_a_failed_tools_output_fits_into_a_runs_fault() -> None:
    """003-18: both streams of a failing tool are in the detail of the error."""
    fault = Fault(FaultCode.RUNTIME_GGUF_EXPORT_FAILED, stdout="o" * 8000, stderr="e" * 8000)
    proto = errors.fault_to_proto(fault)
    assert (len(proto.metadata["stdout"]), len(proto.metadata["stderr"])) == (8000, 8000)


def test_text_that_is_no_unicode_is_sent_all_the_same() -> None:
    assert errors.fault_to_proto(Fault(FaultCode.DATASET_ROW_INVALID, "a\ud800b")).message == "a?b"


@pytest.mark.parametrize(
    ("status", "code"),
    [
        (grpc.StatusCode.UNAVAILABLE, FaultCode.DEP_SERVICE_UNAVAILABLE),
        (grpc.StatusCode.DEADLINE_EXCEEDED, FaultCode.DEP_SERVICE_UNAVAILABLE),
        (grpc.StatusCode.UNAUTHENTICATED, FaultCode.ACCESS_TOKEN_INVALID),
        (grpc.StatusCode.UNIMPLEMENTED, FaultCode.INPUT_METHOD_UNKNOWN),
        (grpc.StatusCode.UNKNOWN, FaultCode.INTERNAL_UNEXPECTED),
        (None, FaultCode.INTERNAL_UNEXPECTED),
    ],
)
def test_answers_without_our_details_become_faults(status: Any, code: FaultCode) -> None:
    assert errors.fault_from_rpc(Answer(status)).code is code
    broken = Answer(status, ((errors.DETAILS_KEY, b"\xff\xff"),))
    assert errors.fault_from_rpc(broken).code is code


def test_a_code_of_a_newer_version_is_kept_as_a_reason() -> None:
    fault = errors.fault_from_proto(fault_pb2.Fault(code="NEW_CODE_HERE", message="New."))
    assert fault.code is FaultCode.INTERNAL_UNEXPECTED
    assert (fault.message, fault.metadata["reason"]) == ("New.", "NEW_CODE_HERE")
    assert errors.stage_from_proto(99) is None
