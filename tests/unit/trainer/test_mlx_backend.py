"""The MLX backend against transformers, PEFT and torch, on MLX's build for this machine."""

import json
import resource
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Backend
from tests.support.mlx import a_model_folder, an_mlx_plan, give_room_for, needs_mlx
from tests.support.training import a_plan, a_state, attached, changed, some_rows
from trainer.domain.plan import TrainPlan, ValidationPlan
from trainer.pipe import Terms
from trainer.training import loop, mlx_presence, peft_library
from trainer.training.generation import TOP_K
from trainer.training.libraries import TorchLibrary, find_libraries
from trainer.training.model_cache import ModelCache
from trainer.training.run import train_run
from trainer.training.validation import Validation

IDS = np.arange(24).reshape(2, 12) * 5 % 64
ROWS = some_rows(30)
CURVE_STEPS = 8
NO_LIMIT = resource.RLIM_INFINITY


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return a_model_folder(tmp_path_factory.mktemp("base"))


def adapted(plan: TrainPlan) -> Any:
    from trainer.training.mlx_backend.base import load_base
    from trainer.training.mlx_backend.model import attach

    base = load_base(plan.base, plan.compute.precision)
    return attach(base, plan.base, plan.build.adapter, seed=plan.batches.seed)


def begun(plan: TrainPlan, model: Any = None) -> loop.TrainState:
    return loop.begin(model or adapted(plan), plan.batches, plan.optimisation, None)


def take(state: loop.TrainState, *, steps: int = 5) -> loop.StepFigures:
    return loop.take_step(state, ROWS, steps=steps, healed=lambda _: None)


def moved(plan: TrainPlan) -> Any:
    """An adapter that says something: its B is not zero."""
    one = adapted(plan)
    rng = torch.Generator().manual_seed(3)
    one.put(
        {name: torch.randn(each.shape, generator=rng) * 0.2 for name, each in one.weights().items()}
    )
    one.eval()
    return one


def logits(one: Any) -> np.ndarray:
    import mlx.core as mx

    return np.array(one.module(mx.array(IDS)))


def hf_model(folder: Path) -> Any:
    return AutoModelForCausalLM.from_pretrained(
        folder, dtype=torch.float32, trust_remote_code=False, local_files_only=True
    )


