"""One run in the child, from plan to adapter, in the order in which it happens."""

import hashlib
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import msgspec
import torch
from peft import PeftModel

from lexicon.faults import Fault, FaultCode
from trainer.domain.continual import MergeRecord
from trainer.domain.healing import Ladder
from trainer.domain.loss_curve import LossCurve
from trainer.domain.mlx import require_supported
from trainer.domain.plan import Places, TrainPlan, checkpoint_due, essence
from trainer.domain.rails import Device
from trainer.domain.remaining import StepTimer
from trainer.domain.scaling import LossScale
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
from trainer.training import checkpoint, loop, resumption, speech
from trainer.training.arithmetic import Arithmetic, arithmetic_for, threads_for
from trainer.training.channel import Channel
from trainer.training.compiling import compiled
from trainer.training.continual import Course
from trainer.training.dataset import Desk, require_known_tokens
from trainer.training.delivery import deliver
from trainer.training.isolation import is_proven, keeps_examples_apart, require_working
from trainer.training.memory import forget_peak, peak_bytes
from trainer.training.mlx_presence import require_available
from trainer.training.preference import goal_of
from trainer.training.probe import Extent, largest_first, probe
from trainer.training.rails import Rails, loading
from trainer.training.sampling import Sampler
from trainer.training.validation import split
from trainer.training.warm import Conditions, Warm, conditions_of
from trainer.training.writer import CheckpointWriter

log = logging.getLogger(__name__)


def train_run(plan: TrainPlan, channel: Channel, rails: Rails, warm: Warm) -> Finished:
    """Train the plan and write the adapter.

    Args:
        warm: what earlier runs have left in memory; it is the next run's afterwards, unless this
            one fails.
    Raises:
        Fault: what is wrong with model, data, configuration or device.
    """
    log.info("run_started run_id=%s attempt=%d", plan.attempt.run, plan.attempt.number)
    channel.send(StageBegan(stage="initialization"))
    forget_peak()
    resolved = rails.resolve(plan)
    if resolved is Device.MLX:
        warm.drop()
        return _on_mlx(plan, channel)
    checkpoint.remove_partials(checkpoint.root_of(plan.places))

    def tell(code: FaultCode, text: str) -> None:
        warn(channel, code, text)

    compute, device = plan.compute, torch.device(resolved.value)
    width = warm.width_of(plan.base)
    arithmetic = arithmetic_for(
        compute.precision, device, width=width, four_bit=compute.load_in_4bit
    )
    torch.set_num_threads(threads_for(width, available=_cores()))
    rail = rails.choose(compute, device, warn=tell)
    desk = Desk.prepare(plan.base, plan.data, plan.objective, warn=tell, shelf=warm.shelf)
    with loading(rail, rails), timed("model_ready"):
        seed = plan.batches.seed
        adapted = warm.adapted_for(plan.base, plan.build, rail, arithmetic, seed=seed)
        if rail is rails.unsloth:
            require_working(adapted, arithmetic, packing=plan.batches.packing)
    require_known_tokens(desk, adapted.get_input_embeddings().weight.shape[0])
    is_safe = not plan.batches.packing or is_proven(adapted)
    if not is_safe and not keeps_examples_apart(adapted, arithmetic):
        tell(FaultCode.MODEL_PACKING_UNSAFE, "Examples that share a row would see each other")
        plan = replace(plan, batches=replace(plan.batches, packing=False))
    speaker = speech.Speaker(
        model=adapted,
        tokenizer=desk.tokenizer,
        end_ids=desk.end_ids(adapted),
        special_tokens=desk.special_tokens,
        arithmetic=arithmetic,
    )
    sampler = Sampler(speaker, desk.prompts, rail)
    # Unsloth brings kernels of its own for what would be compiled.
    with compiled(adapted, wanted=compute.torch_compile and rail is rails.peft) as count:
        log.info("%d parts of the model are compiled", count)
        course, last, done, losses = _train(adapted, plan, desk, arithmetic, channel, warm, sampler)
    channel.send(StageBegan(stage="saving"))
    finished = deliver(
        plan, speaker, course, desk, rail, last=last, done_count=done, losses=losses, warm=warm
    )
    kept = (plan.base.base_model,) if warm.keep() else ()
    return msgspec.structs.replace(finished, warm=kept)


def _on_mlx(plan: TrainPlan, channel: Channel) -> Finished:
    """The run on MLX, whose libraries are imported for it alone.

    Raises:
        Fault: DEP_MLX_UNAVAILABLE, CONFIG_INVALID_SETTING, and what a run may raise.
    """
    require_available()
    require_supported(plan)
    from trainer.training.mlx_rail.run import train_run as train_on_mlx

    return train_on_mlx(plan, channel)


