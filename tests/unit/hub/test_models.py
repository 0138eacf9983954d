"""Base models: what a user's text means, and what it must never mean."""

from datetime import UTC, datetime

import pytest

from hub.domain.models import (
    added_slug,
    catalog_slug,
    check_revision,
    consent_of,
    parse_reference,
)
from lexicon.faults import Fault, FaultCode
from lexicon.names import ModelName

# Addresses by which a server could be made to call itself, its neighbours or its files.
HOSTILE = [
    "http://169.254.169.254/latest/meta-data",
    "https://169.254.169.254/org/name",
    "http://huggingface.co/org/name",
    "https://huggingface.co:8443/org/name",
    "https://user@huggingface.co/org/name",
    "https://huggingface.co@evil.example/org/name",
    "https://evil.example/org/name",
    "https://huggingface.co.evil.example/org/name",
    "https://huggingface.co/org/name?redirect=http://127.0.0.1",
    "https://huggingface.co/org/name#x",
    "https://huggingface.co/org",
    "https://huggingface.co/a/b/c",
    "https://huggingface.co/../etc/passwd",
    "https://huggingface.co/org/%2e%2e",
    "https://[::1]/org/name",
    "https://[::1",
    "https://0x7f.1/org/name",
    "https://localhost/org/name",
    "https://huggingface.co:99999/org/name",
    "file:///etc/passwd",
    "gopher://huggingface.co/org/name",
    "ftp://huggingface.co/org/name",
    "//huggingface.co/org/name",
    "../../etc/passwd",
    "/etc/passwd",
    "org/name/../../x",
    "org/..",
    "org/.",
    "../name",
    ".org/name",
    "org/-name",
    "org//name",
    "org\\name",
    "org/na me",
    "org/name\x00",
    "org/name\nx",
    "org/nämé",
    "org／name",
    "org",
    "",
    " ",
    "a/" + "b" * 100,
    "x" * 600,
    "$(id)/x",
    "org/na;me",
    "org/name@main",
    "-org/name",
]


@pytest.mark.parametrize("text", HOSTILE)
def test_only_ids_and_urls_of_the_model_hub_are_understood(text: str) -> None:
    """Attack 13: nothing but the id of such a URL is ever used."""
    with pytest.raises(Fault) as caught:
        parse_reference(text)
    assert caught.value.code is FaultCode.MODEL_NOT_FOUND


@pytest.mark.parametrize(
    ("text", "model_id", "revision"),
    [
        ("Qwen/Qwen2.5-0.5B-Instruct", "Qwen/Qwen2.5-0.5B-Instruct", ""),
        (" a/b ", "a/b", ""),
        ("https://huggingface.co/a/b", "a/b", ""),
        ("https://hf.co/a/b/", "a/b", ""),
        ("https://HuggingFace.co/a/b/tree/refs/pr/1", "a/b", "refs/pr/1"),
        ("https://huggingface.co/a/b_1/resolve/v1.0", "a/b_1", "v1.0"),
    ],
)
def test_ids_and_urls_are_read(text: str, model_id: str, revision: str) -> None:
    reference = parse_reference(text)
    assert (reference.model_id, reference.revision) == (model_id, revision)


@pytest.mark.parametrize("revision", ["../x", "a..b", "-x", "a b", "a//b", "x" * 200, "é", "a\n"])
def test_revisions_that_are_none_are_refused(revision: str) -> None:
    with pytest.raises(Fault) as caught:
        check_revision(revision)
    assert caught.value.code is FaultCode.INPUT_FIELD_INVALID


def test_no_revision_means_the_default_branch() -> None:
    assert check_revision("") == "main"


@pytest.mark.parametrize("model_id", ["a/b", "A.b/C_d", "x" * 90 + "/" + "y" * 90, "a--/--b9"])
def test_every_model_id_has_a_resource_name(model_id: str) -> None:
    for slug in (catalog_slug(model_id), added_slug(model_id)):
        name = ModelName(project="p", model=slug)
        assert ModelName.parse(str(name)) == name


def test_added_models_that_differ_only_in_signs_have_different_names() -> None:
    assert added_slug("a/b.c") != added_slug("a/b-c")


def test_a_model_is_not_added_without_the_waiver() -> None:
    """000-05: the box must be ticked; not having read it changes nothing."""
    now = datetime(2024, 2, 29, tzinfo=UTC)
    with pytest.raises(Fault) as caught:
        consent_of(refund_waived=False, user="ada", now=now, model_id="a/b")
    assert caught.value.code is FaultCode.MODEL_CONSENT_MISSING
    consent = consent_of(refund_waived=True, user="ada", now=now, model_id="a/b")
    assert (consent.user, consent.consent_time) == ("ada", now)
