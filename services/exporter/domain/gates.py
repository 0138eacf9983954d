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

# Mean divergence from the adapter, in nats per token, beyond which a mix is refused. Sound exports
# of a 3 M-parameter model, which rounding hurts most, stayed below a tenth with adapters of the
# usual size, and below with ones that left little of the base.
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
# The same for the merge before any quantisation, of which sound ones stayed below 0.0006.
MERGE_BOUND: Final = 0.005

# A base whose own reference is reproduced this closely is the one that was trained on. float32
# gives 0.00002 and less, bfloat16 some thousandths; noise of a tenth of the weights' deviation
# gives 0.016.
SAME_BASE_KL: Final = 0.01
# How often the noise of the reference counts. The adapter's reference was made in the precision of
# the training, as was the base's, whose divergence from the base at hand is that noise alone.
NOISE_TIMES: Final = 2.0
# Adapters that differ less from their base than this cannot be distinguished by behaviour.
DISTINCT_KL: Final = 0.02
BLUR_TIMES: Final = 2.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Distributions:
    """Next-token distributions by their most likely tokens, (rows, k), sorted descending."""

    ids: NDArray[np.int32]
    logprobs: NDArray[np.float32]

    def first(self, row_count: int) -> "Distributions":
        """The first rows."""
        return Distributions(ids=self.ids[:row_count], logprobs=self.logprobs[:row_count])


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Behaviour:
    """What was measured of an export.

    `file` is the finished file; `merge` the same before quantisation, which is the file itself
    where nothing is quantised; `base_kl_of_base` is the mean divergence of the unquantised base
    from the base's own reference.
    """

    file: Figures
    merge: Figures
    base_kl_of_base: float


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
    """Mean KL(adapter || base) as far as the two lists go; a lower bound.

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


def judge(behaviour: Behaviour, mix: Quantization) -> None:
    """Refuses what does not behave as trained, and names what is at fault: base, merge or mix.

    Raises:
        Fault: EXPORT_WRONG_BASE, EXPORT_NOOP_MERGE, EXPORT_MERGE_MISMATCH,
            EXPORT_QUANTIZATION_BROKEN.
    """
    file, merge, noise = behaviour.file, behaviour.merge, behaviour.base_kl_of_base
    numbers: dict[str, Any] = {
        "adapter_mean_kl": round(file.adapter.mean_kl, 6),
        "base_mean_kl": round(file.base.mean_kl, 6),
        "merge_mean_kl": round(merge.adapter.mean_kl, 6),
        "base_kl_of_base": round(noise, 6),
        "loss_delta": round(file.loss_delta, 6),
        "token_count": file.token_count,
        "quantization": str(mix),
    }
    # Comparisons are written so that a number that is not one is refused.
    if not noise <= SAME_BASE_KL:
        raise Fault(
            FaultCode.EXPORT_WRONG_BASE,
            f"The base at hand differs from the one trained on by {noise:.3f} nats per token.",
            **numbers,
        )
    if merge.can_tell_apart and merge.base.mean_kl <= merge.adapter.mean_kl:
        raise Fault(
            FaultCode.EXPORT_NOOP_MERGE,
            f"The merge is closer to the base ({merge.base.mean_kl:.3f} nats per token) than "
            f"to the adapter ({merge.adapter.mean_kl:.3f}).",
            **numbers,
        )
    if not merge.adapter.mean_kl <= MERGE_BOUND + NOISE_TIMES * noise:
        raise Fault(
            FaultCode.EXPORT_MERGE_MISMATCH,
            f"The merge differs from the adapter by {merge.adapter.mean_kl:.3f} nats per token "
            "before any quantisation.",
            **numbers,
        )
    is_wiped_out = file.can_tell_apart and file.base.mean_kl <= file.adapter.mean_kl
    if is_wiped_out or not file.adapter.mean_kl <= KL_BOUNDS[mix] + NOISE_TIMES * noise:
        raise Fault(
            FaultCode.EXPORT_QUANTIZATION_BROKEN,
            f"{mix} differs from the adapter by {file.adapter.mean_kl:.3f} nats per token and from "
            f"the base by {file.base.mean_kl:.3f}; the merge before quantisation differs by "
            f"{merge.adapter.mean_kl:.3f}.",
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