@contextmanager
def timed(what: str) -> Iterator[None]:
    """Say in the run's log how long something took that the user waits for.

    The processor's time tells waiting for a disk or a busy machine from work.
    """
    began, processor = time.monotonic(), time.process_time()
    yield
    seconds, processor = time.monotonic() - began, time.process_time() - processor
    log.info("%s seconds=%.3f processor=%.3f", what, seconds, processor)


def warn(channel: Channel, code: FaultCode, text: str) -> None:
    """Tell the user something that does not end the run."""
    log.warning("%s: %s", code.value, text)
    channel.send(Warned(code=code.value, message=text))


def fingerprint(plan: TrainPlan) -> str:
    """Hash of everything that shapes the result; attempts of one run share it."""
    return hashlib.sha256(msgspec.json.encode(essence(plan))).hexdigest()


def _train(
    adapted: PeftModel,
    plan: TrainPlan,
    desk: Desk,
    arithmetic: Arithmetic,
    channel: Channel,
    warm: Warm,
    sampler: Sampler,
) -> tuple[Course, StepTaken | None, int, LossCurve]:
    """Take all steps that are left; figures of the last one, if any, count and losses of all."""
    state, course = _begun(adapted, plan, desk, arithmetic, channel)
    resume(plan, state, course, channel)
    last: StepTaken | None = None
    steps, validation = course.steps, course.validation
    timer = StepTimer()
    with timed("longest_batch_tried"):
        conditions = conditions_of(plan.build, plan.objective, plan.batches)
        _probe(state, course, arithmetic, conditions, channel=channel, warm=warm)
    last_step, last_time = state.step, time.monotonic()
    channel.send(StageBegan(stage="training"))
    channel.send(Started(from_step=state.step, total_steps=steps))
    with checkpoint_writer(plan.places, channel) as writer:
        # An attempt that resumes where the one before had lost its patience takes no step at all.
        while state.step < steps and not (channel.finish.is_set() or validation.wants_stop):
            channel.running.wait()
            figures = loop.take_step(
                state,
                course.rows_at(state.step),
                arithmetic,
                steps=course.run_steps,
                healed=partial(tell_healed, channel),
            )
            timer.add(figures.seconds)
            if figures.skipped:
                log.info("step %d was skipped: its gradient overflowed in fp16", state.step)
            course.after_step(state, figures)
            last = _told(state, figures, course, timer)
            if is_due := checkpoint_due(
                plan.checkpoints,
                step=state.step,
                steps=steps,
                last_step=last_step,
                seconds_since=time.monotonic() - last_time,
            ):
                # Before the step is told: of the steps that were told, one at most can be lost.
                save_checkpoint(writer, plan, state, course)
            channel.send(last)
            if is_due:
                # Between two runs the model holds what the next one opens with, and no adapter.
                if state.step < steps and state.step_of_run:
                    _sample(sampler, state.step, channel)
                last_step, last_time = state.step, time.monotonic()
        if state.step > last_step:
            # It ended early. A node that is lost before the adapter is stored takes no step along.
            save_checkpoint(writer, plan, state, course)
    course.finish(state)
    _tell_skipped(channel, state)
    return course, last, state.step, state.losses


def _begun(
    adapted: PeftModel, plan: TrainPlan, desk: Desk, arithmetic: Arithmetic, channel: Channel
) -> tuple[loop.TrainState, Course]:
    """The state and the course of a run before its first step."""
    adapted.train()
    loss_scale = LossScale() if arithmetic.scales_loss else None
    goal = goal_of(plan.objective)
    state = loop.begin(adapted, plan.batches, plan.optimisation, goal, loss_scale=loss_scale)
    desk, validation = split(
        plan.data.validation, desk, arithmetic, batches=plan.batches, goal=goal
    )
    course = Course.of(
        plan.multi_run,
        desk.rows,
        validation,
        state,
        places=plan.places,
        warn=lambda code, text: warn(channel, code, text),
        told=lambda record, path: _tell_merged(channel, record, path),
    )
    return state, course


def _tell_skipped(channel: Channel, state: loop.TrainState) -> None:
    if state.skipped_count:
        text = f"{state.skipped_count} of {state.step} steps were skipped: fp16 overflowed"
        warn(channel, FaultCode.RUNTIME_STEPS_SKIPPED, text)


def _sample(sampler: Sampler, step: int, channel: Channel) -> None:
    """Tell what the adapter says now, when it is time to."""
    answers = sampler.after_checkpoint(step, warn=lambda code, text: warn(channel, code, text))
    if answers:
        channel.send(Sampled(samples=answers))


