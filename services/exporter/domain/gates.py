"""How close a finished GGUF is to what was trained, and whether that is close enough.

Distributions are known by their k most likely tokens; the rest of the mass is one further outcome,
which makes every divergence a lower bound of the true one. Logarithms are natural.
"""

from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from exporter.domain.quantization import Quantization, TensorType
from lexicon.faults import Fault, FaultCode

# Mean divergence from the adapter, in nats per token, up to which a mix is sound without a further
# look. Sound exports of a 3 M-parameter model, which rounding hurts most, stayed below a tenth with
# adapters of the usual size, and below with ones that left little of the base.
KL_BOUNDS: Final = {
    Quantization.F16: 0.02,
    Quantization.BF16: 0.02,
    Quantization.Q8_0: 0.05,
    Quantization.Q6_K: 0.1,
    Quantization.Q5_K_M: 0.2,
    Quantization.Q4_K_M: 0.4,
    Quantization.Q4_0: 0.5,
    Quantization.Q3_K_M: 0.8,
    Quantization.Q2_K: 2.0,
}

# A base whose own reference is reproduced this closely is the one that was trained on.
SAME_BASE_KL: Final = 0.05
# Adapters that differ less from their base than this cannot be told apart by behaviour.
DISTINCT_KL: Final = 0.02
BLUR_TIMES: Final = 2.0
# A sound merge may cost this many nats per token at the most, whatever the mix.
MAX_LOSS_DELTA: Final = 2.5


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributions:
    """Next-token distributions by their most likely tokens, (rows, k), sorted descending."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]


@dataclass(frozen=True, slots=True, kw_only=True)
class Closeness:
    """How a model compares with one reference over the scored tokens."""

    mean_kl: float
    top1_agreement: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """How the GGUF behaves on held-out conversations."""

    adapter: Closeness
    base: Closeness
    separation_kl: float
    loss: float
    adapter_loss: float
    token_count: int

    @property
    def loss_delta(self) -> float:
        """Held-out loss of the GGUF minus that of the adapter, nats per token."""
        return self.loss - self.adapter_loss

    @property
    def can_tell_apart(self) -> bool:
        """Whether adapter and base differ by more than the rounding blurs.

        The smaller of the two divergences is what rounding costs, whichever model this is.
        """
        blur = min(self.adapter.mean_kl, self.base.mean_kl)
        return self.separation_kl >= max(DISTINCT_KL, BLUR_TIMES * blur)


def row_divergences(
    reference: Distributions, model_logprobs_at_ids: NDArray[np.float32]
) -> NDArray[np.float64]:
    """KL(reference || model) of each row, in nats.

    Args:
        model_logprobs_at_ids: the model's log-probabilities of the reference's tokens, (rows, k).
    """
    p_log = reference.logprobs.astype(np.float64)
    q_log = model_logprobs_at_ids.astype(np.float64)
    p = np.exp(p_log)
    p_rest = np.clip(1.0 - p.sum(axis=1), 0.0, 1.0)
    q_rest = np.clip(1.0 - np.exp(q_log).sum(axis=1), 1e-12, 1.0)
    rest = np.where(p_rest > 0, p_rest * (np.log(np.maximum(p_rest, 1e-12)) - np.log(q_rest)), 0.0)
    divergences: NDArray[np.float64] = (p * (p_log - q_log)).sum(axis=1) + rest
    return np.maximum(divergences, 0.0)


def separation(adapter: Distributions, base: Distributions) -> float:
    """Mean KL(adapter || base) as far as the two lists tell; a lower bound.

    A token that is not among the base's most likely is taken to be as likely as the last of them.
    """
    looked_up = np.empty_like(adapter.logprobs)
    for row in range(len(looked_up)):
        order = np.argsort(base.ids[row])
        known = base.ids[row][order]
        place = np.minimum(np.searchsorted(known, adapter.ids[row]), len(known) - 1)
        hit = known[place] == adapter.ids[row]
        looked_up[row] = np.where(hit, base.logprobs[row][order][place], base.logprobs[row].min())
    return float(row_divergences(adapter, looked_up).mean())


def is_plainly_sound(figures: Figures, mix: Quantization) -> bool:
    """Near the adapter, and nearer to it than to the base where the two differ."""
    near = figures.adapter.mean_kl <= KL_BOUNDS[mix]
    nearer = figures.adapter.mean_kl < figures.base.mean_kl or not figures.can_tell_apart
    return near and nearer


def judge(figures: Figures, mix: Quantization, *, base_kl_of_base: float) -> None:
    """Decides over an export that is not plainly sound; returns when it may still go out.

    Args:
        base_kl_of_base: mean divergence of the unquantised base from the base's own reference.
    Raises:
        Fault: EXPORT_WRONG_BASE, EXPORT_NOOP_MERGE, EXPORT_QUANTIZATION_BROKEN.
    """
    numbers: dict[str, Any] = {
        "adapter_mean_kl": round(figures.adapter.mean_kl, 6),
        "base_mean_kl": round(figures.base.mean_kl, 6),
        "loss_delta": round(figures.loss_delta, 6),
        "token_count": figures.token_count,
        "quantization": str(mix),
    }
    if base_kl_of_base > SAME_BASE_KL:
        raise Fault(
            FaultCode.EXPORT_WRONG_BASE,
            f"The base at hand differs from the one trained on by {base_kl_of_base:.3f} nats "
            "per token.",
            **numbers,
        )
    if figures.can_tell_apart and figures.base.mean_kl <= figures.adapter.mean_kl:
        raise Fault(
            FaultCode.EXPORT_NOOP_MERGE,
            f"The export is closer to the base ({figures.base.mean_kl:.3f} nats per token) than "
            f"to the adapter ({figures.adapter.mean_kl:.3f}).",
            **numbers,
        )
    if figures.loss_delta > MAX_LOSS_DELTA:
        raise Fault(
            FaultCode.EXPORT_QUANTIZATION_BROKEN,
            f"{mix} costs {figures.loss_delta:.2f} nats per token on held-out text.",
            **numbers,
        )


def require_equal_rows(
    name: str, tensor_type: TensorType, *, wanted: NDArray[np.uint8], stored: NDArray[np.uint8]
) -> None:
    """Compares rows of the finished file with what llama.cpp's own encoder makes of the merge.

    Raises:
        Fault: EXPORT_QUANTIZATION_BROKEN.
    """
    if np.array_equal(wanted, stored):
        return
    raise Fault(
        FaultCode.EXPORT_QUANTIZATION_BROKEN,
        f"{name} is not stored as llama.cpp stores it in {tensor_type.name}.",
        tensor=name,
        tensor_type=tensor_type.name,
        rows_different=int((wanted != stored).any(axis=1).sum()),
    )


@dataclass(slots=True)
class RowError:
    """What rounding costs: the error of stored rows relative to the rows, over all added."""

    squared_error: float = 0.0
    squared_size: float = 0.0

    def add(self, *, wanted: NDArray[np.float32], stored: NDArray[np.float32]) -> None:
        """Counts rows in."""
        self.squared_error += float(np.square(stored.astype(np.float64) - wanted).sum())
        self.squared_size += float(np.square(wanted, dtype=np.float64).sum())

    @property
    def relative(self) -> float:
        """Root of the mean squared error over that of the numbers; 0 for zeros."""
        if self.squared_size == 0.0:
            return 0.0
        return float(np.sqrt(self.squared_error / self.squared_size))


def sampled_rows(row_count: int, *, sample_count: int) -> list[int]:
    """Rows to look at: evenly spread, with the first and the last, where cuts and shifts show."""
    places = np.linspace(0, row_count - 1, min(sample_count, row_count))
    return sorted({int(place) for place in places})
