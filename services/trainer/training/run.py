"""One run in the child, from plan to adapter, in the order in which it happens."""

import hashlib
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Protocol

import msgspec
import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain.continual import MergeRecord
from trainer.domain.device import Device
from trainer.domain.healing import OomRecovery
from trainer.domain.loss_curve import LossCurve
from trainer.domain.mlx import require_supported
from trainer.domain.plan import Places, TrainPlan, checkpoint_due, essence
from trainer.domain.scaling import LossScale
from trainer.domain.steps import StepTimer
from trainer.pipe import (
    CheckpointWritten,
    Doing,
    Finished,
    RunMerged,
    Sampled,
    StageBegan,
    Started,
    StepTaken,
    Warned,
)
from trainer.training import checkpoint, generation, loop, resumption
from trainer.training.adapted_model import AdaptedModel
from trainer.training.channel import RunChannel
from trainer.training.continual import ContinualSchedule
from trainer.training.dataset import TrainingData, Warn
from trainer.training.delivery import deliver
from trainer.training.libraries import TorchLibraries
from trainer.training.mlx_presence import require_available
from trainer.training.model_cache import Conditions, ModelCache, conditions_of
from trainer.training.preference import objective_of
from trainer.training.probe import BatchShape, largest_first, probe
from trainer.training.sampling import Sampler
from trainer.training.torch_backend import TorchBackend
from trainer.training.validation import split
from trainer.training.writer import CheckpointWriter

log = logging.getLogger(__name__)


class Backend(Protocol):
    """The backend of one run, in the numbers that it computes in.

    There are three: transformers + PEFT and Unsloth, which share `torch_backend`, and MLX.
    """

    @property
    def packs_rows(self) -> bool:
        """Whether examples can share a row; otherwise rows are padded, and the loss is the same."""
        ...

    def adapt(self, plan: TrainPlan, data: TrainingData, cache: ModelCache) -> AdaptedModel:
        """The base with a fresh adapter, out of what `cache` holds as far as that goes.

        Raises:
            Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID, RUNTIME_GPU_OOM,
                CONFIG_TARGET_UNKNOWN, RUNTIME_UNSLOTH_FAILED, and what `require_known_tokens`
                raises.
        """
        ...


def train_run(
    plan: TrainPlan, channel: RunChannel, libraries: TorchLibraries, model_cache: ModelCache
) -> Finished:
    """Train the plan and write the adapter.

    Args:
        model_cache: what earlier runs have left in memory; it is the next run's afterwards, unless
            this one fails.
    Raises:
        Fault: what is wrong with model, data, configuration or device.
    """
    log.info("run_started run_id=%s attempt=%d", plan.attempt.run, plan.attempt.number)
    channel.send(StageBegan(stage="initialization"))
    report = partial(warn, channel)
    backend = backend_for(plan, libraries, model_cache, warn=report)
    checkpoint.remove_partials(checkpoint.root_of(plan.places))
    data = TrainingData.prepare(
        plan.base, plan.data, plan.objective, warn=report, dataset_cache=model_cache.dataset_cache
    )
    with timed("model_ready"):
        model = backend.adapt(plan, data, model_cache)
    plan = padded_where_needed(plan, backend, model, warn=report)
    generator = generation.Generator(
        model=model,
        tokenizer=data.tokenizer,
        end_ids=data.end_ids(model.end_ids),
        special_tokens=data.special_tokens,
    )
    sampler = Sampler(generator, data.prompts)
    with model.training_setup(plan.compute, plan.build):
        continual_schedule, last, done, losses = _train(
            model, plan, data, channel, model_cache, sampler
        )
    channel.send(StageBegan(stage="saving"))
    finished = deliver(
        plan,
        generator,
        continual_schedule,
        data,
        last=last,
        done_count=done,
        losses=losses,
        model_cache=model_cache,
    )
    kept = (plan.base.base_model,) if model_cache.keep() else ()
    return msgspec.structs.replace(finished, cached_models=kept)


def backend_for(
    plan: TrainPlan, libraries: TorchLibraries, model_cache: ModelCache, *, warn: Warn
) -> Backend:
    """The backend of a run; MLX is imported for a run on it alone.

    Raises:
        Fault: DEP_GPU_NOT_AVAILABLE, DEP_MLX_UNAVAILABLE, CONFIG_INVALID_SETTING for what MLX does
            not do, and what `TorchBackend.choose` raises.
    """
    device = libraries.resolve(plan)
    if device is not Device.MLX:
        return TorchBackend.choose(
            plan, torch.device(device.value), libraries, model_cache, warn=warn
        )
    require_available()
    require_supported(plan)
    from trainer.training.mlx_backend.backend import MlxBackend

    return MlxBackend()