@needs_mlx
@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"adapter_use_rslora": True, "adapter_rank": 9},
        {"adapter_target_modules": ("q_proj", "v_proj"), "adapter_dropout": 0.3},
    ],
)
def test_peft_reads_the_adapter_and_says_what_mlx_says(
    folder: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """A17, 002-40: the adapter is one for PEFT, whichever backend made it."""
    one = moved(an_mlx_plan(folder, **changes))
    one.save(tmp_path)
    theirs = PeftModel.from_pretrained(hf_model(folder), str(tmp_path)).eval()
    with torch.no_grad():
        expected = theirs(torch.from_numpy(IDS)).logits.numpy()
        base = theirs.get_base_model()
        with theirs.disable_adapter():
            without = base(torch.from_numpy(IDS)).logits.numpy()
    np.testing.assert_allclose(logits(one), expected, atol=1e-3)
    assert np.abs(expected - without).max() > 0.5


@needs_mlx
def test_the_curve_is_that_of_torch(folder: Path) -> None:
    """A17: same first weights, rows, order, loss, clipping, schedule and AdamW."""
    plan = an_mlx_plan(folder, max_steps=CURVE_STEPS, weight_decay=0.1, max_grad_norm=0.5)
    ours = a_state(attached(hf_model(folder), plan), plan)
    first = {name.replace(".default", ""): tensor for name, tensor in ours.model.weights().items()}
    theirs = begun(plan)
    theirs.model.put(first)
    curve = [
        (take(ours, steps=CURVE_STEPS), take(theirs, steps=CURVE_STEPS)) for _ in range(CURVE_STEPS)
    ]
    for mine, other in curve:
        assert other.loss == pytest.approx(mine.loss, abs=2e-4)
        assert other.grad_norm == pytest.approx(mine.grad_norm, rel=2e-3)
        assert other.learning_rate == mine.learning_rate
        assert other.trained_token_count == mine.trained_token_count
    assert curve[-1][1].loss < curve[0][1].loss - 0.2
    assert ours.trained_token_count == theirs.trained_token_count


@needs_mlx
def test_a_resumed_run_is_the_same_run(folder: Path) -> None:
    """Weights, moments and dropout's random numbers continue bit for bit."""
    plan = an_mlx_plan(folder, max_steps=6, adapter_dropout=0.2)

    def taken(state: loop.TrainState, count: int) -> list[float]:
        return [take(state, steps=6).loss for _ in range(count)]

    whole = begun(plan)
    losses = taken(whole, 6)
    cut = begun(plan)
    assert taken(cut, 3) == losses[:3]
    again = begun(plan)
    loop.restore(again, loop.capture(cut))
    again.step = cut.step
    assert taken(again, 3) == losses[3:]
    for name, tensor in whole.model.weights().items():
        assert torch.equal(tensor, again.model.weights()[name]), name


@needs_mlx
def test_a_checkpoint_of_another_adapter_is_refused(folder: Path) -> None:
    other = begun(an_mlx_plan(folder, adapter_rank=2))
    with pytest.raises(Fault) as caught:
        loop.restore(begun(an_mlx_plan(folder)), loop.capture(other))
    assert caught.value.code is FaultCode.STATE_CHECKPOINT_INVALID


@needs_mlx
def test_a_loss_that_is_no_number_ends_the_run_and_moves_nothing(folder: Path) -> None:
    state = begun(an_mlx_plan(folder))
    spoiled = state.model.weights()
    next(iter(spoiled.values()))[0, 0] = float("nan")
    state.model.put(spoiled)
    with pytest.raises(Fault) as caught:
        take(state)
    assert caught.value.code is FaultCode.RUNTIME_LOSS_NOT_FINITE
    assert state.step == 0
    for name, tensor in state.model.weights().items():
        torch.testing.assert_close(tensor, spoiled[name], equal_nan=True, rtol=0, atol=0)


@needs_mlx
def test_without_its_adapter_the_model_is_the_base_and_it_comes_back(folder: Path) -> None:
    one = moved(an_mlx_plan(folder))
    said = logits(one)
    with torch.no_grad():
        base = hf_model(folder)(torch.from_numpy(IDS)).logits.numpy()

    def interrupted() -> None:
        with one.as_base():
            np.testing.assert_allclose(logits(one), base, atol=1e-3)
            raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        interrupted()
    np.testing.assert_array_equal(logits(one), said)


@needs_mlx
def test_out_of_memory_takes_the_same_step_in_smaller_parts(folder: Path) -> None:
    """002-02, 002-03: the micro-batch is halved, and the loss is what it was."""
    plan = an_mlx_plan(folder, micro_batch_size=8, accumulation_steps=1)
    narrow = adapted(plan)
    give_room_for(2, narrow)
    roomy, tight = begun(plan), begun(plan, narrow)
    sizes: list[int] = []
    one, other = (
        loop.take_step(
            state, ROWS, steps=5, healed=lambda recovery: sizes.append(recovery.micro_batch_size)
        )
        for state in (roomy, tight)
    )
    assert sizes == [4, 2]
    assert other.loss == pytest.approx(one.loss, abs=1e-6)
    tight.batches = changed(plan, oom_recovery=False).batches
    tight.recovery = replace(tight.recovery, micro_batch_size=8)
    with pytest.raises(Fault) as caught:
        take(tight)
    assert caught.value.code is FaultCode.RUNTIME_GPU_OOM


@needs_mlx
def test_gradient_checkpointing_changes_no_gradient_and_leaves_nothing_behind(folder: Path) -> None:
    plan = an_mlx_plan(folder, gradient_checkpointing=True)
    one, other = begun(plan), begun(plan)
    model: Any = other.model
    kind = type(model.module.layers[0])
    before = kind.__call__
    plain = take(one)
    with model.training_setup(plan.compute, plan.build):
        assert kind.__call__ is not before
        spared = take(other)
    assert kind.__call__ is before
    assert spared.loss == pytest.approx(plain.loss, abs=1e-6)
    assert spared.grad_norm == pytest.approx(plain.grad_norm, rel=1e-4)


@needs_mlx
def test_the_likeliest_tokens_are_those_that_transformers_expects(folder: Path) -> None:
    one = adapted(an_mlx_plan(folder))
    logprobs_TK, ids_TK = one.top_logprobs(IDS[0].tolist(), count=TOP_K)
    with torch.no_grad():
        logits_TV = hf_model(folder)(torch.from_numpy(IDS[:1])).logits[0]
    expected = logits_TV.log_softmax(-1).gather(-1, ids_TK.long())
    torch.testing.assert_close(logprobs_TK, expected, atol=1e-3, rtol=0)
    assert bool((logprobs_TK[:, :-1] >= logprobs_TK[:, 1:]).all())


@needs_mlx
def test_code_beside_a_model_is_not_run(folder: Path, tmp_path: Path) -> None:
    """Attack list 3: mlx-lm would import the file that config.json names."""
    from trainer.training.mlx_backend.base import load_base

    trap = a_model_folder(tmp_path / "base")
    canary = tmp_path / "canary"
    (trap / "evil.py").write_text(f"open({str(canary)!r}, 'w')\n", "utf-8")
    config = json.loads((trap / "config.json").read_text("utf-8"))
    (trap / "config.json").write_text(json.dumps({**config, "model_file": "evil.py"}), "utf-8")
    plan = an_mlx_plan(trap)
    with pytest.raises(Fault) as caught:
        load_base(plan.base, plan.compute.precision)
    assert caught.value.code is FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED
    assert str(tmp_path) not in caught.value.message
    assert not canary.exists()


@needs_mlx
def test_cut_weights_are_told_without_a_path_of_the_node(tmp_path: Path) -> None:
    """004-10, 000-35"""
    from trainer.training.mlx_backend.base import load_base

    plan = an_mlx_plan(a_model_folder(tmp_path / "base"))
    weights = tmp_path / "base" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(Fault) as caught:
        load_base(plan.base, plan.compute.precision)
    assert caught.value.code is FaultCode.MODEL_WEIGHTS_INVALID
    assert str(tmp_path) not in caught.value.message


@needs_mlx
def test_importing_mlx_takes_no_open_files_away(monkeypatch: pytest.MonkeyPatch) -> None:
    """mlx-lm lowers the limit of the process while it is imported."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for name in [name for name in sys.modules if name.split(".")[0] == "mlx_lm"]:
        monkeypatch.delitem(sys.modules, name)
    mlx_presence.import_mlx()
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    # Who has no privileges cannot raise the upper bound again.
    assert soft == mlx_presence.smaller_limit(before[0], hard)


@pytest.mark.parametrize(
    ("one", "other", "smaller"),
    [
        (1024, 4096, 1024),
        (20000, 4096, 4096),
        (NO_LIMIT, 4096, 4096),
        (NO_LIMIT, NO_LIMIT, NO_LIMIT),
    ],
)
def test_no_limit_is_larger_than_any(one: int, other: int, smaller: int) -> None:
    assert mlx_presence.smaller_limit(one, other) == smaller


@needs_mlx
def test_validation_keeps_the_best_weights_and_ends_early(folder: Path) -> None:
    """The best validation's adapter is what the run delivers."""
    state = begun(an_mlx_plan(folder))
    wish = ValidationPlan(
        holdout_ratio=0.1,
        dataset=None,
        every_steps=1,
        early_stop_patience=2,
        early_stop_min_delta=0.0,
    )
    validation = Validation(plan=wish, rows=ROWS[:3])

    def validated() -> float:
        state.step += 1
        validation.after_step(state, steps=9, warn=lambda code, text: None)
        assert validation.latest_loss is not None
        return validation.latest_loss

    # The random base is worse than no opinion, which an adapter as large as this one has.
    first = state.model.weights()
    kept = {name: torch.full_like(tensor, 3.0) for name, tensor in first.items()}
    state.model.put(kept)
    best = validated()
    state.model.put(first)
    stops = [(validated() > best, validation.wants_stop) for _ in range(2)]
    assert stops == [(True, False), (True, True)]
    assert validation.promote_best(state)
    for name, tensor in state.model.weights().items():
        assert torch.equal(tensor, kept[name])
    model: Any = state.model
    assert model.module.training


@pytest.fixture
def without_mlx(monkeypatch: pytest.MonkeyPatch) -> None:
    """A host on which mlx-lm is not installed."""
    monkeypatch.setitem(sys.modules, "mlx_lm", None)


@pytest.mark.usefixtures("without_mlx")
@pytest.mark.parametrize("backend", [Backend.MLX, Backend.AUTO])
def test_without_mlx_lm_the_training_step_says_so(backend: Backend) -> None:
    """002-36: on an Apple host the backend resolves to MLX, but `mlx_lm` is missing."""

    class Agent:
        """An agent that hears nothing of interest."""

        def send(self, message: Any) -> None:
            assert message.stage == "initialization"

    agent: Any = Agent()
    assert not mlx_presence.is_available()
    apple = find_libraries(
        Terms(tier="apple"),
        has_cuda=False,
        is_apple=True,
        import_unsloth=lambda: cast(TorchLibrary, None),
        import_peft=lambda: peft_library,
        restart=lambda _: None,
    )
    with pytest.raises(Fault) as caught:
        train_run(a_plan(backend=backend), agent, apple, ModelCache())
    assert caught.value.code is FaultCode.DEP_MLX_UNAVAILABLE
