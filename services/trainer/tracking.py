"""A run's figures for a tracking tool of the node's operator, beside the scheduler.

The agent reports, never the training child. A thread of its own does it, from a queue with a bound:
a tool that is slow, full or away costs its points and one warning in the operator's log, and never
a step of a run.
"""

import enum
import math
import queue
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Protocol

from chassis import telemetry
from lexicon.names import RunName
from trainer.domain.plan import TrainPlan
from tunesmith.api.run.v1 import run_pb2

log = telemetry.logger(__name__)
# Points that wait for a slow tool; what does not fit is left out and counted.
QUEUED_POINTS_MAX = 2000
# Points that go out together: with a dozen figures each they fit into one call of any tool.
BATCH_POINTS_MAX = 50
# How long the end of a run waits for its last points.
END_SECONDS_MAX = 5.0


class Tool(enum.StrEnum):
    """Where to report."""

    NONE = "none"
    TENSORBOARD = "tensorboard"
    MLFLOW = "mlflow"
    WANDB = "wandb"


class AttemptEnd(enum.StrEnum):
    """How an attempt ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """Which attempt of which run is reported, and its settings.

    Attributes:
        from_step: step that it begins from; what an earlier attempt reported of later ones is void.
    """

    project: str
    run: str
    attempt: int
    from_step: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """The figures of one step."""

    step: int
    unix_seconds: float
    figures: Mapping[str, float]


class Tracker(Protocol):
    """One attempt in a tool. Its calls may block and raise whatever they like."""

    def log(self, points: Sequence[Point]) -> None:
        """Report points, in the order of their steps."""
        ...

    def end(self, outcome: AttemptEnd) -> None:
        """Report the end and let go of everything."""
        ...


class Tracking:
    """The reports of one attempt; nothing of it ever raises, and only `wait` blocks."""

    def __init__(
        self, begin: Callable[[], Tracker], *, clock: Callable[[], float] = time.time
    ) -> None:
        """Begin to report.

        Args:
            begin: makes the tracker; called in the thread, where it may take its time.
        """
        self._begin = begin
        self._clock = clock
        self._points: queue.Queue[Point | AttemptEnd] = queue.Queue(QUEUED_POINTS_MAX)
        self._left_out_count = 0
        self._failed = False
        self._thread = threading.Thread(target=self._run, name="tracking", daemon=True)
        self._thread.start()

    def add(self, metrics: run_pb2.RunMetrics) -> None:
        """Report the figures of a step, some time soon."""
        if self._failed:
            return
        self._put(Point(step=metrics.step, unix_seconds=self._clock(), figures=figures(metrics)))

    def end(self, outcome: AttemptEnd) -> None:
        """Report the end, some time soon."""
        self._put(outcome)

    def wait(self, *, seconds: float = END_SECONDS_MAX) -> bool:
        """Wait until everything was sent; whether it was."""
        self._thread.join(seconds)
        return not self._thread.is_alive()

    def _put(self, item: Point | AttemptEnd) -> None:
        """Queue an item; a full queue drops its oldest, so that the end is always sent."""
        while True:
            try:
                self._points.put_nowait(item)
            except queue.Full:
                with suppress(queue.Empty):
                    self._points.get_nowait()
                    self._left_out_count += 1
            else:
                return

    def _run(self) -> None:
        try:
            self._report(self._begin())
        except Exception as error:
            # The tool is the operator's, and so is its trouble: the run's user gets no warning.
            log.warning("tracking_failed", kind=type(error).__name__, exc_info=True)
            self._failed = True

    def _report(self, tracker: Tracker) -> None:
        while True:
            points, outcome = self._next()
            if points:
                tracker.log(points)
            if outcome is not None:
                if self._left_out_count:
                    log.warning("tracking_incomplete", left_out_count=self._left_out_count)
                tracker.end(outcome)
                return

    def _next(self) -> tuple[list[Point], AttemptEnd | None]:
        """The points that have come, at least one waited for; and the end, once it is reached."""
        points: list[Point] = []
        item = self._points.get()
        while True:
            if isinstance(item, AttemptEnd):
                return points, item
            points.append(item)
            if len(points) == BATCH_POINTS_MAX:
                return points, None
            try:
                item = self._points.get_nowait()
            except queue.Empty:
                return points, None


def subject_of(plan: TrainPlan, *, from_step: int) -> Subject:
    """What a tool gets of an attempt before its first step."""
    name, adapter = RunName.parse(plan.attempt.run), plan.build.adapter
    objective, batches, optimisation = plan.objective, plan.batches, plan.optimisation
    settings = {
        "base_model": plan.base.base_model,
        "revision": plan.base.revision,
        "datasets": ", ".join(dataset.name for dataset in plan.data.datasets),
        "method": objective.method.value,
        "rank": adapter.rank,
        "alpha": adapter.alpha,
        "dropout": adapter.dropout,
        "target_modules": ", ".join(adapter.target_modules),
        "use_rslora": adapter.use_rslora,
        "use_dora": adapter.use_dora,
        "epochs": batches.epochs,
        "max_steps": batches.max_steps,
        "micro_batch_size": batches.micro_batch_size,
        "accumulation_steps": batches.accumulation_steps,
        "learning_rate": optimisation.lr_peak,
        "schedule": optimisation.schedule.value,
        "warmup_ratio": optimisation.warmup_ratio,
        "weight_decay": optimisation.weight_decay,
        "max_sequence_tokens": objective.max_sequence_tokens,
        "packing": batches.packing,
        "precision": plan.compute.precision.value,
        "optimizer": optimisation.optimizer.value,
        "load_in_4bit": plan.compute.load_in_4bit,
        "seed": batches.seed,
    }
    return Subject(
        project=name.project,
        run=name.run,
        attempt=plan.attempt.number,
        from_step=from_step,
        settings={key: str(value) for key, value in settings.items() if value != ""},
    )


def figures(metrics: run_pb2.RunMetrics) -> dict[str, float]:
    """What a tool shows of a step, by name; what is not measured or not finite is left out."""
    found = {
        "train/loss": metrics.loss,
        "train/learning_rate": metrics.learning_rate,
        "train/grad_norm": metrics.grad_norm,
        "train/tokens_per_second": metrics.tokens_per_second,
        "train/real_token_ratio": metrics.real_token_ratio,
        "train/memory_bytes": float(metrics.memory_bytes),
        "train/trained_tokens": float(metrics.trained_token_count),
    }
    if metrics.HasField("remaining"):
        found["train/remaining_seconds"] = metrics.remaining.ToNanoseconds() / 1e9
    if metrics.HasField("validation_loss"):
        found["validation/loss"] = metrics.validation_loss
    if metrics.HasField("preference_margin"):
        found["train/preference_margin"] = metrics.preference_margin
    if metrics.HasField("preference_accuracy"):
        found["train/preference_accuracy"] = metrics.preference_accuracy
    return {name: value for name, value in found.items() if math.isfinite(value)}
