"""Texts of users: kept as data, bounded, suggested from."""

import pytest

from hub.domain.labels import did_you_mean, label, sha256_text, similar
from lexicon.faults import Fault, FaultCode


@pytest.mark.parametrize(
    "text", ["../../etc/passwd", "C:\\x", "a/b", "é ü 名前", "%2e%2e", "x" * 255]
)
def test_names_for_people_are_kept_as_they_are(text: str) -> None:
    """Attack 11: names are data only."""
    assert label(text, field="file_name", default="d") == text


def test_an_empty_name_means_the_default() -> None:
    assert label("", field="file_name", default="d") == "d"


@pytest.mark.parametrize("text", ["a\x00b", "a\nb", "\x7f", "x" * 256])
def test_control_characters_and_overlong_names_are_refused(text: str) -> None:
    """Attack 11."""
    with pytest.raises(Fault) as caught:
        label(text, field="file_name", default="d")
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID
    assert caught.value.metadata["field"] == "file_name"


@pytest.mark.parametrize("text", ["", "0" * 63, "0" * 65, "A" * 64, "g" * 64, "0" * 63 + "\n"])
def test_only_digests_are_digests(text: str) -> None:
    with pytest.raises(Fault):
        sha256_text(text, field="sha256")
    assert sha256_text("0" * 64, field="sha256") == "0" * 64


def test_the_nearest_names_come_first_and_strangers_not_at_all() -> None:
    """003-02."""
    names = ["customer-chats", "customer-chat-2", "poems", "recipes", "Customers"]
    assert similar("customer-chat", names)[0] == "customer-chats"
    assert "poems" not in similar("customer-chat", names)
    assert len(similar("customer", [f"customer-{number}" for number in range(9)])) == 3
    assert similar("zzz", names) == ()


def test_suggestions_read_as_a_question() -> None:
    assert did_you_mean(("a", "b")) == " Did you mean a or b?"
    assert did_you_mean(()) == ""


def test_a_text_longer_than_any_name_is_not_compared() -> None:
    """Attack 10: the time of an answer does not grow with what a stranger sends."""
    assert similar("x" * 4_000_000, ["x" * 200]) == ()
