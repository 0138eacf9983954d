"""Margin and accuracy of the methods that learn from preferences, as users see them."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch.nn import functional

from modelspec.recipe import Method
from tests.support.training import (
    a_plan,
    a_preference_plan,
    a_state,
    a_tiny_model,
    attached,
    some_pairs,
    some_rows,
    some_verdicts,
    torch_model,
)
from trainer.domain.plan import TrainPlan
from trainer.training import loop, preference
from trainer.training.batches import IGNORED_LABEL, Example, Row

PAIR_METHODS = (Method.DPO, Method.ORPO, Method.SIMPO)


def begin(plan: TrainPlan) -> loop.TrainState:
    return a_state(attached(a_tiny_model(), plan).train(), plan)


def step(state: loop.TrainState, examples: tuple[Example, ...], plan: TrainPlan) -> Any:
    return loop.take_step(state, examples, steps=30, healed=lambda _: None)


def logprob(model: Any, row: Row) -> tuple[float, int]:
    """Of one text by itself, from all its logits: slow and obvious."""
    with torch.no_grad():
        logits_TV = model(input_ids=torch.tensor(row.ids[None].astype("int64"))).logits[0]
    labels_T = torch.tensor(row.labels[1:].astype("int64"))
    losses = functional.cross_entropy(
        logits_TV[:-1].double(), labels_T, ignore_index=IGNORED_LABEL, reduction="none"
    )
    return -losses.sum().item(), int((labels_T != IGNORED_LABEL).sum())


def score(model: Any, row: Row, method: Method) -> float:
    policy, count = logprob(model, row)
    if method in (Method.ORPO, Method.SIMPO):
        return policy / count
    with model.disable_adapter():
        return policy - logprob(model, row)[0]


@pytest.mark.parametrize("method", PAIR_METHODS)
def test_the_margin_is_beta_times_how_much_more_likely_the_chosen_text_is(method: Method) -> None:
    pairs = some_pairs(6)
    plan = a_preference_plan(method, micro_batch_size=6, accumulation_steps=1)
    assert plan.objective.preference is not None
    state = begin(plan)
    for _ in range(3):
        step(state, pairs, plan)
    model = torch_model(state).module.eval()
    margins = [
        plan.objective.preference.beta
        * (score(model, pair.chosen, method) - score(model, pair.rejected, method))
        for pair in pairs
    ]
    model.train()
    taken = step(state, pairs, plan)
    assert taken.preference_margin == pytest.approx(sum(margins) / 6, abs=1e-5)
    assert taken.preference_accuracy == sum(margin > 0 for margin in margins) / 6


@pytest.mark.parametrize("method", [*PAIR_METHODS, Method.KTO])
def test_figures_do_not_depend_on_how_a_step_is_cut(method: Method) -> None:
    examples: tuple[Example, ...] = some_verdicts(8) if method is Method.KTO else some_pairs(8)
    found = []
    for size in (8, 3, 1):
        plan = a_preference_plan(method, micro_batch_size=8, accumulation_steps=1)
        state = begin(plan)
        state.recovery = replace(state.recovery, micro_batch_size=size)
        step(state, examples, plan)
        taken = step(state, examples, plan)
        found.append((taken.preference_margin, taken.preference_accuracy))
    assert found[1] == pytest.approx(found[0], abs=1e-5)
    assert found[2] == pytest.approx(found[0], abs=1e-5)


@pytest.mark.parametrize("method", [*PAIR_METHODS, Method.KTO])
def test_training_raises_margin_and_accuracy(method: Method) -> None:
    examples: tuple[Example, ...] = some_verdicts(8) if method is Method.KTO else some_pairs(8)
    plan = a_preference_plan(method, micro_batch_size=8, accumulation_steps=1)
    state = begin(plan)
    taken = [step(state, examples, plan) for _ in range(25)]
    assert taken[-1].preference_margin > taken[0].preference_margin
    assert taken[-1].preference_accuracy > 0.8


def test_a_verdict_is_right_on_its_own_side_of_the_reference_point() -> None:
    kto_examples = some_verdicts(4)
    tally = preference.Tally()
    ratios_B = torch.tensor([0.5, 0.1, -2.0, 3.0])
    signs_B = preference._signs(kto_examples, like=ratios_B)
    assert signs_B.tolist() == [-1.0, 1.0, 1.0, 1.0]
    tally.add(signs_B * 0.1 * (ratios_B - 0.2))
    assert tally.accuracy == 0.25
    assert tally.margin == pytest.approx(0.1 * (-0.3 - 0.1 - 2.2 + 2.8) / 4)


def test_sft_prefers_nothing() -> None:
    plan = a_plan()
    taken = step(begin(plan), some_rows(8), plan)
    assert taken.preference_margin is None
    assert taken.preference_accuracy is None
