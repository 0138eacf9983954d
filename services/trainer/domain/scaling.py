"""Loss scaling for fp16: gradients too small for its range are lifted into it.

Source: Micikevicius et al. 2018, arXiv:1710.03740, section 3.2; the numbers are those of torch's
GradScaler. All factors are powers of two, so that scaling and taking back round nothing.
"""

from dataclasses import dataclass, replace

from lexicon.faults import Fault, FaultCode

FIRST_FACTOR = 2.0**16
GROWTH = 2.0
BACKOFF = 0.5
# Steps without an overflow after which a larger factor is tried.
GROWTH_STEPS = 2000
# A gradient that does not fit at this factor is itself too large for fp16.
FACTOR_MIN = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossScale:
    """By what the loss is multiplied now, and how it came to that.

    Attributes:
        clean_steps: steps without an overflow since the factor last changed.
        skipped_count: steps of the whole run whose gradient overflowed and was not used.
    """

    factor: float = FIRST_FACTOR
    clean_steps: int = 0
    skipped_count: int = 0

    def after_clean_step(self) -> "LossScale":
        """The scale after a step whose gradient was finite."""
        if self.clean_steps + 1 < GROWTH_STEPS:
            return replace(self, clean_steps=self.clean_steps + 1)
        return replace(self, factor=self.factor * GROWTH, clean_steps=0)

    def after_overflow(self) -> "LossScale":
        """The scale after a step that was skipped because its gradient was not finite.

        Raises:
            Fault: RUNTIME_LOSS_NOT_FINITE when the gradient does not fit even without lifting it.
        """
        if self.factor <= FACTOR_MIN:
            raise Fault(
                FaultCode.RUNTIME_LOSS_NOT_FINITE,
                "The gradient is too large for fp16 without any loss scaling",
                factor=self.factor,
            )
        return LossScale(
            factor=self.factor * BACKOFF, clean_steps=0, skipped_count=self.skipped_count + 1
        )
