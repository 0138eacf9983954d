"""Samples while training: when they are made, what they say, and that training never notices."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from lexicon.faults import FaultCode
from modelspec.recipe import DEFAULT_PROMPTS
from tests.support.sampling import Leaping, Words
from tests.support.training import (
    FP32,
    a_plan,
    a_state,
    a_tiny_model,
    a_torch_model,
    attached,
    some_data,
    some_rows,
    torch_model,
)
from trainer.domain.plan import TrainPlan
from trainer.domain.samples import SECONDS_BETWEEN_MIN, samples_due
from trainer.training import loop, peft_library
from trainer.training.generation import BRIEF_TOKENS_MAX, Generator, Prompt
from trainer.training.sampling import Sampler

ROWS = some_rows(16)
PROMPTS = tuple(Prompt(text=f"p{n}", ids=(3 + n, 5, 7)) for n in range(4))


class Ticking:
    """A clock that goes on by so many seconds at each look."""

    def __init__(self, step_seconds: float) -> None:
        self.now, self.step_seconds = 0.0, step_seconds

    def __call__(self) -> float:
        self.now += self.step_seconds
        return self.now


def a_sampler(model: Any, *, clock: Callable[[], float] | None = None) -> Sampler:
    generator = Generator(
        model=model,
        tokenizer=Words(),
        end_ids=frozenset({2}),
        special_tokens=frozenset({"<|im_start|>"}),
    )
    return Sampler(generator, PROMPTS, clock=clock or Leaping())


def begin(plan: TrainPlan) -> loop.TrainState:
    return a_state(attached(a_tiny_model(), plan).train(), plan)


def never(code: FaultCode, text: str) -> None:
    raise AssertionError(f"{code}: {text}")


def test_samples_wait_a_minute_and_then_until_they_are_cheap() -> None:
    """001-18: they count as training, so their share of it is bounded."""
    assert not samples_due(seconds_since=SECONDS_BETWEEN_MIN - 1, cost_seconds=0.0)
    assert samples_due(seconds_since=SECONDS_BETWEEN_MIN, cost_seconds=0.0)
    assert samples_due(seconds_since=SECONDS_BETWEEN_MIN, cost_seconds=1.2)
    assert not samples_due(seconds_since=499.0, cost_seconds=10.0)
    assert samples_due(seconds_since=500.0, cost_seconds=10.0)


def test_a_checkpoint_after_every_step_does_not_mean_samples_after_every_step() -> None:
    sampler = a_sampler(begin(a_plan()).model, clock=Ticking(SECONDS_BETWEEN_MIN / 3))
    made = [bool(sampler.after_checkpoint(step, warn=never)) for step in range(1, 8)]
    assert made[:3] == [False, False, True]
    assert sum(made) <= 2


def test_three_answers_of_the_adapter_stand_beside_the_bases() -> None:
    """001-18, 001-19: three, with the step, and flagged where template tokens are spoken."""
    state = begin(a_plan())
    sampler = a_sampler(state.model)
    before = sampler.after_checkpoint(1, warn=never)
    for _ in range(4):
        loop.take_step(state, ROWS, steps=8, healed=lambda _: None)
    after = sampler.after_checkpoint(state.step, warn=never)
    assert [answer.prompt for answer in after] == ["p0", "p1", "p2"]
    assert {answer.step for answer in after} == {4}
    assert all(answer.completion == answer.base_completion for answer in before)
    assert any(answer.completion != answer.base_completion for answer in after)
    assert [answer.base_completion for answer in after] == [
        answer.base_completion for answer in before
    ]
    assert all(len(answer.completion.split()) <= BRIEF_TOKENS_MAX for answer in after)
    for answer in after:
        assert ("<|im_start|>" in answer.completion) == any("raw" in f for f in answer.flags)


@pytest.mark.parametrize("changes", [{}, {"gradient_checkpointing": True}])
def test_training_goes_on_bit_for_bit_as_if_nobody_had_asked(changes: dict[str, Any]) -> None:
    """With dropout; asked after every step."""
    plan = a_plan(adapter_dropout=0.3, **changes)
    results = []
    for asks in (False, True):
        state = begin(plan)
        sampler = a_sampler(state.model)
        losses = []
        for _ in range(4):
            taken = loop.take_step(state, ROWS, steps=4, healed=lambda _: None)
            losses.append(taken.loss)
            if asks:
                random = torch.get_rng_state()
                assert sampler.after_checkpoint(state.step, warn=never)
                assert torch.equal(torch.get_rng_state(), random)
                assert torch_model(state).module.training
        results.append((losses, loop.capture(state)))
    (left, tensors), (right, others) = results
    assert left == right
    assert all(torch.equal(tensor, others[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (torch.OutOfMemoryError("CUDA out of memory."), FaultCode.RUNTIME_GPU_OOM),
        (ValueError("no cache"), FaultCode.RUNTIME_SAMPLES_FAILED),
    ],
)
def test_samples_that_fail_are_told_once_and_training_goes_on(
    error: Exception, code: FaultCode
) -> None:
    """002-21: train mode is back."""
    state, told = begin(a_plan()), list[FaultCode]()
    sampler = a_sampler(state.model)
    backbone = torch_model(state).module.get_base_model().model
    real = backbone.forward

    def fail(*_: Any, **__: Any) -> Any:
        raise error

    backbone.forward = fail
    for step in (1, 2):
        assert not sampler.after_checkpoint(step, warn=lambda code, _: told.append(code))
    assert told == [code]
    assert torch_model(state).module.training
    backbone.forward = real
    loop.take_step(state, ROWS, steps=4, healed=lambda _: None)


def test_the_demo_model_answers_in_words() -> None:
    """With the real tokenizer and template."""
    plan = a_plan()
    data = some_data(plan, warn=never)
    module = attached(peft_library.load_base(plan.base, FP32), plan).train()
    model = a_torch_model(module)
    generator = Generator(
        model=model,
        tokenizer=data.tokenizer,
        end_ids=data.end_ids(model.end_ids),
        special_tokens=data.special_tokens,
    )
    sampler = Sampler(generator, data.prompts, clock=Leaping())
    answers = sampler.after_checkpoint(1, warn=never)
    assert [answer.prompt for answer in answers] == list(plan.data.sample_prompts)
    assert all(answer.base_completion and not answer.flags for answer in answers)


def test_a_plan_without_prompts_asks_the_platforms_own() -> None:
    data = some_data(a_plan(sample_prompts=()), warn=never)
    assert tuple(prompt.text for prompt in data.prompts) == DEFAULT_PROMPTS
