"""DPO, ORPO, KTO and SimPO: their papers' curves, however a step is cut, resumed or healed."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from modelspec.recipe import Method
from tests.support import slow_preference as slow
from tests.support.training import (
    FP32,
    a_preference_plan,
    a_state,
    a_tiny_model,
    attached,
    changed,
    some_pairs,
    some_verdicts,
    torch_model,
)
from trainer.domain.healing import OomRecovery
from trainer.domain.plan import TrainPlan
from trainer.domain.steps import learning_rate
from trainer.training import checkpoint, loop, preference
from trainer.training.batches import Example, KtoExample, Pair, Row, packed, step_indices

METHODS = (Method.DPO, Method.ORPO, Method.SIMPO, Method.KTO)
CPU = torch.device("cpu")
STEPS = 4


def examples_of(method: Method, *, count: int = 12) -> tuple[Example, ...]:
    return some_verdicts(count) if method is Method.KTO else some_pairs(count)


def slow_loss(plan: TrainPlan) -> slow.SlowLoss:
    assert plan.objective.preference is not None
    beta, gamma = plan.objective.preference.beta, plan.objective.preference.simpo_gamma
    losses = {
        Method.DPO: slow.dpo(beta),
        Method.ORPO: slow.orpo(beta),
        Method.SIMPO: slow.simpo(beta, gamma),
        Method.KTO: slow.kto(beta),
    }
    return losses[plan.objective.method]


def begin(plan: TrainPlan) -> loop.TrainState:
    return a_state(attached(a_tiny_model(), plan).train(), plan)


def take(
    state: loop.TrainState,
    plan: TrainPlan,
    examples: Sequence[Example],
    count: int,
    *,
    steps: int = STEPS,
) -> list[float]:
    return [
        loop.take_step(state, examples, steps=steps, healed=lambda _: None).loss
        for _ in range(count)
    ]


def slow_curve(plan: TrainPlan, examples: Sequence[Example], steps: int) -> list[float]:
    """The whole run in a plain loop: PEFT, autograd, AdamW, and a second model as reference."""
    policy, reference = torch_model(begin(plan)).module, a_tiny_model()
    parameters = [p for p in policy.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(parameters, weight_decay=plan.optimisation.weight_decay)
    curve = []
    for step in range(steps):
        chosen = [
            examples[i] for i in step_indices(plan.batches, row_count=len(examples), step=step)
        ]
        loss = slow_loss(plan)(policy, reference, chosen)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, plan.optimisation.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(
            step,
            steps=steps,
            lr_peak=plan.optimisation.lr_peak,
            warmup_ratio=plan.optimisation.warmup_ratio,
            schedule=plan.optimisation.schedule,
        )
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


def test_fifty_steps_of_dpo_are_those_of_a_plain_loop() -> None:
    """Same order and seed: within 1e-5 of PEFT in a plain loop with a second model."""
    plan = a_preference_plan(
        Method.DPO, micro_batch_size=1, accumulation_steps=2, lr_peak=5e-3, weight_decay=0.01
    )
    pairs = some_pairs(5)
    ours = take(begin(plan), plan, pairs, 50, steps=50)
    theirs = slow_curve(plan, pairs, 50)
    assert ours == pytest.approx(theirs, abs=1e-5)
    assert ours[-1] < 0.5 * ours[0]


@pytest.mark.parametrize("method", METHODS)
def test_curve_is_that_of_the_paper_in_a_plain_loop(method: Method) -> None:
    plan = a_preference_plan(method, micro_batch_size=2, accumulation_steps=2)
    examples = examples_of(method, count=7)
    expected = pytest.approx(slow_curve(plan, examples, STEPS), abs=1e-5)
    assert take(begin(plan), plan, examples, STEPS) == expected
    padded = changed(plan, packing=False)
    assert take(begin(padded), padded, examples, STEPS) == expected


def moved(plan: TrainPlan, examples: Sequence[Example], count: int = 2) -> loop.TrainState:
    """A state whose adapter is no longer nothing."""
    state = begin(plan)
    take(state, plan, examples, count)
    return state


def gradients(
    state: loop.TrainState, plan: TrainPlan, examples: Sequence[Example]
) -> tuple[dict[str, torch.Tensor | None], float]:
    """The gradient of the next step, caught before the update, and the step's loss."""
    caught: dict[str, torch.Tensor | None] = {}

    def catch(*_: Any) -> None:
        caught.update({name: p.grad for name, p in torch_model(state).trainable.items()})

    torch_model(state).updater.optimizer.register_step_pre_hook(catch)
    loss = take(state, plan, examples, 1)[0]
    return caught, loss


