"""Samples while a run trains: what it would say now, beside the base; training never notices."""

import logging
import time
from collections.abc import Callable, Sequence

from lexicon.faults import FaultCode
from trainer.domain.samples import samples_due
from trainer.pipe import Sample
from trainer.training import generation
from trainer.training.dataset import Warn
from trainer.training.generation import Generator, Prompt
from trainer.training.memory import is_out_of_memory

log = logging.getLogger(__name__)


class Sampler:
    """Asks the adapter at checkpoints, when it is time to.

    A failure is warned of once and ends the samples, never the run: samples are a smoke test.
    """

    def __init__(
        self,
        generator: Generator,
        prompts: Sequence[Prompt],
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._generator = generator
        self._prompts = prompts[: generation.SAMPLES_COUNT]
        self._clock = clock
        self._last_time = clock()
        self._cost_seconds = 0.0
        self._base_ids: list[list[int]] | None = None
        self._given_up = False

    def after_checkpoint(self, step: int, *, warn: Warn) -> tuple[Sample, ...]:
        """The samples of the adapter as it is after `step` steps; empty when it is not time."""
        began = self._clock()
        if self._given_up or not samples_due(
            seconds_since=began - self._last_time, cost_seconds=self._cost_seconds
        ):
            return ()
        answers: tuple[Sample, ...] = ()
        try:
            answers = self._ask(step)
        except Exception as error:
            log.exception("samples at step %d failed", step)
            self._given_up = True
            warn_of_failure(error, f"No samples at step {step}; training goes on", warn=warn)
        # Outside the handler: the error's traceback holds what filled the memory.
        self._generator.model.free_memory()
        self._last_time = self._clock()
        self._cost_seconds = self._last_time - began
        return answers

    def _ask(self, step: int) -> tuple[Sample, ...]:
        generator, prompts = self._generator, self._prompts
        with generator.model.generating():
            said = generation.generate(generator, prompts, tokens_max=generation.BRIEF_TOKENS_MAX)
            if self._base_ids is None:
                # The base is frozen: what it says, it says in the whole run.
                with generator.model.as_base():
                    self._base_ids = generation.generate(
                        generator, prompts, tokens_max=generation.BRIEF_TOKENS_MAX
                    )
            return generation.side_by_side(generator, prompts, said, self._base_ids, step=step)


def warn_of_failure(error: Exception, what: str, *, warn: Warn) -> None:
    """Warn of samples that could not be made; for want of memory, or for another reason."""
    if is_out_of_memory(error):
        warn(FaultCode.RUNTIME_GPU_OOM, f"{what}: no memory was left for them")
    else:
        warn(FaultCode.RUNTIME_SAMPLES_FAILED, what)