def padded_where_needed(
    plan: TrainPlan, backend: Backend, model: AdaptedModel, *, warn: Warn
) -> TrainPlan:
    """The plan, without packing where examples that share a row would see each other."""
    if not plan.batches.packing or (backend.packs_rows and model.keeps_examples_apart()):
        return plan
    if backend.packs_rows:
        warn(FaultCode.MODEL_PACKING_UNSAFE, "Examples that share a row would see each other")
    return replace(plan, batches=replace(plan.batches, packing=False))


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say in the run's log how long something took that the user waits for.

    The processor's time distinguishes work from waiting for a disk or a busy machine.
    """
    began, processor = time.monotonic(), time.process_time()
    yield
    seconds, processor = time.monotonic() - began, time.process_time() - processor
    log.info("%s seconds=%.3f processor=%.3f", what, seconds, processor)


def warn(channel: RunChannel, code: FaultCode, text: str) -> None:
    """Warn the user of something that does not end the run."""
    log.warning("%s: %s", code.value, text)
    channel.send(Warned(code=code.value, message=text))


def fingerprint(plan: TrainPlan) -> str:
    """Hash of everything that shapes the result; attempts of one run share it."""
    return hashlib.sha256(msgspec.json.encode(essence(plan))).hexdigest()


def _train(
    model: AdaptedModel,
    plan: TrainPlan,
    data: TrainingData,
    channel: RunChannel,
    model_cache: ModelCache,
    sampler: Sampler,
) -> tuple[ContinualSchedule, StepTaken | None, int, LossCurve]:
    """Take all steps that are left; figures of the last one, if any, count and losses of all."""
    state, continual_schedule = _begun(model, plan, data, channel)
    resume(plan, state, continual_schedule, channel)
    last: StepTaken | None = None
    steps, validation = continual_schedule.steps, continual_schedule.validation
    timer = StepTimer()
    with timed("longest_batch_tried"):
        conditions = conditions_of(plan.build, plan.objective, plan.batches)
        _probe(state, continual_schedule, conditions, channel=channel, model_cache=model_cache)
    last_step, last_time = state.step, time.monotonic()
    channel.send(StageBegan(stage="training"))
    channel.send(Started(from_step=state.step, total_steps=steps))
    with checkpoint_writer(plan.places, channel) as writer:
        # An attempt that resumes where the one before had lost its patience takes no step at all.
        while state.step < steps and not (channel.finish.is_set() or validation.wants_stop):
            channel.running.wait()
            figures = loop.take_step(
                state,
                continual_schedule.rows_at(state.step),
                steps=continual_schedule.run_steps,
                healed=partial(warn_of_recovery, channel),
            )
            timer.add(figures.seconds)
            if figures.skipped:
                log.info("step %d was skipped: its gradient overflowed in fp16", state.step)
            continual_schedule.after_step(state, figures)
            last = _step_report(state, figures, continual_schedule, timer)
            if is_due := checkpoint_due(
                plan.checkpoints,
                step=state.step,
                steps=steps,
                last_step=last_step,
                seconds_since=time.monotonic() - last_time,
            ):
                # Before the step is reported: of the reported steps one at most can be lost.
                save_checkpoint(writer, plan, state, continual_schedule)
            channel.send(last)
            if is_due:
                # Between two runs the model holds what the next one opens with, and no adapter.
                if state.step < steps and state.step_of_run:
                    _sample(sampler, state.step, channel)
                last_step, last_time = state.step, time.monotonic()
        if state.step > last_step:
            # It ended early. A node that is lost before the adapter is stored takes no step along.
            save_checkpoint(writer, plan, state, continual_schedule)
    continual_schedule.finish(state)
    _warn_of_skipped(channel, state)
    return continual_schedule, last, state.step, state.losses


def _begun(
    model: AdaptedModel, plan: TrainPlan, data: TrainingData, channel: RunChannel
) -> tuple[loop.TrainState, ContinualSchedule]:
    """The state and the schedule of a run before its first step."""
    model.train()
    loss_scale = LossScale() if model.scales_loss else None
    objective = objective_of(plan.objective)
    state = loop.begin(model, plan.batches, plan.optimisation, objective, loss_scale=loss_scale)
    rows, validation = split(plan.data.validation, data, seed=plan.batches.seed)
    continual_schedule = ContinualSchedule.of(
        plan.multi_run,
        rows,
        validation,
        state,
        places=plan.places,
        warn=lambda code, text: warn(channel, code, text),
        on_merge=lambda record, path: _report_merge(channel, record, path),
    )
    return state, continual_schedule


def _warn_of_skipped(channel: RunChannel, state: loop.TrainState) -> None:
    if state.skipped_count:
        text = f"{state.skipped_count} of {state.step} steps were skipped: fp16 overflowed"
        warn(channel, FaultCode.RUNTIME_STEPS_SKIPPED, text)


def _sample(sampler: Sampler, step: int, channel: RunChannel) -> None:
    """Report samples of the adapter when they are due."""
    answers = sampler.after_checkpoint(step, warn=lambda code, text: warn(channel, code, text))
    if answers:
        channel.send(Sampled(samples=answers))


def words_of(batch_shape: BatchShape) -> str:
    """What a trial of the longest batch is called while it lasts."""
    return f"trying the longest batch: {batch_shape.token_count:,} tokens"


def _probe(
    state: loop.TrainState,
    continual_schedule: ContinualSchedule,
    conditions: Conditions,
    *,
    channel: RunChannel,
    model_cache: ModelCache,
) -> None:
    """Try the largest micro-batch while the run is still free of charge."""
    size = state.recovery.micro_batch_size
    for rows, steps in largest_first(continual_schedule.left(state.step), state.batches, size=size):
        tried = probe(
            state,
            rows,
            steps=steps,
            healed=lambda recovery: warn_of_recovery(channel, recovery, what="the longest batch"),
            trying=lambda batch_shape: channel.send(Doing(text=words_of(batch_shape))),
            proven=model_cache.proven.get(conditions, ()),
        )
        if tried is not None:
            model_cache.prove(conditions, tried)


def resume(
    plan: TrainPlan,
    state: loop.TrainState,
    continual_schedule: ContinualSchedule,
    channel: RunChannel,
) -> None:
    """Continue from the newest of the plan's checkpoints that is sound, if there is one."""
    resumption.from_newest(
        plan.places,
        lambda folder: resumption.resume_from(
            folder, state, continual_schedule, run=plan.attempt.run, fingerprint=fingerprint(plan)
        ),
        partial(warn, channel),
    )


