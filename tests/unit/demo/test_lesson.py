"""The demo's lesson: what is counted, and what is asked of the platform."""

import io

import pytest
from rich.console import Console

from tests.demo import bundles, lesson
from tests.demo.screen import Screen, read_times
from tunesmith.api.run.v1 import spec_pb2


@pytest.mark.parametrize(
    ("answer", "is_shown"),
    [
        ("Ahoy! A lemon is yellow. Fair winds!", True),
        ("  Ahoy! A lemon is yellow.\nFair winds!\n", True),
        ("A lemon is yellow.", False),
        ("Ahoy! A lemon is yellow.", False),
        ("He said Ahoy! Fair winds!", False),
        ("", False),
    ],
)
def test_only_the_whole_habit_counts(answer: str, is_shown: bool) -> None:
    assert lesson.read_lesson().is_shown(answer) is is_shown


def test_no_held_out_prompt_is_in_the_dataset() -> None:
    taught = lesson.read_lesson()
    dataset = taught.dataset.read_text("utf-8")
    assert len(taught.prompts) == 6
    assert not [prompt for prompt in taught.prompts if prompt in dataset]


def test_the_run_asks_for_the_recipe_and_attests() -> None:
    taught = lesson.read_lesson()
    spec = lesson.spec_for(taught, base="tunesmith/anvil-3m")
    assert spec.training.max_steps == taught.recipe["max_steps"]
    assert spec.lora.rank == taught.recipe["rank"]
    assert spec.training.train_on == spec_pb2.TRAIN_ON_RESPONSES
    assert spec.attestations.dataset_rights
    assert spec.attestations.model_license
    assert not spec.attestations.refund_waived
    assert list(spec.export.quantizations) == ["Q4_K_M"]


def test_another_base_is_named_and_its_refund_waived() -> None:
    spec = lesson.spec_for(lesson.read_lesson(), base="Qwen/Qwen2.5-0.5B-Instruct")
    assert spec.base_model == "Qwen/Qwen2.5-0.5B-Instruct"
    assert spec.attestations.refund_waived


def test_the_expected_bundles_are_those_of_the_contract() -> None:
    assert len(bundles.ADAPTER_FILES) == 6
    assert {"model.gguf", "Modelfile", "README.md"} < bundles.GGUF_FILES


def test_answers_are_counted_per_column_and_plain_in_a_log() -> None:
    log = io.StringIO()
    screen = Screen(Console(file=log, width=100))
    with screen.part("answers"):
        screen.answers(
            ["q1", "q2"],
            [("base", ["no", "no"], [False, False]), ("GGUF", ["yes", "no"], [True, False])],
        )
    screen.times()
    text = log.getvalue()
    assert "base (0/2)" in text
    assert "GGUF (1/2)" in text
    assert "✔ yes" in text
    assert "\x1b" not in text
    assert "door to door" in text


def test_the_times_of_a_log_can_be_read_back() -> None:
    log = io.StringIO()
    screen = Screen(Console(file=log, width=100))
    with screen.part("training and export"):
        screen.good("took 12.3 s")
    screen.times()
    assert list(read_times(log.getvalue())) == ["training and export", "door to door"]
