"""What a run hands over at its end: the adapter, three samples, and the proof's reference."""

import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from importlib import metadata
from pathlib import Path

from lexicon.faults import FaultCode
from trainer.domain.card import model_card
from trainer.domain.loss_curve import LossCurve
from trainer.domain.plan import TrainPlan
from trainer.pipe import Finished, Sample, StepTaken
from trainer.training import generation
from trainer.training.adapter import require_changed, write_adapter
from trainer.training.continual import ContinualSchedule
from trainer.training.dataset import TrainingData
from trainer.training.memory import is_out_of_memory
from trainer.training.model_cache import ModelCache
from trainer.training.sampling import warn_of_failure

log = logging.getLogger(__name__)
ADAPTER_FOLDER = "adapter"
# The text of 002-23. The path is the one among the run's outputs: folders of the node are nobody's
# business.
UNTRAINED_TEXT = (
    f"Trainer.save() called before train() — writing init-weight LoRA adapter to {ADAPTER_FOLDER}"
)
VERSIONED = (
    "tunesmith-platform", "torch", "transformers", "peft", "bitsandbytes", "unsloth", "mlx-lm"
)  # fmt: skip
UNPROVEN_TEXT = "The adapter is whole, but not all of its samples and proof could be made"


def deliver(
    plan: TrainPlan,
    generator: generation.Generator,
    continual_schedule: ContinualSchedule,
    data: TrainingData,
    *,
    last: StepTaken | None,
    done_count: int,
    losses: LossCurve,
    model_cache: ModelCache,
) -> Finished:
    """Write the adapter first; samples and proof come after it and cannot take it away.

    Args:
        last: figures of the last step of this attempt; None when it took none.
        done_count: steps of all attempts, whose losses are `losses`. An adapter that was ended
            before its first one is written as it is, with a warning; the exporter refuses it.
    Raises:
        Fault: RUNTIME_ADAPTER_UNCHANGED when it was trained and has not moved, STORAGE_FULL.
    """
    model, places = generator.model, plan.places
    if done_count:
        require_changed(model)
    else:
        continual_schedule.warn(FaultCode.EXPORT_ADAPTER_UNTRAINED, UNTRAINED_TEXT)
    folder = Path(places.work_folder) / ADAPTER_FOLDER
    write_adapter(
        model,
        plan.base,
        folder,
        tokenizer=data.tokenizer,
        template_source=data.template.source,
        card=model_card(plan, loss=last.loss if last else None, losses=losses, versions=versions()),
    )
    merges = continual_schedule.write_history(
        folder, run=plan.attempt.run, base_model=plan.base.base_model
    )
    model.eval()
    samples: tuple[Sample, ...] = ()
    proof: Path | None = None
    prompts = data.prompts
    try:
        with model.generating():
            samples, answers = generation.ask_both(generator, prompts, step=done_count)
            proof = Path(places.work_folder) / generation.PROOF_NAME
            _write_proof(generator, plan, folder, prompts, answers, proof)
    except Exception as error:
        log.exception("samples and proof failed")
        proof = None
        warn_of_failure(error, UNPROVEN_TEXT, warn=continual_schedule.warn)
        if not is_out_of_memory(error):
            # Whatever is broken now must not be what the next run begins with.
            model_cache.drop()
    return Finished(
        adapter_folder=str(folder),
        proof_path=str(proof) if proof else None,
        merges_folder=str(merges) if merges else None,
        samples=samples,
        cached_models=(),
    )


def versions() -> dict[str, str]:
    """Versions of what decides the result, by name; what is not installed is left out."""
    found = {}
    for name in VERSIONED:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def _write_proof(
    generator: generation.Generator,
    plan: TrainPlan,
    folder: Path,
    prompts: Sequence[generation.Prompt],
    answers: Sequence[Sequence[int]],
    path: Path,
) -> None:
    """The reference of the export, over the base that the export merges into."""
    with generator.model.over_export_base(plan, folder) as model:
        generation.write_proof(
            replace(generator, model=model),
            prompts,
            answers,
            path,
            base_model=plan.base.base_model,
            run=plan.attempt.run,
        )
