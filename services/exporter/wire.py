"""Protobuf ⇄ the exporter's own words."""

from chassis import activities
from exporter.pipe import Failed, Progress, ProofFigures
from lexicon.faults import Fault, FaultCode, Stage
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.fault.v1 import fault_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.api.work.v1 import work_pb2, work_service_pb2


def stage_report(stage: Stage) -> work_service_pb2.TaskReport:
    """A report that a stage began."""
    number = fault_pb2.Stage.Value(f"STAGE_{stage.name}")
    return work_service_pb2.TaskReport(stage=number)  # type: ignore[arg-type]  # the stubs want a name


def activity_report(progress: Progress, *, quantization: str) -> work_service_pb2.TaskReport:
    """A report of what the child does."""
    text = {
        "base": "preparing the base model",
        "merge": f"merging and quantising to {quantization}",
        "proof": f"proving {quantization} against the adapter",
        "bundle": f"bundling {quantization}",
    }.get(progress.step, progress.step)
    return activities.report(text, progress.percent if progress.step == "merge" else None)


def export_proof(quantization: str, proof: ProofFigures) -> run_pb2.ExportProof:
    """The figures as they stand on the run."""
    return run_pb2.ExportProof(
        quantization=quantization,
        adapter_top1_agreement=proof.adapter_top1_agreement,
        base_top1_agreement=proof.base_top1_agreement,
        adapter_mean_kl=proof.adapter_mean_kl,
        base_mean_kl=proof.base_mean_kl,
        loss_delta=proof.loss_delta,
        token_count=proof.token_count,
        proven=proof.proven,
    )


def bundle_output(
    *, path: str, size_bytes: int, sha256: str, quantization: str, entries: tuple[str, ...]
) -> work_pb2.OutputFile:
    """A finished archive as CompleteTask names it."""
    return work_pb2.OutputFile(
        path=path,
        size_bytes=size_bytes,
        sha256=sha256,
        artifact_kind=artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE,
        quantization=quantization,
        entries=entries,
    )


def fault_of(failed: Failed) -> Fault:
    """The fault that the child met."""
    return Fault(
        FaultCode(failed.code),
        failed.message,
        stage=Stage.EXPORTING,
        remedy=failed.remedy or None,
        **failed.metadata,
    )
