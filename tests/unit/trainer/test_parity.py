"""Fifty steps against a plain loop of transformers + PEFT, in fp32 and over an nf4 base.

The peer loads its own base and adapter, sees one example at a time with all its logits, and shares
nothing with ours but the order of the rows and the learning rates. DPO's peer is in
test_preference.py.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, LlamaConfig, LlamaForCausalLM

from tests.support.training import (
    FP32,
    TINY_VOCABULARY,
    a_plan,
    a_state,
    attached,
    changed,
    some_rows,
)
from trainer.domain.plan import TrainPlan
from trainer.domain.steps import learning_rate
from trainer.training import loop, peft_library
from trainer.training.batches import Row, step_indices
from trainer.training.model_cache import renew

STEPS = 50
ROWS = some_rows(7)
# Rows of 64 are what nf4 packs into one block.
WIDTH = 64
NF4 = BitsAndBytesConfig(
    load_in_4bit=True,
    bnb_4bit_quant_type="nf4",
    bnb_4bit_use_double_quant=True,
    bnb_4bit_compute_dtype=torch.float32,
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama of random weights, as its publisher would give it."""
    path = tmp_path_factory.mktemp("base")
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=TINY_VOCABULARY,
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


def our_curve(plan: TrainPlan, *, four_bit: bool) -> list[float]:
    model = peft_library.load_base(plan.base, replace(FP32, four_bit=four_bit))
    state = a_state(attached(model, plan).train(), plan)
    return [
        loop.take_step(state, ROWS, steps=STEPS, healed=lambda _: None).loss for _ in range(STEPS)
    ]


def plain_curve(plan: TrainPlan, *, four_bit: bool) -> list[float]:
    base = AutoModelForCausalLM.from_pretrained(
        plan.base.folder,
        dtype=torch.float32,
        quantization_config=NF4 if four_bit else None,
        device_map="cpu" if four_bit else None,
    )
    torch.manual_seed(plan.batches.seed)
    config = LoraConfig(
        r=plan.build.adapter.rank,
        lora_alpha=int(plan.build.adapter.alpha),
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model: Any = get_peft_model(base, config)
    model.train()
    weights = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=plan.optimisation.weight_decay)
    curve = []
    for step in range(STEPS):
        chosen = [ROWS[i] for i in step_indices(plan.batches, row_count=len(ROWS), step=step)]
        trained = sum(row.trained_count for row in chosen)
        losses = [mean_loss(model, row) * row.trained_count / trained for row in chosen]
        loss = torch.stack(losses).sum()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, plan.optimisation.max_grad_norm)
        optimizer.param_groups[0]["lr"] = learning_rate(
            step,
            steps=STEPS,
            lr_peak=plan.optimisation.lr_peak,
            warmup_ratio=plan.optimisation.warmup_ratio,
            schedule=plan.optimisation.schedule,
        )
        optimizer.step()
        optimizer.zero_grad()
        curve.append(loss.item())
    return curve


def mean_loss(model: Any, row: Row) -> torch.Tensor:
    """The loss that transformers itself computes from labels."""
    loss: torch.Tensor = model(
        input_ids=torch.tensor(row.ids[None].astype("int64")),
        labels=torch.tensor(row.labels[None].astype("int64")),
    ).loss
    return loss


@pytest.mark.parametrize("four_bit", [False, True])
def test_fifty_steps_are_those_of_a_plain_loop(folder: Path, four_bit: bool) -> None:
    """003-07: what a run computes is what the textbook computes, within 1e-5 at every step."""
    plan = a_plan(micro_batch_size=1, accumulation_steps=2, lr_peak=5e-3, weight_decay=0.01)
    plan = changed(plan, base=replace(plan.base, folder=str(folder)), packing=True)
    ours = our_curve(plan, four_bit=four_bit)
    assert ours == pytest.approx(plain_curve(plan, four_bit=four_bit), abs=1e-5)
    assert ours[-1] < 0.8 * ours[0]


def test_an_nf4_base_is_held_in_four_bits_and_its_adapter_is_not(folder: Path) -> None:
    """001-26: the base's linear layers are packed, only the adapter's fp32 weights train."""
    plan = a_plan()
    base = replace(plan.base, folder=str(folder))
    model = peft_library.load_base(base, replace(FP32, four_bit=True))
    layer = model.model.layers[0].mlp.down_proj
    assert layer.weight.dtype is torch.uint8
    assert layer.weight.numel() == 2 * WIDTH * WIDTH // 2
    assert layer.weight.quant_state.nested
    adapted = attached(model, plan)
    trained = {p.dtype for p in adapted.parameters() if p.requires_grad}
    assert trained == {torch.float32}
    drawn = {name: p.detach().clone() for name, p in adapted.named_parameters() if p.requires_grad}
    renew(adapted, seed=plan.batches.seed)
    fresh = {name: p for name, p in adapted.named_parameters() if p.requires_grad}
    assert all(torch.equal(drawn[name], fresh[name]) for name in drawn)
    again = peft_library.detach(adapted)
    assert not any(p.requires_grad for p in again.parameters())
    assert again.model.layers[0].mlp.down_proj.weight.dtype is torch.uint8


def test_a_validation_leaves_an_nf4_base_as_it_trains(folder: Path) -> None:
    """002-21: bitsandbytes would pack the weights for inference, and no gradient came through."""
    plan = a_plan(micro_batch_size=1, accumulation_steps=2, lr_peak=5e-3)
    plan = changed(plan, base=replace(plan.base, folder=str(folder)))
    curves = []
    for validates in (False, True):
        model = peft_library.load_base(plan.base, replace(FP32, four_bit=True))
        state = a_state(attached(model, plan).train(), plan)
        found: list[tuple[float, float]] = []
        for _ in range(3):
            if validates:
                loop.mean_loss(state, ROWS)
            taken = loop.take_step(state, ROWS, steps=3, healed=lambda _: None)
            found.append((taken.loss, taken.grad_norm))
        curves.append(found)
    assert curves[0] == curves[1]
