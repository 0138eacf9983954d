"""Names and ids: what is accepted, what is refused, and that they survive as text."""

from datetime import UTC, datetime, timedelta
from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lexicon import names
from lexicon.faults import Fault, FaultCode
from lexicon.ids import new_id

NOW = datetime(2026, 11, 21, 7, 0, tzinfo=UTC)
IDS = st.from_regex(rf"\A{names.ID_PATTERN}\Z")

BAD_IDS = [
    "",
    "-a",
    "a-",
    "A",
    "a_b",
    "a.b",
    "..",
    "a/../b",
    "a\x00",
    "a\n",
    "%2e%2e",
    "ａ",
    "é",
    "C:",
    "a" * 64,
    "a" * 300,
]


@given(IDS, IDS)
def test_names_survive_the_way_to_text_and_back(project: str, part: str) -> None:
    for name in (
        names.ProjectName(project=project),
        names.RunName(project=project, run=part),
        names.DatasetName(project=project, dataset=part),
        names.DatasetVersionName(project=project, dataset=part, number=7),
        names.ModelName(project=project, model=part),
        names.ModelName(model=part),
        names.ArtifactName(project=project, artifact=part),
        names.TransactionName(project=project, transaction=part),
        names.ExportName(project=part, export=part),
        names.NodeName(node=part),
        names.AccountName(project=project),
    ):
        assert type(name).parse(str(name)) == name


@pytest.mark.parametrize("bad", BAD_IDS)
def test_ids_that_are_none_are_refused_everywhere(bad: str) -> None:
    """Attack list 11: path traversal by name."""
    with pytest.raises(Fault) as refused:
        names.check_id(bad, field="run")
    assert refused.value.code is FaultCode.INPUT_NAME_INVALID
    for text in (f"projects/{bad}/runs/r", f"projects/p/runs/{bad}", f"nodes/{bad}"):
        with pytest.raises(Fault):
            names.NodeName.parse(text) if text.startswith("nodes") else names.RunName.parse(text)


@pytest.mark.parametrize("number", ["0", "01", "-1", "1.0", "x", "9" * 30, ""])
def test_versions_count_from_one(number: str) -> None:
    with pytest.raises(Fault):
        names.DatasetVersionName.parse(f"projects/p/datasets/d/versions/{number}")


def test_a_refused_name_is_repeated_short_and_escaped() -> None:
    with pytest.raises(Fault) as refused:
        names.RunName.parse("projects/\x1b[31m" + "x" * 1000)
    assert "\x1b" not in refused.value.message
    assert len(refused.value.message) < 250


def test_ids_sort_by_time_and_are_ids() -> None:
    random = Random(1)
    made = [
        new_id("run", now=NOW + timedelta(milliseconds=step), random_bytes=random.randbytes)
        for step in range(200)
    ]
    assert made == sorted(made)
    assert len(set(made)) == len(made)
    for each in made:
        assert names.check_id(each, field="run") == each


def test_an_id_is_spelled_in_crockfords_alphabet() -> None:
    made = new_id("run", now=datetime(1970, 1, 1, tzinfo=UTC), random_bytes=bytes)
    assert made == "run-" + "0" * 26
