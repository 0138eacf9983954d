"""One training loop over every backend: the same plan gives the same messages and warnings."""

import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from lexicon.faults import FaultCode
from modelspec.recipe import Backend
from tests.support.mlx import a_model_folder, give_room_for, needs_mlx
from tests.support.sampling import Leaping, Words
from tests.support.training import TINY_VOCABULARY, a_plan, changed, some_rows
from trainer.domain.plan import TrainPlan, ValidationPlan
from trainer.pipe import CheckpointWritten, Doing, Finished, Sampled, StepTaken, Terms, Warned
from trainer.training import peft_library, run
from trainer.training.adapted_model import AdaptedModel
from trainer.training.batches import Row
from trainer.training.dataset import Reader, TrainingData
from trainer.training.delivery import deliver
from trainer.training.generation import Generator, Prompt
from trainer.training.libraries import TorchLibraries
from trainer.training.model_cache import ModelCache
from trainer.training.sampling import Sampler

BACKENDS = [
    pytest.param(Backend.CPU, id="torch"),
    pytest.param(Backend.MLX, id="mlx", marks=needs_mlx),
]
RAILS = TorchLibraries(terms=Terms(), peft=peft_library, unsloth=None, failure="")
STEPS = 6
EVERY_SECOND_STEP = ValidationPlan(
    holdout_ratio=0.2, dataset=None, every_steps=2, early_stop_patience=0, early_stop_min_delta=0.0
)
# In no row that is trained on.
RARE_TOKEN = TINY_VOCABULARY - 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_model_folder(tmp_path_factory.mktemp("base"))


def a_run(folder: Path, work: Path, backend: Backend, **changes: Any) -> TrainPlan:
    settings: dict[str, Any] = {
        "backend": backend,
        "max_steps": STEPS,
        "checkpoint_every_steps": 2,
        "work_folder": str(work),
        "validation": EVERY_SECOND_STEP,
    }
    plan = a_plan(**{**settings, **changes})
    return changed(plan, base=replace(plan.base, folder=str(folder), digest=str(folder)))


def some_data(plan: TrainPlan, **changes: Any) -> TrainingData:
    """Rows of random tokens, but for the rare one; answers are numbers."""
    rows = tuple(
        Row(ids=row.ids % RARE_TOKEN, labels=np.where(row.labels < 0, -100, row.ids % RARE_TOKEN))
        for row in some_rows(20)
    )
    tokenizer: Any = Words()
    data = TrainingData(
        rows=rows,
        validation_rows=(),
        tokenizer=tokenizer,
        template=Reader.load(a_plan().base).template,
        prompts=tuple(Prompt(text=f"p{n}", ids=(3 + n, 5, 7)) for n in range(4)),
    )
    return replace(data, **changes)


class Listener:
    """A channel that keeps what is sent, and asks for the end after so many steps."""

    def __init__(self, finish_after: int) -> None:
        self.sent: list[Any] = []
        self.finish, self.running = threading.Event(), threading.Event()
        self.running.set()
        self._finish_after = finish_after

    def send(self, message: Any) -> None:
        self.sent.append(message)
        if isinstance(message, StepTaken) and message.step == self._finish_after:
            self.finish.set()

    def of(self, kind: Any) -> list[Any]:
        return [message for message in self.sent if isinstance(message, kind)]

    @property
    def losses(self) -> list[float]:
        return [message.loss for message in self.of(StepTaken)]

    @property
    def kinds(self) -> list[str]:
        """Kinds of what the run's own thread has sent, in their order."""
        own = [message for message in self.sent if not isinstance(message, CheckpointWritten)]
        return [type(message).__name__ for message in own]


