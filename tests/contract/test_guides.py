"""The guides say what a user must know; each claim here is a row of the acceptance table."""

from pathlib import Path

import pytest

DOCS = Path(__file__).parents[2] / "docs"


def _says(page: str, *phrases: str) -> None:
    text = " ".join((DOCS / page).read_text("utf-8").split())
    missing = [phrase for phrase in phrases if phrase not in text]
    assert missing == [], f"{page} no longer says: {missing}"


def test_the_guide_says_how_long_a_free_run_takes() -> None:
    """001-10"""
    _says("guide.md", "25 to 50 minutes", "only the gradient steps are billed")


def test_the_guide_leads_from_reasonable_samples_to_a_local_evaluation() -> None:
    """001-20"""
    _says("guide.md", "samples are reasonable: download the GGUF bundle and evaluate it locally")


def test_the_guide_tells_a_templating_bug_from_wrong_content() -> None:
    """001-42"""
    _says(
        "guide.md",
        "Open the GGUF in Ollama first",
        "Right content in the wrong format: a templating bug in the data",
        "Wrong content: more data, or other hyperparameters",
    )


def test_the_guide_states_the_trade_between_speed_and_success() -> None:
    """003-12"""
    _says("guide.md", "10 to 20 % of the speed", "95 % and more", "60 to 70 %")


def test_the_guide_says_which_preset_when() -> None:
    """003-28"""
    _says(
        "guide.md",
        "a demo, the first production run, anything time-critical | `safe`",
        "run well on the same hardware | `fast`",
        "cost matters most | a small model first",
    )


def test_the_guide_says_how_a_multi_run_gets_every_row() -> None:
    """002-19"""
    _says(
        "guide.md",
        "lower `--samples`, add data, or switch validation off",
        "validate_every_run=False, early_stopping=False",
        "tunesmith rollback RUN 2",
    )


def test_the_security_page_names_the_advisory() -> None:
    """002-29"""
    _says("security.md", "GHSA-f65r-h4g3-3h9h", "CVSS 9.8", "2026-05-23")


def test_the_guide_labels_mlx_experimental() -> None:
    """002-40"""
    _says("guide.md", "MLX is experimental", "has not been verified on Apple hardware")


@pytest.mark.parametrize("page", ["guide.md", "sdk.md", "datasets.md", "security.md", "faults.md"])
def test_the_readme_leads_to_every_page(page: str) -> None:
    """A page that nothing links to is not read."""
    assert f"docs/{page}" in (DOCS.parent / "README.md").read_text("utf-8")
