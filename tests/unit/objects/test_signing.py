"""Signed URLs: what they allow, and that nothing else is allowed by them."""

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

import pytest

from lexicon.faults import Fault, FaultCode
from objects.signing import MAX_LIFETIME, UrlSigner

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
EXPIRE = NOW + timedelta(minutes=15)
OLD_KEY = "old-key-of-at-least-16"
NEW_KEY = "new-key-of-at-least-16"
BASE = "http://127.0.0.1:8080/tune"
KEY = "datasets/0123abcd/rows.jsonl"


def a_signer(*keys: str) -> UrlSigner:
    return UrlSigner(keys or (NEW_KEY,), BASE)


def split(url: str) -> tuple[str, str]:
    parts = urlsplit(url)
    return parts.path, parts.query


def refusal(
    signer: UrlSigner, method: str, path: str, query: str, now: datetime = NOW
) -> FaultCode:
    with pytest.raises(Fault) as caught:
        signer.verify(method, path, query, now)
    return caught.value.code


def test_a_signed_url_says_what_it_allows() -> None:
    url = a_signer().sign(
        KEY, "PUT", expire_time=EXPIRE, size_bytes=12, file_name='a "b"\n&c=é.zip'
    )
    path, query = split(url)
    grant = a_signer().verify("PUT", path, query, NOW)
    assert (grant.key, grant.method, grant.expire_time) == (KEY, "PUT", EXPIRE)
    assert (grant.size_bytes, grant.file_name) == (12, 'a "b"\n&c=é.zip')


def test_every_flipped_character_of_path_and_query_is_refused() -> None:
    """Attack 14."""
    signer = a_signer()
    url = signer.sign(KEY, "GET", expire_time=EXPIRE, size_bytes=7, file_name="run lora.zip")
    path, query = split(url)
    replacements = "aA0z9/%&=+?.-_~ \x00é"
    for text, other, is_path in ((path, query, True), (query, path, False)):
        for index, original in enumerate(text):
            for replacement in {*replacements, original.swapcase()} - {original}:
                changed = text[:index] + replacement + text[index + 1 :]
                arguments = (changed, other) if is_path else (other, changed)
                assert refusal(signer, "GET", *arguments) is FaultCode.STORAGE_URL_INVALID, changed


def test_a_query_with_anything_added_repeated_left_out_or_reordered_is_refused() -> None:
    """Attack 14."""
    signer = a_signer()
    path, query = split(signer.sign(KEY, "GET", expire_time=EXPIRE, file_name="x.zip"))
    fields = query.split("&")
    changed = [
        query + "&a=b",
        query + "&" + fields[0],
        "&".join(reversed(fields)),
        query + "&",
        query.replace("method", "%6dethod"),
        "",
        "&".join(fields[:-1]),
        query * 30,
        *("&".join(f for f in fields if f != left_out) for left_out in fields),
    ]
    for each in changed:
        assert refusal(signer, "GET", path, each) is FaultCode.STORAGE_URL_INVALID, each


@pytest.mark.parametrize("method", ["PUT", "DELETE", "POST", "get", ""])
def test_a_url_for_get_allows_no_other_method(method: str) -> None:
    """Attack 14."""
    path, query = split(a_signer().sign(KEY, "GET", expire_time=EXPIRE))
    assert refusal(a_signer(), method, path, query) is FaultCode.STORAGE_URL_INVALID


def test_head_goes_with_get_but_not_with_put() -> None:
    path, query = split(a_signer().sign(KEY, "GET", expire_time=EXPIRE))
    assert a_signer().verify("HEAD", path, query, NOW).key == KEY
    path, query = split(a_signer().sign(KEY, "PUT", expire_time=EXPIRE))
    assert refusal(a_signer(), "HEAD", path, query) is FaultCode.STORAGE_URL_INVALID


def test_a_url_ends_at_its_time() -> None:
    """Attack 14: replay after expiry."""
    signer = a_signer()
    path, query = split(signer.sign(KEY, "GET", expire_time=EXPIRE))
    assert signer.verify("GET", path, query, EXPIRE - timedelta(microseconds=1)).key == KEY
    assert refusal(signer, "GET", path, query, EXPIRE) is FaultCode.STORAGE_URL_EXPIRED


def test_a_forged_url_that_is_also_old_is_called_invalid_not_expired() -> None:
    path, query = split(a_signer().sign(KEY, "GET", expire_time=EXPIRE))
    changed = query[:-1] + ("0" if query[-1] != "0" else "1")
    assert refusal(a_signer(), "GET", path, changed, EXPIRE) is FaultCode.STORAGE_URL_INVALID


def test_no_url_lives_longer_than_seven_days() -> None:
    path, query = split(
        a_signer().sign(KEY, "GET", expire_time=NOW + MAX_LIFETIME + timedelta(seconds=1))
    )
    assert refusal(a_signer(), "GET", path, query) is FaultCode.STORAGE_URL_INVALID


def test_two_urls_made_in_a_row_differ() -> None:
    """A second click on a download gives a fresh URL even within one second."""
    first = a_signer().sign(KEY, "GET", expire_time=EXPIRE)
    assert first != a_signer().sign(KEY, "GET", expire_time=EXPIRE + timedelta(microseconds=1))


def test_while_keys_rotate_the_first_signs_and_both_verify() -> None:
    """Attack 14: key rotation with two live keys."""
    old_path, old_query = split(a_signer(OLD_KEY).sign(KEY, "GET", expire_time=EXPIRE))
    rotating = a_signer(NEW_KEY, OLD_KEY)
    new_path, new_query = split(rotating.sign(KEY, "GET", expire_time=EXPIRE))
    assert rotating.verify("GET", old_path, old_query, NOW).key == KEY
    assert rotating.verify("GET", new_path, new_query, NOW).key == KEY
    assert a_signer(NEW_KEY).verify("GET", new_path, new_query, NOW).key == KEY
    assert refusal(a_signer(NEW_KEY), "GET", old_path, old_query) is FaultCode.STORAGE_URL_INVALID


@pytest.mark.parametrize("keys", [(), ("short",), (NEW_KEY, "")])
def test_missing_and_short_keys_are_refused_at_start(keys: tuple[str, ...]) -> None:
    with pytest.raises(Fault) as caught:
        UrlSigner(keys, BASE)
    assert caught.value.code is FaultCode.CONFIG_INVALID


def test_the_base_urls_own_path_is_part_of_what_is_signed() -> None:
    path, query = split(a_signer().sign(KEY, "GET", expire_time=EXPIRE))
    assert path == f"/tune/objects/{KEY}"
    elsewhere = UrlSigner((NEW_KEY,), "http://127.0.0.1:8080")
    assert refusal(elsewhere, "GET", f"/objects/{KEY}", query) is FaultCode.STORAGE_URL_INVALID