class Attempt:
    """An attempt of a run up to where its adapter would be delivered."""

    def __init__(
        self,
        plan: TrainPlan,
        data: TrainingData | None = None,
        *,
        finish_after: int = 0,
        room_for: int = 0,
        samples: bool = True,
    ) -> None:
        self.plan, self.data = plan, data or some_data(plan)
        self.listener, cache = Listener(finish_after), ModelCache()
        backend = run.backend_for(plan, RAILS, cache, warn=self._warn)
        self.model: AdaptedModel = backend.adapt(plan, self.data, cache)
        if room_for:
            make_narrow(self.model, room_for)
        self.plan = run.padded_where_needed(plan, backend, self.model, warn=self._warn)
        self.generator = Generator(
            model=self.model,
            tokenizer=self.data.tokenizer,
            end_ids=self.model.end_ids,
            special_tokens=frozenset(),
        )
        clock = Leaping() if samples else lambda: 0.0
        sampler = Sampler(self.generator, self.data.prompts, clock=clock)
        channel: Any = self.listener
        with self.model.training_setup(plan.compute, plan.build):
            self.continual_schedule, self.last, self.step_count, self.losses = run._train(
                self.model, self.plan, self.data, channel, cache, sampler
            )

    def deliver(self) -> Finished:
        return deliver(
            self.plan,
            self.generator,
            self.continual_schedule,
            self.data,
            last=self.last,
            done_count=self.step_count,
            losses=self.losses,
            model_cache=ModelCache(),
        )

    @property
    def warnings(self) -> list[tuple[str, str]]:
        return [(message.code, message.message) for message in self.listener.of(Warned)]

    def _warn(self, code: FaultCode, text: str) -> None:
        self.listener.send(Warned(code=code.value, message=text))


def make_narrow(model: AdaptedModel, row_count: int) -> None:
    """Let the model run out of memory over more rows than that at once."""
    held: Any = model
    if type(held).__name__ == "MlxModel":
        give_room_for(row_count, held)
        return
    backbone = held.module.get_base_model().model
    real = backbone.forward

    def forward(**named: Any) -> Any:
        if len(named["input_ids"]) > row_count:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return real(**named)

    backbone.forward = forward


