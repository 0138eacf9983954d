"""Messages between agent and child, and the child's environment."""

import msgspec

from exporter import wire
from exporter.child import child_environment
from exporter.pipe import (
    Export,
    Exported,
    Failed,
    Progress,
    ProofFigures,
    Ready,
    from_child,
    to_child,
)
from lexicon.faults import Fault, FaultCode, Stage
from tunesmith.api.fault.v1 import fault_pb2

JOB = Export(
    checkpoint="/c",
    base_key="k",
    base_model="org/m",
    adapter="/a",
    quantization="Q4_K_M",
    target="/t.zip",
    run="projects/p/runs/r",
)


def test_every_message_goes_over_and_back() -> None:
    assert to_child.decode(msgspec.json.encode(JOB)) == JOB
    for message in (
        Ready(llama_version="1", fast_types=("Q4_K",)),
        Progress(step="merge", percent=12.5),
        Exported(entries=("a",), proof=ProofFigures(proven=True), seconds={"merge": 1.0}),
        Failed(code="EXPORT_NOOP_MERGE", message="m", metadata={"k": "v"}),
    ):
        assert from_child.decode(msgspec.json.encode(message)) == message


def test_a_fault_of_the_child_keeps_code_words_and_figures() -> None:
    fault = wire.fault_of(Failed(code="EXPORT_DISK_FULL", message="full", metadata={"free": "1"}))
    assert isinstance(fault, Fault)
    assert (fault.code, fault.message) == (FaultCode.EXPORT_DISK_FULL, "full")
    assert fault.metadata["free"] == "1"
    assert fault.stage is Stage.EXPORTING


def test_the_child_sees_no_secret() -> None:
    """Attack 16: the process that parses strangers' files holds no token."""
    seen = child_environment(
        {"PATH": "/bin", "TUNESMITH_NODE_TOKEN": "secret", "HF_TOKEN": "hf_secret", "HOME": "/h"}
    )
    assert "secret" not in "".join(seen.values())
    assert seen["PATH"] == "/bin"
    assert seen["HF_HUB_OFFLINE"] == "1"


def test_the_stage_is_reported_by_its_number() -> None:
    assert wire.stage_report(Stage.EXPORTING).stage == fault_pb2.STAGE_EXPORTING


def test_the_proof_goes_onto_the_wire_whole() -> None:
    proof = ProofFigures(
        adapter_top1_agreement=0.9,
        base_top1_agreement=0.1,
        adapter_mean_kl=0.01,
        base_mean_kl=1.0,
        loss_delta=0.02,
        token_count=7,
        proven=True,
    )
    sent = wire.export_proof("Q8_0", proof)
    assert sent.quantization == "Q8_0"
    for name in proof.__struct_fields__:
        assert getattr(sent, name) == getattr(proof, name)


def test_what_to_do_about_a_fault_comes_along() -> None:
    failed = Failed(code="EXPORT_DISK_FULL", message="m", metadata={}, remedy="Free 3 GB.")
    assert wire.fault_of(failed).remedy == "Free 3 GB."
    without = Failed(code="EXPORT_DISK_FULL", message="m", metadata={})
    assert wire.fault_of(without).remedy == Fault(FaultCode.EXPORT_DISK_FULL).remedy
