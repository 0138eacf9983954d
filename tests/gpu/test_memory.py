"""Memory of a real card: the ladder under a real shortage, and peaks against the estimate."""

import gc
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from transformers import Qwen2Config, Qwen2ForCausalLM

from lexicon.faults import Fault, FaultCode
from modelspec.lora import LoraSpec
from modelspec.shape import ModelShape
from modelspec.vram import GPU_BASE_BYTES, TrainingLoad, estimate_vram
from tests.support.training import a_plan, a_state, attached, torch_model
from trainer.domain.plan import TrainPlan
from trainer.training import loop
from trainer.training.attention import SEGMENTED
from trainer.training.batches import Row
from trainer.training.compute_precision import ComputePrecision

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]

MIB = 1 << 20
BF16 = ComputePrecision(
    device=torch.device("cuda"), weights=torch.bfloat16, autocast=torch.bfloat16
)
TOKENS = 512
# A Qwen2 of 35 million parameters; the larger shape has 0.5 billion.
SMALL = {
    "vocab_size": 16_384, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 9,
    "num_attention_heads": 8, "num_key_value_heads": 2,
}  # fmt: skip
LARGE = {
    "vocab_size": 151_936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2,
}  # fmt: skip


@pytest.fixture(autouse=True)
def empty_card() -> Iterator[None]:
    """A card that holds nothing of the test before, and all of its memory afterwards."""
    gc.collect()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    yield
    torch.cuda.set_per_process_memory_fraction(1.0)


def begun(shape: dict[str, int], plan: TrainPlan) -> loop.TrainState:
    torch.manual_seed(0)
    settings: Any = {**shape, "max_position_embeddings": 4096, "tie_word_embeddings": True}
    model: Any = Qwen2ForCausalLM(Qwen2Config(**settings))
    model.set_attn_implementation(SEGMENTED)
    frozen = model.to(device="cuda", dtype=torch.bfloat16).requires_grad_(False)
    return a_state(attached(frozen, plan).train(), plan, compute_precision=BF16)


def take(state: loop.TrainState, plan: TrainPlan, rows: tuple[Row, ...], count: int) -> list[float]:
    return [
        loop.take_step(state, rows, steps=count, healed=lambda _: None).loss for _ in range(count)
    ]


def long_rows(count: int) -> tuple[Row, ...]:
    """Rows as long as the longest allowed, every token of them trained on."""
    rng = np.random.default_rng(0)
    ids = rng.integers(0, SMALL["vocab_size"], (count, TOKENS)).astype(np.int32)
    return tuple(Row(ids=row, labels=row) for row in ids)


def test_a_real_shortage_halves_the_micro_batch_and_keeps_the_curve() -> None:
    """002-02, 002-03, A8: memory is really gone, and the step is still the same step."""
    plan = a_plan(
        micro_batch_size=64, accumulation_steps=1, max_sequence_tokens=TOKENS, lr_peak=1e-3
    )
    rows = long_rows(64)
    roomy = begun(SMALL, plan)
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    clean = take(roomy, plan, rows, 3)
    peak = torch.cuda.max_memory_allocated() - before
    del roomy
    gc.collect()
    torch.cuda.empty_cache()
    tight = begun(SMALL, plan)
    total = torch.cuda.get_device_properties(0).total_memory
    # Room for a little over a third of what the whole batch took.
    allowed = torch.cuda.memory_reserved() + int(peak * 0.35)
    torch.cuda.set_per_process_memory_fraction(allowed / total)
    losses = take(tight, plan, rows, 3)
    assert tight.recovery.micro_batch_size < plan.batches.micro_batch_size
    assert tight.recovery.effective_batch_size == plan.batches.effective_batch_size
    assert losses == pytest.approx(clean, rel=0.01)
    assert torch_model(tight).module.training


def test_memory_that_does_not_suffice_for_one_example_ends_with_its_code() -> None:
    """002-04, A8"""
    plan = a_plan(micro_batch_size=4, accumulation_steps=1, max_sequence_tokens=TOKENS)
    rows = long_rows(4)
    state = begun(SMALL, plan)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + MIB) / total)
    with pytest.raises(Fault) as caught:
        take(state, plan, rows, 1)
    assert caught.value.code is FaultCode.RUNTIME_GPU_OOM


@pytest.mark.parametrize("shape", [SMALL, LARGE], ids=["35M", "500M"])
@pytest.mark.parametrize("micro_batch", [1, 8])
@pytest.mark.parametrize("checkpointing", [False, True], ids=["kept", "recomputed"])
def test_the_estimate_is_above_the_peak_and_not_far_above(
    shape: dict[str, int], micro_batch: int, checkpointing: bool
) -> None:
    """The validator's table: what it promises to fit does fit. The figures are printed."""
    plan = a_plan(
        micro_batch_size=micro_batch,
        accumulation_steps=1,
        max_sequence_tokens=TOKENS,
        gradient_checkpointing=checkpointing,
        adapter_rank=16,
    )
    state = begun(shape, plan)
    torch.cuda.reset_peak_memory_stats()
    take(state, plan, long_rows(micro_batch), 2)
    peak = torch.cuda.max_memory_allocated()
    config = {
        **shape,
        "architectures": ["Qwen2ForCausalLM"],
        "model_type": "qwen2",
        "max_position_embeddings": 4096,
        "tie_word_embeddings": True,
    }
    load = TrainingLoad(
        micro_batch_size=micro_batch,
        sequence_tokens=TOKENS,
        is_gpu=True,
        gradient_checkpointing=checkpointing,
    )
    estimate = estimate_vram(ModelShape.from_config(config), LoraSpec(rank=16), load)
    # The driver's context is no tensor: the allocator does not count it.
    promised = estimate.total_bytes - GPU_BASE_BYTES
    print(
        json.dumps({"peak_mib": peak // MIB, "promised_mib": promised // MIB, "plan": repr(shape)})
    )
    assert peak <= promised
    assert promised <= 4 * peak