@pytest.mark.parametrize("backend", BACKENDS)
def test_messages_come_in_the_same_order(folder: Path, tmp_path: Path, backend: Backend) -> None:
    """Trial, start, steps, samples behind every checkpoint but the last, which the end tells of."""
    attempt = Attempt(a_run(folder, tmp_path, backend))
    expected = ["Doing", "StageBegan", "Started"]
    expected += ["StepTaken", "StepTaken", "Sampled"] * (STEPS // 2)
    assert attempt.listener.kinds == expected[:-1]
    assert [written.step for written in attempt.listener.of(CheckpointWritten)] == [2, 4, 6]
    validations = [taken.validation_loss for taken in attempt.listener.of(StepTaken)]
    assert validations[0] is None
    assert all(loss is not None for loss in validations[1:])
    assert all(taken.memory_bytes > 0 for taken in attempt.listener.of(StepTaken))
    assert not attempt.warnings


@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_at_a_checkpoint_stand_beside_the_bases(
    folder: Path, tmp_path: Path, backend: Backend
) -> None:
    """001-18"""
    attempt = Attempt(a_run(folder, tmp_path, backend, lr_peak=5e-2))
    sampled = [message.samples for message in attempt.listener.of(Sampled)]
    assert [{answer.step for answer in answers} for answers in sampled] == [{2}, {4}]
    assert [answer.prompt for answer in sampled[0]] == ["p0", "p1", "p2"]
    bases = [[answer.base_completion for answer in answers] for answers in sampled]
    assert bases[0] == bases[1]
    assert any(answer.completion != answer.base_completion for answer in sampled[1])


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize("backend", BACKENDS)
def test_training_goes_on_bit_for_bit_as_if_nobody_had_asked(
    folder: Path, tmp_path: Path, backend: Backend, checkpointing: bool
) -> None:
    """With dropout, and through layers that are computed twice."""
    plan = a_run(
        folder, tmp_path, backend, adapter_dropout=0.3, gradient_checkpointing=checkpointing
    )
    asked, silent = Attempt(plan), Attempt(plan, samples=False)
    assert asked.listener.of(Sampled)
    assert not silent.listener.of(Sampled)
    assert not asked.warnings
    assert asked.listener.losses == silent.listener.losses
    assert same(asked.model.weights(), silent.model.weights())


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_validation_loss_that_is_not_finite_is_warned_of_once(
    tmp_path: Path, backend: Backend
) -> None:
    """002-21: a held-out row holds a token whose embedding is no number; training never sees it."""
    base = a_model_folder(tmp_path / "base")
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    model.get_input_embeddings().weight.data[RARE_TOKEN] = float("nan")
    model.save_pretrained(base)
    plan = a_run(base, tmp_path / "work", backend)
    ids = np.array([3, RARE_TOKEN, 5, 7], dtype=np.int32)
    held = (Row(ids=ids, labels=ids),)
    attempt = Attempt(plan, some_data(plan, validation_rows=held))
    text = "The validation loss at step 2 is nan: it is never the best"
    assert attempt.warnings == [(FaultCode.RUNTIME_LOSS_NOT_FINITE.value, text)]
    assert attempt.continual_schedule.validation.best_loss is None
    assert len(attempt.listener.losses) == STEPS


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_resumed_run_is_bit_for_bit_the_same_run(
    folder: Path, tmp_path: Path, backend: Backend
) -> None:
    """002-12: dropout's numbers, moments, counters and the best validation go on."""
    plan = a_run(folder, tmp_path / "whole", backend, adapter_dropout=0.2)
    whole = Attempt(plan)
    first = Attempt(changed(plan, work_folder=str(tmp_path / "first")), finish_after=3)
    stored = first.listener.of(CheckpointWritten)[-1]
    assert stored.step == 3
    second = Attempt(
        changed(
            plan,
            attempt=2,
            work_folder=str(tmp_path / "second"),
            checkpoint_folder=stored.folder,
        )
    )
    assert not second.warnings
    assert first.listener.losses + second.listener.losses == whole.listener.losses
    assert same(second.model.weights(), whole.model.weights())
    assert second.losses.document() == whole.losses.document()
    ends = [each.listener.of(StepTaken)[-1] for each in (whole, second)]
    assert ends[0].trained_token_count == ends[1].trained_token_count
    assert ends[0].validation_loss == ends[1].validation_loss
    kept = [each.continual_schedule.validation for each in (whole, second)]
    assert kept[0].best_loss == kept[1].best_loss
    assert same(kept[0].best, kept[1].best)


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_batch_too_large_is_found_before_the_first_step(
    folder: Path, tmp_path: Path, backend: Backend
) -> None:
    """002-03: the trial of the longest batch halves the micro-batch; no step has to."""
    attempt = Attempt(
        a_run(folder, tmp_path, backend, packing=False, micro_batch_size=8, accumulation_steps=1),
        room_for=2,
    )
    texts = [text for code, text in attempt.warnings if code == FaultCode.RUNTIME_GPU_OOM.value]
    assert len(texts) == len(attempt.warnings) == 2
    assert all("the longest batch is taken again" in text for text in texts)
    kinds = attempt.listener.kinds
    assert kinds[:5] == ["Doing", "Warned", "Doing", "Warned", "Doing"]
    assert {taken.micro_batch_size for taken in attempt.listener.of(StepTaken)} == {2}
    assert len(attempt.listener.of(Doing)) == 3


@pytest.mark.parametrize("steps_done", [0, 2])
@pytest.mark.parametrize("backend", BACKENDS)
def test_samples_that_fail_do_not_take_the_adapter_away(
    folder: Path, tmp_path: Path, backend: Backend, steps_done: int
) -> None:
    """002-23, 001-18: a run that has trained hands over what it has trained."""
    plan = a_run(folder, tmp_path, backend, checkpoint_every_steps=STEPS)
    # Nothing can be said after no token at all.
    data = some_data(
        plan, prompts=(Prompt(text="", ids=()),), tokenizer=Reader.load(a_plan().base).tokenizer
    )
    attempt = Attempt(plan, data, finish_after=2)
    attempt.step_count = steps_done
    finished = attempt.deliver()
    assert (Path(finished.adapter_folder) / "adapter_model.safetensors").is_file()
    assert finished.proof_path is None
    untrained = [FaultCode.EXPORT_ADAPTER_UNTRAINED.value] if steps_done == 0 else []
    codes = [code for code, _ in attempt.warnings]
    assert codes == [*untrained, FaultCode.RUNTIME_SAMPLES_FAILED.value]


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)