@pytest.mark.parametrize("method", METHODS)
def test_cutting_a_step_changes_no_gradient(method: Method) -> None:
    examples = examples_of(method)
    whole = a_preference_plan(method, micro_batch_size=8, accumulation_steps=1, max_grad_norm=0.0)
    expected, expected_loss = gradients(moved(whole, examples), whole, examples)
    for size in (3, 1):
        state = moved(whole, examples)
        state.recovery = replace(state.recovery, micro_batch_size=size)
        found, loss = gradients(state, whole, examples)
        assert loss == pytest.approx(expected_loss, abs=1e-6)
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_activations_that_are_computed_again_change_no_gradient(method: Method) -> None:
    """The backward pass runs the policy once more: by then the adapter must be back."""
    plan = a_preference_plan(method, max_grad_norm=0.0)
    examples = examples_of(method)
    expected, _ = gradients(moved(plan, examples), plan, examples)
    again = changed(plan, gradient_checkpointing=True)
    found, _ = gradients(moved(again, examples), again, examples)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=0, atol=1e-6)


@pytest.mark.parametrize("method", METHODS)
def test_validation_does_not_depend_on_the_micro_batch(method: Method) -> None:
    plan = a_preference_plan(method)
    examples = examples_of(method)
    state = moved(plan, examples)
    losses = []
    for size in (12, 5, 1):
        state.recovery = OomRecovery(effective_batch_size=12, micro_batch_size=size)
        losses.append(loop.mean_loss(state, examples))
    assert losses == pytest.approx([losses[0]] * 3, abs=1e-6)


def margins(state: loop.TrainState, examples: Sequence[Example]) -> list[float]:
    """How much likelier the better continuations are than the worse, against the base."""
    with torch.no_grad():
        ratios = preference.log_ratios(torch_model(state).module, packed(examples, CPU)).tolist()
    if isinstance(examples[0], Pair):
        return [good - bad for good, bad in zip(ratios[0::2], ratios[1::2], strict=True)]
    return [
        ratio if example.desirable else -ratio
        for ratio, example in zip(ratios, examples, strict=True)
        if isinstance(example, KtoExample)
    ]


@pytest.mark.parametrize("method", METHODS)
def test_training_learns_what_is_preferred(method: Method) -> None:
    plan = a_preference_plan(method, lr_peak=3e-2)
    examples = examples_of(method, count=8)
    state = begin(plan)
    assert margins(state, examples) == [0.0] * 8
    losses = take(state, plan, examples, 15, steps=15)
    assert losses[-1] < losses[0]
    assert min(margins(state, examples)) > 0


@pytest.mark.parametrize("method", METHODS)
def test_resumed_run_is_bitwise_the_same_run(method: Method, tmp_path: Path) -> None:
    """With dropout in the adapter, so that random numbers matter."""
    plan = a_preference_plan(method, adapter_dropout=0.2)
    examples = examples_of(method)
    whole = begin(plan)
    losses = take(whole, plan, examples, STEPS)
    first = begin(plan)
    take(first, plan, examples, 2)
    progress = checkpoint.TrainingProgress(
        run=plan.attempt.run, attempt=1, fencing_epoch=1, step=first.step, fingerprint="f",
        micro_batch_size=4, trained_token_count=first.trained_token_count,
    )  # fmt: skip
    folder = checkpoint.write(tmp_path, progress, loop.capture(first))
    second = begin(plan)
    read, tensors = checkpoint.read(folder, run=plan.attempt.run, fingerprint="f")
    loop.restore(second, tensors)
    second.step = read.step
    assert take(second, plan, examples, STEPS - 2) == losses[2:]
    for name, weight in torch_model(whole).trainable.items():
        assert torch.equal(weight, torch_model(second).trainable[name])


class Injected:
    """Makes the n-th call of a function run out of memory."""

    def __init__(self, real: Callable[..., Any], *, at: int) -> None:
        self.real, self.at, self.calls = real, at, 0

    def __call__(self, *args: Any, **named: Any) -> Any:
        self.calls += 1
        if self.calls == self.at:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return self.real(*args, **named)