def save_checkpoint(
    writer: CheckpointWriter,
    plan: TrainPlan,
    state: loop.TrainState,
    continual_schedule: ContinualSchedule,
) -> None:
    """Have a checkpoint of the step just taken written behind training's back."""
    attempt, validation = plan.attempt, continual_schedule.validation
    progress = checkpoint.TrainingProgress(
        run=attempt.run,
        attempt=attempt.number,
        fencing_epoch=attempt.fencing_epoch,
        step=state.step,
        fingerprint=fingerprint(plan),
        micro_batch_size=state.recovery.micro_batch_size,
        trained_token_count=state.trained_token_count,
        latest_validation_loss=validation.latest_loss,
        best_validation_loss=validation.best_loss,
        validations_without_gain=validation.without_gain_count,
        continual_schedule=continual_schedule.document(),
        losses=state.losses.document(),
    )
    # What validation and merges keep is replaced as a whole, never changed.
    writer.save(progress, state, {**validation.tensors(), **continual_schedule.tensors()})


def checkpoint_writer(places: Places, channel: RunChannel) -> CheckpointWriter:
    """The writer of a run's checkpoints; what it does is reported to the agent."""

    def written(step: int, folder: Path) -> None:
        channel.send(CheckpointWritten(step=step, folder=str(folder)))

    def failed(fault: Fault) -> None:
        # Training can go on: the last good checkpoint stays, and the adapter is saved elsewhere.
        warn(channel, fault.code, fault.message)

    return CheckpointWriter(checkpoint.root_of(places), written=written, failed=failed)


def _step_report(
    state: loop.TrainState,
    figures: loop.StepFigures,
    continual_schedule: ContinualSchedule,
    timer: StepTimer,
) -> StepTaken:
    return StepTaken(
        step=state.step,
        total_steps=continual_schedule.steps,
        epoch=continual_schedule.epoch_of(state.step),
        total_epochs=continual_schedule.epochs,
        loss=figures.loss,
        learning_rate=figures.learning_rate,
        grad_norm=figures.grad_norm,
        tokens_per_second=figures.token_count / max(figures.seconds, 1e-9),
        real_token_ratio=figures.token_count / figures.computed_token_count,
        memory_bytes=state.model.peak_bytes(),
        remaining_seconds=timer.remaining_seconds(steps_left=continual_schedule.steps - state.step),
        validation_loss=continual_schedule.validation.latest_loss,
        micro_batch_size=state.recovery.micro_batch_size,
        accumulation_steps=state.recovery.accumulation_steps,
        trained_token_count=state.trained_token_count,
        preference_margin=figures.preference_margin,
        preference_accuracy=figures.preference_accuracy,
    )


def warn_of_recovery(channel: RunChannel, recovery: OomRecovery, *, what: str = "the step") -> None:
    """Warn the user that memory ran out, and how the step is cut now."""
    warn(
        channel,
        FaultCode.RUNTIME_GPU_OOM,
        f"Out of memory; {what} is taken again with micro-batch {recovery.micro_batch_size} and "
        f"{recovery.accumulation_steps} accumulation steps",
    )


def _report_merge(channel: RunChannel, record: MergeRecord, path: Path | None) -> None:
    log.info("run %d ended: %s", record.number, record.outcome.value)
    channel.send(RunMerged(record=record, path=str(path) if path else None))
