"""A run's loss curve in a few figures, for readers of the adapter's card."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

# Places of the drawing; twice as many buckets are kept before neighbours are joined.
PLACES = 32
BUCKETS_MAX = 2 * PLACES
BLOCKS = "▁▂▃▄▅▆▇█"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """Sums of losses over buckets of as many steps each; only the last one may hold fewer.

    What is kept does not depend on how many steps are to come, so that it is the same in a run that
    was resumed.
    """

    steps_per_bucket: int = 1
    step_count: int = 0
    sums: tuple[float, ...] = ()

    def plus(self, loss: float) -> "LossCurve":
        """The curve with one step more."""
        width, sums = self.steps_per_bucket, self.sums
        if self.step_count % width == 0 and len(sums) == BUCKETS_MAX:
            sums = tuple(a + b for a, b in zip(sums[::2], sums[1::2], strict=True))
            width *= 2
        # A full last bucket is followed by a new one.
        is_new = self.step_count % width == 0
        sums = (*sums, loss) if is_new else (*sums[:-1], sums[-1] + loss)
        return LossCurve(steps_per_bucket=width, step_count=self.step_count + 1, sums=sums)

    @property
    def means(self) -> tuple[float, ...]:
        """The mean loss of each bucket."""
        width, count = self.steps_per_bucket, self.step_count
        return tuple(
            total / min(width, count - index * width) for index, total in enumerate(self.sums)
        )

    def drawing(self) -> str:
        """The curve as one line of blocks, at most `PLACES` of them; empty without a step."""
        means = self.means
        if len(means) > PLACES:
            # Pairs, as the next joining would make them.
            pairs = (means[index : index + 2] for index in range(0, len(means), 2))
            means = tuple(sum(pair) / len(pair) for pair in pairs)
        if not means:
            return ""
        least, most = min(means), max(means)
        span = most - least or 1.0
        return "".join(BLOCKS[round((mean - least) / span * (len(BLOCKS) - 1))] for mean in means)

    def document(self) -> dict[str, Any]:
        """The curve as it is in a checkpoint's manifest."""
        return {
            "steps_per_bucket": self.steps_per_bucket,
            "step_count": self.step_count,
            "sums": list(self.sums),
        }

    @classmethod
    def of(cls, document: Mapping[str, Any] | None) -> Self:
        """The opposite of `document`; without one, a curve that begins.

        Raises:
            ValueError: the document is not that of a curve.
        """
        if document is None:
            return cls()
        width, count = document.get("steps_per_bucket"), document.get("step_count")
        sums = document.get("sums")
        if type(width) is not int or type(count) is not int or not isinstance(sums, list):
            raise ValueError("a loss curve has steps_per_bucket, step_count and sums")
        if not all(type(each) in (int, float) and math.isfinite(each) for each in sums):
            raise ValueError("the sums of a loss curve are finite numbers")
        if width < 1 or count < 0 or len(sums) != -(-count // width) or len(sums) > BUCKETS_MAX:
            raise ValueError(f"{len(sums)} buckets of {width} do not hold {count} steps")
        return cls(steps_per_bucket=width, step_count=count, sums=tuple(map(float, sums)))