# The forward passes of a step: reference and policy of each micro-batch in turn; for KTO first
# those of its two micro-batches of strangers.
@pytest.mark.parametrize(
    ("method", "at"),
    [
        (Method.DPO, 1), (Method.DPO, 2),
        (Method.KTO, 1), (Method.KTO, 2), (Method.KTO, 5), (Method.KTO, 6),
    ],
)  # fmt: skip
def test_out_of_memory_anywhere_in_a_step_changes_nothing(method: Method, at: int) -> None:
    """002-03: in the estimate of KTO, in the reference and in the policy; the adapter is back."""
    plan = a_preference_plan(method)
    examples = examples_of(method, count=8)
    clean = take(begin(plan), plan, examples, 2)
    state = begin(plan)
    backbone = torch_model(state).module.get_base_model().model
    backbone.forward = Injected(backbone.forward, at=at)
    assert take(state, plan, examples, 2) == pytest.approx(clean, abs=1e-6)
    assert state.recovery.micro_batch_size == plan.batches.micro_batch_size // 2
    assert torch_model(state).module.training
    assert all(parameter.requires_grad for parameter in torch_model(state).trainable.values())


def test_the_reference_is_the_base_and_not_a_second_model() -> None:
    """A fresh adapter says what the base says, and a trained one is measured against the base."""
    plan = a_preference_plan(Method.DPO, adapter_dropout=0.5)
    pairs = some_pairs(6)
    state = moved(plan, pairs, 3)
    parameters = sum(p.numel() for p in torch_model(state).module.parameters())
    ratios = preference.log_ratios(torch_model(state).module.eval(), packed(pairs, CPU))
    base = a_tiny_model()
    rows = [row for pair in pairs for row in pair.sequences]
    with torch.no_grad():
        expected = [float(slow.log_ratio(torch_model(state).module, base, row)) for row in rows]
    assert ratios.tolist() == pytest.approx(expected, abs=1e-5)
    assert sum(p.numel() for p in torch_model(state).module.parameters()) == parameters


def test_certain_answers_keep_orpo_finite() -> None:
    """The odds of a certainty are infinite; loss and gradient must not be."""
    means = torch.tensor([0.0, -1e-9, -2.0, 0.0], requires_grad=True)
    preference.orpo_losses(means, beta=0.1).sum().backward()
    assert means.grad is not None
    assert means.grad.isfinite().all()


def test_kto_has_no_reference_point_where_there_is_no_other_example() -> None:
    plan = a_preference_plan(Method.KTO)
    state = moved(plan, some_verdicts(8))
    assert reference_point(state, plan, some_verdicts(1)) == 0.0


def test_kto_measures_its_distance_on_the_answers_of_others() -> None:
    """As the policy is, not as dropout makes it in training."""
    plan = a_preference_plan(Method.KTO, lr_peak=5e-2, adapter_dropout=0.3)
    verdicts = some_verdicts(8)
    state = moved(plan, verdicts, 6)
    base = a_tiny_model()
    torch_model(state).module.eval()
    with torch.no_grad():
        ratios = [
            float(slow.log_ratio(torch_model(state).module, base, slow.stranger(one, other)))
            for one, other in zip(verdicts, [*verdicts[1:], verdicts[0]], strict=True)
        ]
    expected = max(0.0, sum(ratios) / 8)
    assert expected > 0.1
    torch_model(state).module.train()
    assert reference_point(state, plan, verdicts) == pytest.approx(expected, abs=1e-5)


def reference_point(state: loop.TrainState, plan: TrainPlan, examples: Sequence[Example]) -> float:
    return preference.reference_point(
        torch_model(state).module,
        examples,
        preference.objective_of(plan.objective),
        FP32,
        micro_batch_size=4,
        packing=True,
    )


def test_a_stranger_is_cut_at_the_longest_sequence_allowed() -> None:
    rows = [
        Row(ids=np.arange(6), labels=np.array([-100, -100, 2, 3, 4, 5])),
        Row(ids=np.arange(10, 15), labels=np.array([-100, -100, -100, -100, 14])),
    ]
    one, other = preference.mismatched(rows, max_tokens=6)
    assert one.ids.tolist() == [0, 1, 14]
    assert one.labels.tolist() == [-100, -100, 14]
    assert other.ids.tolist() == [10, 11, 12, 13, 2, 3]
    assert other.trained_count == 2


@pytest.mark.parametrize(
    ("prompts", "answers"),
    [("abc", [1, 2, 0]), ("aab", [2, 2, 0]), ("baa", [1, 0, 0]), ("aaa", [1, 2, 0])],
)
def test_a_stranger_answers_another_prompt(prompts: str, answers: list[int]) -> None:
    """Data made of pairs has the same prompt twice in a row: its two answers are no strangers."""
    rows = [
        Row(ids=np.array([ord(prompt), 10 + place]), labels=np.array([-100, 10 + place]))
        for place, prompt in enumerate(prompts)
    ]
    strangers = preference.mismatched(rows, max_tokens=9)
    assert [int(row.ids[1]) - 10 for row in strangers] == answers
    assert [int(row.ids[0]) for row in strangers] == [ord(prompt) for prompt in prompts]
