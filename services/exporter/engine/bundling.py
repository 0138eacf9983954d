"""What a bundle says of its model: the texts beside it, and export_proof.json with the evidence."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

from exporter.domain import bundle
from exporter.domain.adapter import Adapter
from exporter.domain.bundle import BundleFacts
from exporter.domain.gates import Behaviour, Figures
from exporter.domain.gguf_format import Header
from exporter.domain.quantization import Quantization, TensorType
from exporter.engine import templates, vocabulary
from exporter.engine.archive import Checksums, bundle_in_place
from exporter.engine.base import BaseModel
from exporter.pipe import Export
from lexicon.names import ollama_name

PROOF_FORMAT: Final = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What the proof found."""

    behaviour: Behaviour | None
    row_errors: Mapping[TensorType, float]
    template: templates.TemplateEvidence
    texts: vocabulary.TextEvidence
    tokens_written: list[str]
    ends_by_itself: bool | None

    @property
    def figures(self) -> Figures | None:
        """Those of the finished file."""
        return self.behaviour.file if self.behaviour else None


def facts_of(
    job: Export,
    mix: Quantization,
    base: BaseModel,
    header: Header,
    trained: templates.TrainedTemplate,
    figures: Figures | None,
) -> BundleFacts:
    """What the texts of a bundle say of the model."""
    return BundleFacts(
        ollama_name=ollama_name(job.base_model, job.run),
        base_model=job.base_model,
        run=job.run,
        quantization=mix,
        template=trained.go,
        outcomes=trained.outcomes,
        stops=trained.stops,
        context_tokens=header.number(f"{header.text('general.architecture')}.context_length"),
        generation=base.settings("generation_config.json"),
        figures=figures,
    )


def proof_report(
    job: Export,
    facts: BundleFacts,
    evidence: Evidence,
    adapter: Adapter,
    sums: Checksums,
    path: Path,
    *,
    llama_version: str,
) -> dict[str, Any]:
    """The content of export_proof.json."""
    behaviour = evidence.behaviour
    return {
        "format": PROOF_FORMAT,
        "run": job.run,
        "base_model": job.base_model,
        "quantization": str(facts.quantization),
        "model_sha256": sums.sha256,
        "model_bytes": path.stat().st_size,
        "merged_matrices": len(adapter.deltas) + len(adapter.replacements),
        "proven": behaviour is not None,
        "behaviour": None if behaviour is None else _behaviour(behaviour.file),
        "before_quantization": None if behaviour is None else _before(behaviour),
        "relative_error_by_type": {
            kind.name: round(error, 6) for kind, error in sorted(evidence.row_errors.items())
        },
        "texts_with_equal_tokens": evidence.template.texts_equal + evidence.texts.texts_equal,
        "texts_with_other_tokens": evidence.template.texts_different
        + evidence.texts.texts_different,
        "tokens_written": evidence.tokens_written,
        "modelfile_template": facts.template is not None,
        "modelfile_template_probes": {key: str(found) for key, found in facts.outcomes.items()},
        "answer_ends_by_itself": evidence.ends_by_itself,
        "versions": {
            "llama.cpp": llama_version,
            "llama-cpp-python": version("llama-cpp-python"),
        },
    }


def _behaviour(figures: Figures) -> dict[str, Any]:
    return {
        "tokens": figures.token_count,
        "adapter": {
            "top1_agreement": round(figures.adapter.top1_agreement, 6),
            "mean_kl_nats": round(figures.adapter.mean_kl, 6),
            "loss_nats_per_token": round(figures.adapter_loss, 6),
        },
        "base": {
            "top1_agreement": round(figures.base.top1_agreement, 6),
            "mean_kl_nats": round(figures.base.mean_kl, 6),
        },
        "gguf_loss_nats_per_token": round(figures.loss, 6),
        "loss_delta_nats_per_token": round(figures.loss_delta, 6),
        "adapter_and_base_differ_by_nats": round(figures.separation_kl, 6),
    }


def _before(behaviour: Behaviour) -> dict[str, Any]:
    """The same of the merge and of the base, over fewer tokens."""
    merge = behaviour.merge
    return {
        "tokens": merge.token_count,
        "merge_top1_agreement": round(merge.adapter.top1_agreement, 6),
        "merge_mean_kl_nats": round(merge.adapter.mean_kl, 6),
        "base_mean_kl_nats_from_its_reference": round(behaviour.base_kl_of_base, 6),
    }


def write_bundle(
    target: Path,
    model_path: Path,
    sums: Checksums,
    facts: BundleFacts,
    report: dict[str, Any],
) -> None:
    """Writes the archive; stored, since quantised weights hardly compress."""
    texts = {
        "Modelfile": bundle.modelfile(facts),
        "install.sh": bundle.install_sh(facts),
        "install.bat": bundle.install_bat(facts),
        "README.md": bundle.readme(facts),
        "export_proof.json": json.dumps(report, indent=2, ensure_ascii=False) + "\n",
    }
    bundle_in_place(
        model_path, target, texts, crc32=sums.crc32, executables=frozenset({"install.sh"})
    )
