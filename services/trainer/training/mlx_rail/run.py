"""One run on MLX, from plan to adapter; what it says and leaves is what every rail does."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import mlx.core as mx
from mlx_lm.tuner.trainer import grad_checkpoint

from lexicon.faults import FaultCode
from modelspec.recipe import Precision
from trainer.domain.card import model_card
from trainer.domain.loss_curve import LossCurve
from trainer.domain.plan import (
    Base,
    TrainPlan,
    checkpoint_due,
    steps_per_epoch,
    total_epochs,
    total_steps,
)
from trainer.domain.remaining import StepTimer
from trainer.pipe import Answer, Finished, StageBegan, Started, StepTaken
from trainer.training import checkpoint, speech
from trainer.training.adapter import require_changed, write_adapter
from trainer.training.channel import Channel
from trainer.training.dataset import Desk, require_known_tokens
from trainer.training.delivery import (
    ADAPTER_FOLDER,
    UNPROVEN_TEXT,
    UNTRAINED_TEXT,
    versions,
)
from trainer.training.loop import StepFigures
from trainer.training.mlx_rail import faithful, model, steps
from trainer.training.mlx_rail.speaker import MlxSpeaker
from trainer.training.mlx_rail.validation import MlxValidation, split
from trainer.training.peft_rail import vocabulary_of
from trainer.training.resumption import from_newest, require_possible
from trainer.training.run import checkpoint_writer, fingerprint, tell_healed, warn
from trainer.training.sampling import tell_failure
from trainer.training.validation import BEST_PREFIX
from trainer.training.writer import CheckpointWriter

log = logging.getLogger(__name__)


def train_run(plan: TrainPlan, channel: Channel) -> Finished:
    """Train the plan and write the adapter.

    Raises:
        Fault: what is wrong with model, data, configuration or device.
    """
    checkpoint.remove_partials(checkpoint.root_of(plan.places))
    mx.reset_peak_memory()
    desk = Desk.prepare(plan.base, plan.data, plan.objective, warn=partial(warn, channel))
    require_known_tokens(desk, vocabulary_of(plan.base))
    batches, seed = plan.batches, plan.batches.seed
    base = _base(plan.base, desk, plan.compute.precision)
    adapted = model.attach(base, plan.base, plan.build.adapter, seed=seed)
    rows, validation = split(plan.data.validation, desk, seed=seed)
    run = _Run(
        plan=plan,
        channel=channel,
        state=steps.begin(adapted, batches, plan.optimisation),
        desk=replace(desk, rows=rows),
        validation=validation,
    )
    with gradient_checkpointing(adapted.model, wanted=plan.build.gradient_checkpointing):
        last = run.train()
    return run.deliver(last)


def _base(base: Base, desk: Desk, precision: Precision) -> Any:
    """The base model, which says what transformers says after the first tokens of the data."""
    longest = max((row.sequences[0].ids for row in desk.rows), key=len)
    # One after the other: two models at once would need twice the memory.
    expected_TV = faithful.reference_logprobs(base, longest, precision)
    loaded = model.load_base(base, precision)
    faithful.require_faithful(loaded, base, longest, expected_TV)
    return loaded


class _Run:
    """A run under way."""

    def __init__(
        self,
        *,
        plan: TrainPlan,
        channel: Channel,
        state: steps.MlxState,
        desk: Desk,
        validation: MlxValidation,
    ) -> None:
        self._plan = plan
        self._channel = channel
        self._state = state
        self._desk = desk
        self._validation = validation
        self._steps = total_steps(plan.batches, row_count=len(desk.rows))
        self._timer = StepTimer()

    def train(self) -> StepTaken | None:
        """Take all steps that are left; the figures of the last one, None when none was left."""
        plan, channel, state = self._plan, self._channel, self._state
        state.adapted.model.train()
        self._resume()
        last: StepTaken | None = None
        last_step, last_time = state.step, time.monotonic()
        channel.send(StageBegan(stage="training"))
        channel.send(Started(from_step=state.step, total_steps=self._steps))
        with checkpoint_writer(plan.places, channel) as writer:
            while state.step < self._steps and not (
                channel.finish.is_set() or self._validation.wants_stop
            ):
                channel.running.wait()
                figures = steps.take_step(
                    state,
                    self._desk.rows,
                    steps=self._steps,
                    healed=partial(tell_healed, channel),
                )
                self._timer.add(figures.seconds)
                self._validation.after_step(state, steps=self._steps, warn=partial(warn, channel))
                last = self._told(figures)
                if checkpoint_due(
                    plan.checkpoints,
                    step=state.step,
                    steps=self._steps,
                    last_step=last_step,
                    seconds_since=time.monotonic() - last_time,
                ):
                    self._write_checkpoint(writer)
                    last_step, last_time = state.step, time.monotonic()
                channel.send(last)
            if state.step > last_step:
                # It ended early. A node that is lost before the adapter is stored takes no step.
                self._write_checkpoint(writer)
        if self._validation.promote_best(state):
            log.info("the best validation's weights were promoted")
        return last

    def deliver(self, last: StepTaken | None) -> Finished:
        """Write the adapter first; samples and proof come after it and cannot take it away."""
        plan, desk, adapted = self._plan, self._desk, self._state.adapted
        self._channel.send(StageBegan(stage="saving"))
        if self._state.step:
            require_changed(adapted)
        else:
            warn(self._channel, FaultCode.EXPORT_ADAPTER_UNTRAINED, UNTRAINED_TEXT)
        folder = Path(plan.places.work_folder) / ADAPTER_FOLDER
        write_adapter(
            adapted,
            plan.base,
            folder,
            tokenizer=desk.tokenizer,
            template_source=desk.template.source,
            card=model_card(
                plan,
                loss=last.loss if last else None,
                losses=self._state.losses,
                versions=versions(),
            ),
        )
        adapted.model.eval()
        samples, proof = self._speak()
        return Finished(
            adapter_folder=str(folder),
            proof_path=str(proof) if proof else None,
            samples=samples,
            warm=(),
        )

    def _speak(self) -> tuple[tuple[Answer, ...], Path | None]:
        plan, desk = self._plan, self._desk
        samples: tuple[Answer, ...] = ()
        try:
            speaker = self._speaker()
            samples, answers = speech.ask_both(speaker, desk.prompts, step=self._state.step)
            proof = Path(plan.places.work_folder) / speech.PROOF_NAME
            names = {"base_model": plan.base.base_model, "run": plan.attempt.run}
            speech.write_proof(speaker, desk.prompts, answers, proof, **names)
        except Exception as error:
            log.exception("samples and proof failed")
            tell_failure(error, UNPROVEN_TEXT, warn=partial(warn, self._channel))
            return samples, None
        return samples, proof

    def _speaker(self) -> MlxSpeaker:
        desk = self._desk
        ends = SimpleNamespace(eos_token_id=list(model.end_ids_of(Path(self._plan.base.folder))))
        return MlxSpeaker(
            adapted=self._state.adapted,
            tokenizer=desk.tokenizer,
            end_ids=desk.end_ids(SimpleNamespace(generation_config=ends)),
            special_tokens=desk.special_tokens,
        )

    def _resume(self) -> None:
        """Continue from the newest of the plan's checkpoints that is sound, if there is one."""
        from_newest(self._plan.places, self._resume_from, partial(warn, self._channel))

    def _resume_from(self, folder: Path) -> None:
        plan, state = self._plan, self._state
        progress, tensors = checkpoint.read(
            folder, run=plan.attempt.run, fingerprint=fingerprint(plan)
        )
        require_possible(progress, plan.batches, steps=self._steps)
        steps.restore(state, {k: v for k, v in tensors.items() if not k.startswith(BEST_PREFIX)})
        self._validation.restore(progress, tensors)
        state.step = progress.step
        state.trained_token_count = progress.trained_token_count
        state.losses = LossCurve.of(progress.losses)
        state.ladder = replace(state.ladder, micro_batch_size=progress.micro_batch_size)
        log.info("resumed at step %d", state.step)

    def _write_checkpoint(self, writer: CheckpointWriter) -> None:
        plan, state, validation = self._plan, self._state, self._validation
        progress = checkpoint.Progress(
            run=plan.attempt.run,
            attempt=plan.attempt.number,
            fencing_epoch=plan.attempt.fencing_epoch,
            step=state.step,
            fingerprint=fingerprint(plan),
            micro_batch_size=state.ladder.micro_batch_size,
            trained_token_count=state.trained_token_count,
            latest_validation_loss=validation.latest_loss,
            best_validation_loss=validation.best_loss,
            validations_without_gain=validation.without_gain_count,
            losses=state.losses.document(),
        )
        # MLX changes no array in place; what is captured stays as it is.
        writer.save(progress, None, {**steps.capture(state), **validation.tensors()})

    def _told(self, figures: StepFigures) -> StepTaken:
        batches, state, row_count = self._plan.batches, self._state, len(self._desk.rows)
        return StepTaken(
            step=state.step,
            total_steps=self._steps,
            epoch=(state.step - 1) // steps_per_epoch(batches, row_count=row_count) + 1,
            total_epochs=total_epochs(batches, row_count=row_count),
            loss=figures.loss,
            learning_rate=figures.learning_rate,
            grad_norm=figures.grad_norm,
            tokens_per_second=figures.token_count / max(figures.seconds, 1e-9),
            real_token_ratio=figures.token_count / figures.computed_token_count,
            memory_bytes=int(mx.get_peak_memory()),
            remaining_seconds=self._timer.remaining_seconds(steps_left=self._steps - state.step),
            validation_loss=self._validation.latest_loss,
            micro_batch_size=state.ladder.micro_batch_size,
            accumulation_steps=state.ladder.accumulation_steps,
            trained_token_count=state.trained_token_count,
        )


@contextmanager
def gradient_checkpointing(trained: Any, *, wanted: bool) -> Iterator[None]:
    """Layers are computed again in the backward pass.

    mlx-lm changes the layer's class for good; the class is put back for the runs that follow.
    """
    if not wanted:
        yield
        return
    kind = type(trained.layers[0])
    before = kind.__call__
    grad_checkpoint(trained.layers[0])
    try:
        yield
    finally:
        kind.__call__ = before