def words_of(extent: Extent) -> str:
    """What a trial of the longest batch is called while it lasts."""
    return f"trying the longest batch: {extent.token_count:,} tokens"


def _probe(
    state: loop.TrainState,
    course: Course,
    arithmetic: Arithmetic,
    conditions: Conditions,
    *,
    channel: Channel,
    warm: Warm,
) -> None:
    """Try the largest micro-batch while the run is still free of charge."""
    size = state.ladder.micro_batch_size
    for rows, steps in largest_first(course.left(state.step), state.batches, size=size):
        tried = probe(
            state,
            rows,
            arithmetic,
            steps=steps,
            healed=lambda ladder: tell_healed(channel, ladder, what="the longest batch"),
            trying=lambda extent: channel.send(Doing(text=words_of(extent))),
            proven=warm.proven.get(conditions, ()),
        )
        if tried is not None:
            warm.prove(conditions, tried)


def resume(plan: TrainPlan, state: loop.TrainState, course: Course, channel: Channel) -> None:
    """Continue from the newest of the plan's checkpoints that is sound, if there is one."""
    resumption.from_newest(
        plan.places,
        lambda folder: resumption.resume_from(
            folder, state, course, run=plan.attempt.run, fingerprint=fingerprint(plan)
        ),
        partial(warn, channel),
    )


def save_checkpoint(
    writer: CheckpointWriter, plan: TrainPlan, state: loop.TrainState, course: Course
) -> None:
    """Have a checkpoint of the step just taken written behind training's back."""
    attempt, validation = plan.attempt, course.validation
    progress = checkpoint.Progress(
        run=attempt.run,
        attempt=attempt.number,
        fencing_epoch=attempt.fencing_epoch,
        step=state.step,
        fingerprint=fingerprint(plan),
        micro_batch_size=state.ladder.micro_batch_size,
        trained_token_count=state.trained_token_count,
        latest_validation_loss=validation.latest_loss,
        best_validation_loss=validation.best_loss,
        validations_without_gain=validation.without_gain_count,
        course=course.document(),
        losses=state.losses.document(),
    )
    # What validation and merges keep is replaced as a whole, never changed.
    writer.save(progress, state, {**validation.tensors(), **course.tensors()})


def checkpoint_writer(places: Places, channel: Channel) -> CheckpointWriter:
    """The writer of a run's checkpoints; what it does is told to the agent."""

    def written(step: int, folder: Path) -> None:
        channel.send(CheckpointWritten(step=step, folder=str(folder)))

    def failed(fault: Fault) -> None:
        # Training can go on: the last good checkpoint stands, and the adapter is saved elsewhere.
        warn(channel, fault.code, fault.message)

    return CheckpointWriter(checkpoint.root_of(places), written=written, failed=failed)


def _told(
    state: loop.TrainState,
    figures: loop.StepFigures,
    course: Course,
    timer: StepTimer,
) -> StepTaken:
    return StepTaken(
        step=state.step,
        total_steps=course.steps,
        epoch=course.epoch_of(state.step),
        total_epochs=course.epochs,
        loss=figures.loss,
        learning_rate=figures.learning_rate,
        grad_norm=figures.grad_norm,
        tokens_per_second=figures.token_count / max(figures.seconds, 1e-9),
        real_token_ratio=figures.token_count / figures.computed_token_count,
        memory_bytes=peak_bytes(next(iter(state.trainable.values())).device),
        remaining_seconds=timer.remaining_seconds(steps_left=course.steps - state.step),
        validation_loss=course.validation.latest_loss,
        micro_batch_size=state.ladder.micro_batch_size,
        accumulation_steps=state.ladder.accumulation_steps,
        trained_token_count=state.trained_token_count,
        preference_margin=figures.preference_margin,
        preference_accuracy=figures.preference_accuracy,
    )


def tell_healed(channel: Channel, ladder: Ladder, *, what: str = "the step") -> None:
    """Tell the user that memory ran out and how the step is cut now."""
    warn(
        channel,
        FaultCode.RUNTIME_GPU_OOM,
        f"Out of memory; {what} is taken again with micro-batch {ladder.micro_batch_size} and "
        f"{ladder.accumulation_steps} accumulation steps",
    )


def _tell_merged(channel: Channel, record: MergeRecord, path: Path | None) -> None:
    log.info("run %d ended: %s", record.number, record.outcome.value)
    channel.send(RunMerged(record=record, path=str(path) if path else None))


def _cores() -> int:
    """Cores this process may use, or as many as the operator grants it."""
    granted = os.environ.get("OMP_NUM_THREADS", "")
    if granted.isdecimal() and int(granted):
        return int(granted)
    # macOS cannot tell which cores a process may use.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
