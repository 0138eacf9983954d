"""Checks of the datasets: they exist, their format fits the method, and they have labels."""

from collections.abc import Iterator, Sequence

from corpus.shapes import Format
from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Method
from validator.domain.case import Case
from validator.domain.facts import DatasetFacts
from validator.domain.finding import CheckOutcome, Finding, info, outcome, red

SUPERVISED = frozenset(
    {
        Format.MESSAGES,
        Format.CONVERSATIONS,
        Format.INSTRUCTION,
        Format.PROMPT_COMPLETION,
        Format.INPUT_OUTPUT,
        Format.TEXT,
    }
)
LEARNS_FROM = {
    Method.SFT: SUPERVISED,
    Method.DPO: frozenset({Format.PREFERENCE}),
    Method.ORPO: frozenset({Format.PREFERENCE}),
    Method.SIMPO: frozenset({Format.PREFERENCE}),
    Method.KTO: frozenset({Format.KTO}),
}
# Row numbers that a message names before it says "and more".
MAX_NAMED_ROWS = 5


def check_datasets(case: Case) -> CheckOutcome:
    """Every dataset exists and is not deleted (003-02, 000-33)."""
    found: list[Finding] = []
    for index, dataset in enumerate(case.facts.datasets):
        if isinstance(dataset, Fault):
            found.append(red(dataset, f"datasets[{index}]"))
        elif dataset.row_count <= 0:
            fault = Fault(
                FaultCode.DATASET_EMPTY,
                f"Dataset {dataset.name} has no rows.",
                dataset=dataset.name,
            )
            found.append(red(fault, f"datasets[{index}]"))
    validation = case.facts.validation_dataset
    if isinstance(validation, Fault):
        found.append(red(validation, "training.validation.dataset"))
    rows = sum(dataset.row_count for dataset in case.facts.found_datasets())
    return outcome(f"{len(case.facts.datasets)} datasets with {rows:,} rows", found)


def check_formats(case: Case) -> CheckOutcome:
    """The method learns from rows of these formats; files may differ from each other (A10)."""
    method = case.training.method
    assert method is not None
    places = [(f"datasets[{index}]", dataset) for index, dataset in enumerate(case.facts.datasets)]
    if case.facts.validation_dataset is not None:
        places.append(("training.validation.dataset", case.facts.validation_dataset))
    found = [
        _wrong_format(method, dataset, field)
        for field, dataset in places
        if isinstance(dataset, DatasetFacts) and dataset.format not in LEARNS_FROM[method]
    ]
    formats = sorted({dataset.format.value for dataset in case.facts.found_datasets()})
    return outcome(f"{method.upper()} learns from {', '.join(formats)}", found)


def check_labels(case: Case) -> CheckOutcome:
    """The first rows have labelled tokens, and few of them are cut (A12)."""
    labels = case.facts.labels
    if labels is None:
        return outcome(f"not checked: {case.facts.labels_note}")
    if isinstance(labels, Fault):
        return outcome("", [red(labels, "datasets")])
    if labels.trained_token_count == 0:
        fault = Fault(
            FaultCode.DATASET_NO_TRAINED_TOKENS,
            f"No token of the first {labels.row_count} rows would be trained on.",
            rows=labels.row_count,
        )
        return outcome("", [red(fault, "datasets")])
    return outcome(
        f"{labels.trained_token_count:,} of {labels.token_count:,} tokens of the first "
        f"{labels.row_count} rows are trained on",
        [*_unlearnt(labels.unlearnt), *_truncated(case, labels.truncated)],
    )


def _wrong_format(method: Method, dataset: DatasetFacts, field: str) -> Finding:
    wanted = ", ".join(sorted(each.value for each in LEARNS_FROM[method]))
    fault = Fault(
        FaultCode.CONFIG_INVALID_SETTING,
        f"Method {method.upper()} learns from {wanted} rows; dataset {dataset.name} has "
        f"{dataset.format} rows.",
        remedy="Choose the method that fits the dataset, or a dataset that fits the method.",
        dataset=dataset.name,
        format=dataset.format.value,
        method=method.value,
    )
    return red(fault, field)


def _unlearnt(rows: Sequence[tuple[str, int]]) -> Iterator[Finding]:
    if rows:
        fault = Fault(
            FaultCode.DATASET_NO_TRAINED_TOKENS,
            f"Nothing would be learnt from {_named(rows)}.",
            rows=len(rows),
        )
        yield info(fault, "datasets")


def _truncated(case: Case, rows: Sequence[tuple[str, int]]) -> Iterator[Finding]:
    if rows:
        limit = case.training.max_sequence_tokens
        fault = Fault(
            FaultCode.DATASET_TOKENS_TOO_MANY,
            f"Longer than {limit} tokens and cut there: {_named(rows)}.",
            rows=len(rows),
        )
        yield info(fault, "training.max_sequence_tokens")


def _named(rows: Sequence[tuple[str, int]]) -> str:
    shown = ", ".join(f"row {number} of {dataset}" for dataset, number in rows[:MAX_NAMED_ROWS])
    more = len(rows) - MAX_NAMED_ROWS
    return f"{shown} and {more} more" if more > 0 else shown
