"""Keys of objects: hostile texts name nothing."""

import pytest

from lexicon.faults import Fault, FaultCode
from objects.keys import check_key, key_of, uri_of

HOSTILE = [
    "",
    "/",
    "/etc/passwd",
    "..",
    "../x",
    "a/../b",
    "a/./b",
    "a//b",
    "a/",
    "/a",
    "a\\b",
    "C:/x",
    "a\x00b",
    "a\nb",
    "a%2e%2e/b",
    "%2e%2e",
    "․․/b",
    "a/…",
    "ａ",
    "é",
    ".hidden",
    "a/.hidden",
    "_manifest.json",
    "a/_manifest.json",
    "a b",
    "a" * 300,
    "/".join(["a"] * 400),
    "a#1",
    "a?b",
]


@pytest.mark.parametrize("key", HOSTILE)
def test_hostile_keys_are_refused_without_being_echoed(key: str) -> None:
    """Attack 11."""
    with pytest.raises(Fault) as caught:
        check_key(key)
    assert caught.value.code is FaultCode.STORAGE_KEY_INVALID
    assert not key or key not in caught.value.message or len(key) < 3


@pytest.mark.parametrize("key", ["a", "runs/r1/7/adapter/adapter_model.safetensors", "A-1/b_c.d"])
def test_uri_there_and_back_is_identity(key: str) -> None:
    assert key_of(uri_of(key)) == key


@pytest.mark.parametrize("uri", ["a/b", "file:///etc/passwd", "object:///a", "object://../a"])
def test_foreign_uris_are_refused(uri: str) -> None:
    """Attack 11."""
    with pytest.raises(Fault) as caught:
        key_of(uri)
    assert caught.value.code is FaultCode.STORAGE_KEY_INVALID
