"""Proof gates: distances between distributions, and what they decide."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporter.domain import gates
from exporter.domain.gates import Behaviour, Closeness, Distributions, Figures
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


SOUND = figures(adapter_kl=0.001, base_kl=1.0)


def verdict(
    file: Figures, *, merge: Figures = SOUND, noise: float = 0.001, mix: Quantization = Q4
) -> FaultCode | None:
    """The code of the refusal, None for an export that may go out."""
    try:
        gates.judge(Behaviour(file=file, merge=merge, base_kl_of_base=noise), mix)
    except Fault as fault:
        return fault.code
    return None


@pytest.mark.parametrize("mix", list(Quantization))
def test_every_bound_binds(mix: Quantization) -> None:
    """However far the base is: nearer to the adapter than to the base is not near enough."""
    bound = gates.KL_BOUNDS[mix]
    assert verdict(figures(adapter_kl=bound, base_kl=9.0), mix=mix) is None
    beyond = figures(adapter_kl=1.01 * bound + 0.002, base_kl=9.0)
    assert verdict(beyond, mix=mix) is FaultCode.EXPORT_QUANTIZATION_BROKEN


def test_an_adapter_that_hardly_differs_from_its_base_raises_no_false_alarm() -> None:
    """Behaviour cannot tell them apart, so that it must not be held against the export."""
    alike = figures(adapter_kl=0.004, base_kl=0.002, separation=0.001)
    assert verdict(alike, merge=alike) is None


def test_rounding_that_blurs_the_difference_raises_no_false_alarm() -> None:
    """A coarse mix may come out nearer to the base by chance when the two are close."""
    blurred = figures(adapter_kl=0.031, base_kl=0.03, separation=0.025)
    assert verdict(blurred, mix=Quantization.Q2_K) is None


def test_a_merge_that_went_wrong_is_blamed_before_its_quantisation() -> None:
    wrong = figures(adapter_kl=0.8, base_kl=2.0)
    broken = figures(adapter_kl=1.4, base_kl=2.0)
    assert verdict(broken, merge=wrong) is FaultCode.EXPORT_MERGE_MISMATCH
    # Also where the mix would have room for it.
    assert verdict(wrong, merge=wrong, mix=Quantization.Q2_K) is FaultCode.EXPORT_MERGE_MISMATCH


def test_a_merge_that_is_the_base_is_named_so() -> None:
    same = figures(adapter_kl=1.0, base_kl=0.01)
    assert verdict(same, merge=same) is FaultCode.EXPORT_NOOP_MERGE


def test_a_mix_that_wipes_the_adapter_out_is_refused() -> None:
    wiped = figures(adapter_kl=0.3, base_kl=0.2, separation=0.9)
    assert verdict(wiped) is FaultCode.EXPORT_QUANTIZATION_BROKEN


def test_another_base_is_found_in_every_mix() -> None:
    far = figures(adapter_kl=3.0, base_kl=3.1)
    for mix in Quantization:
        assert verdict(far, merge=far, noise=0.011, mix=mix) is FaultCode.EXPORT_WRONG_BASE
        # Whatever the file's own figures say.
        assert verdict(SOUND, noise=2.0, mix=mix) is FaultCode.EXPORT_WRONG_BASE


def test_the_noise_of_the_reference_is_not_held_against_the_merge() -> None:
    """Training in bfloat16 shows in the base's reference as in the adapter's."""
    noisy = figures(adapter_kl=0.02, base_kl=1.0)
    assert verdict(noisy, merge=noisy, noise=0.009) is None
    assert verdict(noisy, merge=noisy, noise=0.001) is FaultCode.EXPORT_MERGE_MISMATCH


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_figures_that_are_no_numbers_are_refused(bad: float) -> None:
    assert verdict(SOUND, noise=bad) is FaultCode.EXPORT_WRONG_BASE
    broken = figures(adapter_kl=bad, base_kl=bad)
    assert verdict(broken, merge=broken) is FaultCode.EXPORT_MERGE_MISMATCH
    assert verdict(broken) is FaultCode.EXPORT_QUANTIZATION_BROKEN


def test_rows_that_are_stored_otherwise_are_refused() -> None:
    rows = np.arange(12, dtype=np.uint8).reshape(3, 4)
    gates.require_equal_rows("t", TensorType.Q4_K, wanted=rows, stored=rows.copy())
    with pytest.raises(Fault) as caught:
        gates.require_equal_rows("t", TensorType.Q4_K, wanted=rows, stored=rows[::-1])
    assert caught.value.code is FaultCode.EXPORT_QUANTIZATION_BROKEN
    assert caught.value.metadata["rows_different"] == "2"


def test_the_error_of_rounding_is_that_over_all_rows() -> None:
    """Rows of nearly nothing, as unused words have them, weigh nearly nothing."""
    error = gates.RowError()
    assert error.relative == 0.0
    ones = np.ones((1, 4), np.float32)
    error.add(wanted=ones, stored=ones * np.float32(0.9))
    error.add(wanted=ones * np.float32(1e-9), stored=ones * 0)
    assert error.relative == pytest.approx(0.1, rel=1e-6)


@given(rows=st.integers(1, 10_000), samples=st.integers(2, 20))
def test_first_and_last_rows_are_always_looked_at(rows: int, samples: int) -> None:
    found = gates.sampled_rows(rows, sample_count=samples)
    assert found[0] == 0
    assert found[-1] == rows - 1
    assert len(found) <= samples
