"""Proof gates: distances between distributions, and what they decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.domain import gates
from exporter.domain.gates import Closeness, Distributions, Figures
from exporter.domain.quantization import Quantization, TensorType
from lexicon.faults import Fault, FaultCode

Q4 = Quantization.Q4_K_M


def figures(
    *, adapter_kl: float, base_kl: float, separation: float = 1.0, loss_delta: float = 0.0
) -> Figures:
    return Figures(
        adapter=Closeness(mean_kl=adapter_kl, top1_agreement=1.0),
        base=Closeness(mean_kl=base_kl, top1_agreement=0.5),
        separation_kl=separation,
        loss=1.0 + loss_delta,
        adapter_loss=1.0,
        token_count=100,
    )


def distributions(logits: np.ndarray, k: int) -> tuple[Distributions, np.ndarray]:
    logprobs = logits - np.log(np.exp(logits).sum(axis=1, keepdims=True))
    ids = np.argsort(-logprobs, axis=1)[:, :k].astype(np.int32)
    rows = np.arange(len(ids))[:, None]
    return Distributions(ids=ids, logprobs=logprobs[rows, ids].astype(np.float32)), logprobs


@given(seed=st.integers(0, 1000), k=st.integers(1, 20))
def test_a_divergence_is_at_most_the_true_one_and_zero_for_equals(seed: int, k: int) -> None:
    rng = np.random.default_rng(seed)
    first, logprobs = distributions(rng.normal(0, 2, (3, 20)), k)
    _, others = distributions(rng.normal(0, 2, (3, 20)), k)
    rows = np.arange(3)[:, None]
    found = gates.row_divergences(first, others[rows, first.ids].astype(np.float32))
    true = (np.exp(logprobs) * (logprobs - others)).sum(axis=1)
    assert np.all(found <= true + 1e-4)
    assert np.all(found >= 0)
    itself = gates.row_divergences(first, logprobs[rows, first.ids].astype(np.float32))
    assert np.allclose(itself, 0, atol=1e-5)


def test_separation_of_a_model_from_itself_is_zero() -> None:
    model, _ = distributions(np.random.default_rng(0).normal(0, 2, (5, 50)), 16)
    assert gates.separation(model, model) < 1e-6


def test_near_the_adapter_and_nearer_than_to_the_base_is_sound() -> None:
    assert gates.is_plainly_sound(figures(adapter_kl=0.01, base_kl=1.0), Q4)
    assert not gates.is_plainly_sound(figures(adapter_kl=0.02, base_kl=0.01), Q4)
    assert not gates.is_plainly_sound(figures(adapter_kl=0.9, base_kl=1.0), Q4)


def test_an_adapter_that_hardly_differs_from_its_base_raises_no_false_alarm() -> None:
    """Behaviour cannot tell them apart, so that it must not be held against the export."""
    assert gates.is_plainly_sound(figures(adapter_kl=0.02, base_kl=0.01, separation=0.001), Q4)


@pytest.mark.parametrize(
    ("found", "base_kl_of_base", "code"),
    [
        (figures(adapter_kl=3.0, base_kl=3.1), 2.0, FaultCode.EXPORT_WRONG_BASE),
        (figures(adapter_kl=1.0, base_kl=0.01), 0.001, FaultCode.EXPORT_NOOP_MERGE),
        (
            figures(adapter_kl=3.0, base_kl=4.0, loss_delta=3.0),
            0.001,
            FaultCode.EXPORT_QUANTIZATION_BROKEN,
        ),
    ],
)
def test_each_failure_has_its_own_code(
    found: Figures, base_kl_of_base: float, code: FaultCode
) -> None:
    with pytest.raises(Fault) as caught:
        gates.judge(found, Q4, base_kl_of_base=base_kl_of_base)
    assert caught.value.code is code


def test_a_coarse_mix_of_the_right_model_may_go_out() -> None:
    gates.judge(
        figures(adapter_kl=2.5, base_kl=3.0, loss_delta=1.0), Quantization.Q2_K, base_kl_of_base=0.0
    )


def test_rows_that_read_back_otherwise_are_refused() -> None:
    rows = np.random.default_rng(0).standard_normal((4, 256)).astype(np.float32)
    assert gates.require_sound_rows("t", TensorType.F32, wanted=rows, stored=rows) == 0.0
    for broken in (rows[::-1], np.full_like(rows, np.nan), rows * 2):
        with pytest.raises(Fault) as caught:
            gates.require_sound_rows("t", TensorType.Q4_K, wanted=rows, stored=broken)
        assert caught.value.code is FaultCode.EXPORT_QUANTIZATION_BROKEN
