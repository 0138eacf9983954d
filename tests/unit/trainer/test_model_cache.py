"""What stays between two runs on one base: the same bits as in a fresh process, and no leak."""

import gc
import shutil
import weakref
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel

from deploy.models.anvil.grammar import HOME
from lexicon.faults import Fault, FaultCode
from tests.support.training import (
    FP32,
    a_plan,
    a_state,
    a_tiny_model,
    attached,
    changed,
    some_data,
    some_rows,
)
from trainer.domain.plan import TrainPlan
from trainer.training import loop, peft_library
from trainer.training.compute_precision import ComputePrecision
from trainer.training.dataset import DatasetCache
from trainer.training.libraries import TorchLibrary
from trainer.training.model_cache import (
    BATCH_SHAPES_MAX,
    ModelCache,
    conditions_of,
    is_renewable,
    renew,
)
from trainer.training.probe import BatchShape

ROWS = some_rows(12)
HABIT = HOME / "habit.jsonl"


def trained(model: Any, plan: TrainPlan) -> dict[str, torch.Tensor]:
    """Weights and moments after three steps."""
    state = a_state(model.train(), plan)
    for _ in range(3):
        loop.take_step(state, ROWS, steps=3, healed=lambda _: None)
    return loop.capture(state)


def adapted_for(
    model_cache: ModelCache,
    plan: TrainPlan,
    library: TorchLibrary,
    compute_precision: ComputePrecision,
) -> PeftModel:
    return model_cache.adapted_for(
        plan.base, plan.build, library, compute_precision, seed=plan.batches.seed
    )


def same(left: dict[str, torch.Tensor], right: dict[str, torch.Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[k], right[k]) for k in left)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter_use_rslora": True, "adapter_dropout": 0.2},
        {"adapter_target_modules": ("q_proj", "down_proj"), "adapter_rank": 3},
        {"gradient_checkpointing": True},
    ],
)
def test_a_renewed_adapter_is_bit_for_bit_a_new_one(changes: dict[str, Any]) -> None:
    """After a whole run with another seed; what it trains to is the same as well."""
    plan = a_plan(seed=5, **changes)
    fresh = attached(a_tiny_model(), plan)
    used = attached(a_tiny_model(), changed(plan, seed=1))
    trained(used, plan)
    renew(used, seed=plan.batches.seed)
    assert same(used.state_dict(), fresh.state_dict())
    assert torch.equal(torch.get_rng_state(), _rng_after_attach(plan))
    assert same(trained(used, plan), trained(fresh, plan))


def _rng_after_attach(plan: TrainPlan) -> torch.Tensor:
    attached(a_tiny_model(), plan)
    return torch.get_rng_state()


def test_dora_is_built_anew_because_its_magnitudes_depend_on_the_base() -> None:
    assert not is_renewable(attached(a_tiny_model(), a_plan(adapter_use_dora=True)), peft_library)
    assert is_renewable(attached(a_tiny_model(), a_plan()), peft_library)


def test_the_same_base_and_adapter_are_used_again_and_another_adapter_is_put_on() -> None:
    model_cache, plan = ModelCache(), a_plan()
    first = adapted_for(model_cache, plan, peft_library, FP32)
    assert adapted_for(model_cache, changed(plan, seed=9), peft_library, FP32) is first
    other = a_plan(adapter_rank=8)
    second = adapted_for(model_cache, other, peft_library, FP32)
    assert second is not first
    assert model_cache.base is not None
    assert second.get_base_model() is model_cache.base.model
    assert same(
        second.state_dict(),
        attached(peft_library.load_base(plan.base, FP32), other).state_dict(),
    )


