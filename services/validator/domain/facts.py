"""Facts about a submission from the other services and the model hub."""

from collections.abc import Sequence
from dataclasses import dataclass

from corpus.shapes import Format
from lexicon.faults import Fault
from modelspec.catalog import Plan
from modelspec.shape import ModelShape


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The base model at one revision.

    Attributes:
        shape: its dimensions, or why they cannot be read.
        refund_waived: whether the waiver was given when it was added.
        tokenizer_bytes: size of its tokenizer files.
        has_sentencepiece: whether `tokenizer.model` is among its files.
        redirected_to: id under which it is now, when it was renamed.
    """

    model_id: str
    revision: str
    verified: bool
    refund_waived: bool
    family: str
    shape: ModelShape | Fault
    tokenizer_present: bool
    tokenizer_bytes: int
    has_sentencepiece: bool
    safetensors_present: bool
    template_missing: bool
    redirected_to: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetFacts:
    """One dataset version."""

    name: str
    version_name: str
    format: Format
    row_count: int
    character_count: int


@dataclass(frozen=True, slots=True, kw_only=True)
class LabelFacts:
    """Figures of the first rows of all datasets, encoded.

    Attributes:
        token_count: tokens of all sampled rows, after they were cut.
        trained_token_count: of those the ones that carry a label.
        unlearnt: (dataset, row number) of rows in which nothing is trained on.
        truncated: (dataset, row number) of rows that are longer than the longest sequence.
    """

    row_count: int
    token_count: int
    trained_token_count: int
    unlearnt: tuple[tuple[str, int], ...] = ()
    truncated: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Facts:
    """All facts. A field that could not be gathered holds its Fault instead.

    Attributes:
        model: None when no base model was named.
        datasets: in the order of the spec.
        validation_dataset: None when none was named.
        labels: None when there was nothing to encode or no fast tokenizer; the reason is in
            `labels_note`.
        artifact_bytes: size of what the project has stored.
    """

    plan: Plan
    artifact_bytes: int
    artifact_quota_bytes: int
    model: ModelFacts | Fault | None = None
    datasets: tuple[DatasetFacts | Fault, ...] = ()
    validation_dataset: DatasetFacts | Fault | None = None
    labels: LabelFacts | Fault | None = None
    labels_note: str = ""

    def found_datasets(self) -> Sequence[DatasetFacts]:
        """The datasets that were found."""
        return [each for each in self.datasets if isinstance(each, DatasetFacts)]
