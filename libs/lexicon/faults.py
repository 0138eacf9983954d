"""The one exception of the platform, and the table of all codes."""

from collections.abc import Mapping
from types import MappingProxyType

from lexicon import rows_inputs, rows_platform, rows_request, rows_running
from lexicon.codes import FaultCode
from lexicon.rows import Category, FaultRow, Owner, Retry, Stage

__all__ = ["TABLE", "Category", "Fault", "FaultCode", "FaultRow", "Owner", "Retry", "Stage"]

TABLE: Mapping[FaultCode, FaultRow] = MappingProxyType(
    dict(
        sorted(
            {
                **rows_request.ROWS,
                **rows_inputs.ROWS,
                **rows_running.ROWS,
                **rows_platform.ROWS,
            }.items()
        )
    )
)


class Fault(Exception):
    """A failure with a code of the table; bugs of our own are assertions instead.

    Attributes:
        code: stable code.
        message: what happened, in a sentence; the row's meaning when none was given.
        remedy: what to do about it; the row's unless a variant or another text was given.
        stage: where in a run it happened, None outside runs.
        node: node on which it happened, None outside nodes.
        metadata: numbers and names of the message, by key.
    """

    def __init__(
        self,
        code: FaultCode,
        message: str | None = None,
        *,
        stage: Stage | str | None = None,
        node: str | None = None,
        remedy: str | None = None,
        variant: str | None = None,
        **metadata: str | float,
    ) -> None:
        """Create a fault.

        Args:
            code: stable code.
            message: what happened; default the row's meaning.
            stage: where in a run it happened, one of the values of Stage.
            node: `nodes/{node}` on which it happened.
            remedy: replaces the row's remedy.
            variant: name of one of the row's other remedies; what is in braces in it is
                filled in from the metadata.
            metadata: numbers and names of the message.
        """
        row = TABLE[code]
        self.code = code
        self.message = row.meaning if message is None else message
        self.stage = None if stage is None else Stage(stage)
        self.node = node
        self.metadata: dict[str, str] = {key: str(value) for key, value in metadata.items()}
        chosen = row.variants[variant].format(**self.metadata) if variant else row.remedy
        self.remedy = remedy or chosen
        super().__init__(f"{code.value}: {self.message}")

    @property
    def row(self) -> FaultRow:
        """The table's row of the code."""
        return TABLE[self.code]

    @property
    def retryable(self) -> bool:
        """Whether the request may succeed when it is made again, as it was or smaller."""
        return self.row.retryable

    @property
    def refundable(self) -> bool:
        """Whether a run on a verified model that ends with it is refunded."""
        return self.row.refundable