def test_the_old_base_is_gone_before_the_new_one_comes(tmp_path: Path) -> None:
    """There may not be room for both."""
    model_cache, plan = ModelCache(), a_plan()
    old = weakref.ref(adapted_for(model_cache, plan, peft_library, FP32).get_base_model())
    shutil.copytree(HOME / "weights", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(Fault) as caught:
        adapted_for(
            model_cache,
            changed(plan, base=replace(plan.base, digest="other", folder=str(tmp_path / "base"))),
            peft_library,
            FP32,
        )
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    gc.collect()
    assert old() is None
    assert model_cache.base is None


def test_an_adapter_that_cannot_be_put_on_does_not_pass_for_the_one_before() -> None:
    model_cache, plan = ModelCache(), a_plan()
    adapted_for(model_cache, plan, peft_library, FP32)
    with pytest.raises(Fault):
        adapted_for(
            model_cache, a_plan(adapter_target_modules=("no_such_proj",)), peft_library, FP32
        )
    assert model_cache.adapted is None
    fresh = attached(peft_library.load_base(plan.base, FP32), plan)
    assert same(adapted_for(model_cache, plan, peft_library, FP32).state_dict(), fresh.state_dict())


def test_gradient_checkpointing_of_one_run_is_not_the_next_runs() -> None:
    """Neither the recomputation nor the hook that makes embeddings require gradients."""
    model_cache = ModelCache()
    adapted_for(model_cache, a_plan(gradient_checkpointing=True), peft_library, FP32)
    model: Any = adapted_for(model_cache, a_plan(), peft_library, FP32).get_base_model()
    assert not model.is_gradient_checkpointing
    assert not model.get_input_embeddings()._forward_hooks


def with_digest(plan: TrainPlan, digest: str) -> TrainPlan:
    return changed(plan, datasets=(replace(plan.data.datasets[0], digest=digest),))


def test_encoded_rows_are_found_again_by_the_hash_of_the_file_and_tell_the_same() -> None:
    """001-25: the truncation is counted in the second run as in the first."""
    dataset_cache, said = DatasetCache(), []
    plan = with_digest(a_plan(max_sequence_tokens=24), "a")
    loaded = [
        some_data(
            plan, warn=lambda code, text: said.append((code, text)), dataset_cache=dataset_cache
        )
        for _ in range(2)
    ]
    assert loaded[0].rows[0] is loaded[1].rows[0]
    assert len(said) == 2
    assert said[0] == said[1]
    assert said[0][0] is FaultCode.DATASET_ROW_INVALID


@pytest.mark.parametrize(
    "other",
    [
        with_digest(a_plan(), "b"),
        with_digest(a_plan(max_sequence_tokens=100), "a"),
        changed(with_digest(a_plan(), "a"), base=replace(a_plan().base, digest="other")),
        with_digest(a_plan(), ""),
    ],
    ids=["file", "length", "base", "unknown"],
)
def test_what_could_be_encoded_otherwise_is_encoded_anew(other: TrainPlan) -> None:
    dataset_cache = DatasetCache()
    rows = [
        some_data(plan, warn=lambda *_: None, dataset_cache=dataset_cache).rows
        for plan in (with_digest(a_plan(), "a"), other)
    ]
    assert rows[0][0] is not rows[1][0]


def test_kept_rows_cannot_be_written_to() -> None:
    row = some_data(a_plan(), warn=lambda *_: None).rows[0].sequences[0]
    with pytest.raises(ValueError, match="read-only"):
        row.ids[0] = 1


def test_kept_rows_have_a_bound() -> None:
    dataset_cache = DatasetCache(bytes_max=1)
    rows = [
        some_data(
            with_digest(a_plan(), "a"), warn=lambda *_: None, dataset_cache=dataset_cache
        ).rows
        for _ in range(2)
    ]
    assert rows[0][0] is not rows[1][0]


def test_the_width_of_a_warm_base_is_known_without_its_files(tmp_path: Path) -> None:
    """A second run waits for no file of the base."""
    shutil.copytree(HOME / "weights", tmp_path / "base")
    base = replace(a_plan().base, folder=str(tmp_path / "base"))
    model_cache, plan = ModelCache(), a_plan(base=base)
    width = model_cache.width_of(base)
    adapted_for(model_cache, plan, peft_library, FP32)
    shutil.rmtree(tmp_path / "base")
    assert model_cache.width_of(base) == width == peft_library.width_of(a_plan().base)
    with pytest.raises(Fault) as caught:
        model_cache.width_of(replace(base, digest="another"))
    assert caught.value.code is FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED


def test_renewing_takes_one_thread_and_gives_the_others_back() -> None:
    """Threads that wait for each other at hundreds of small tensors are slower than one."""
    threads = list[int]()

    class Watched(torch.overrides.TorchFunctionMode):
        def __torch_function__(
            self, function: Any, types: Any, args: Any = (), kwargs: Any = None
        ) -> Any:
            if function.__name__ in {"uniform_", "copy_", "zero_"}:
                threads.append(torch.get_num_threads())
            return function(*args, **(kwargs or {}))

    adapted = attached(a_tiny_model(), a_plan())
    torch.set_num_threads(2)
    try:
        with Watched():
            renew(adapted, seed=1)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
    assert set(threads) == {1}


def test_runs_on_two_datasets_in_turn_try_each_ones_longest_batch_once() -> None:
    """One has more tokens, the other a longer row: neither proves the other."""
    plan = a_plan()
    model_cache, conditions = ModelCache(), conditions_of(plan.build, plan.objective, plan.batches)
    many = BatchShape(token_count=300, longest_count=40, label_count=100)
    long = BatchShape(token_count=250, longest_count=80, label_count=90)
    model_cache.prove(conditions, many)
    model_cache.prove(conditions, long)
    assert model_cache.proven[conditions] == (long, many)
    both = BatchShape(token_count=300, longest_count=80, label_count=100)
    model_cache.prove(conditions, both)
    assert model_cache.proven[conditions] == (both,)
    for count in range(BATCH_SHAPES_MAX + 5):
        other = BatchShape(token_count=1000 + count, longest_count=70 - count, label_count=1)
        model_cache.prove(conditions, other)
    assert len(model_cache.proven[conditions]) == BATCH_SHAPES_MAX
