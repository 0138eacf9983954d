"""Laws of signed URLs that hold for every object, name, size and moment."""

from datetime import UTC, datetime, timedelta
from urllib.parse import urlsplit

from hypothesis import assume, given
from hypothesis import strategies as st

from lexicon.faults import Fault, FaultCode
from objects.signing import MAX_LIFETIME, Method, UrlSigner

NOW = datetime(2024, 2, 29, 12, 0, tzinfo=UTC)
SIGNER = UrlSigner(["key-of-signed-urls-in-tests"], "https://tunesmith.test/base")

SEGMENTS = st.from_regex(r"[A-Za-z0-9][A-Za-z0-9._-]{0,20}", fullmatch=True)
KEYS = st.lists(SEGMENTS, min_size=1, max_size=5).map("/".join)
LIVES = st.timedeltas(min_value=timedelta(microseconds=1), max_value=MAX_LIFETIME)
SIZES = st.none() | st.integers(min_value=0, max_value=2**50)
NAMES = st.none() | st.text(st.characters(codec="utf-8"), max_size=80)
METHODS: st.SearchStrategy[Method] = st.sampled_from(["GET", "PUT"])


@given(key=KEYS, method=METHODS, life=LIVES, size=SIZES, name=NAMES)
def test_what_was_signed_is_what_is_read(
    key: str, method: Method, life: timedelta, size: int | None, name: str | None
) -> None:
    url = SIGNER.sign(key, method, expire_time=NOW + life, size_bytes=size, file_name=name)
    parts = urlsplit(url)
    grant = SIGNER.verify(method, parts.path, parts.query, NOW)
    assert (grant.key, grant.method, grant.size_bytes) == (key, method, size)
    assert (grant.file_name, grant.expire_time) == (name, NOW + life)


@given(key=KEYS, size=SIZES, name=NAMES, data=st.data())
def test_no_edit_of_path_or_query_survives(
    key: str, size: int | None, name: str | None, data: st.DataObject
) -> None:
    """Attack 14."""
    url = SIGNER.sign(
        key, "GET", expire_time=NOW + timedelta(minutes=15), size_bytes=size, file_name=name
    )
    parts = urlsplit(url)
    text = f"{parts.path}?{parts.query}"
    index = data.draw(st.integers(min_value=0, max_value=len(text)))
    removed = data.draw(st.integers(min_value=0, max_value=3))
    added = data.draw(st.text(max_size=3))
    changed = text[:index] + added + text[index + removed :]
    assume(changed != text)
    path, _, query = changed.partition("?")
    code = None
    try:
        SIGNER.verify("GET", path, query, NOW)
    except Fault as fault:
        code = fault.code
    assert code is FaultCode.STORAGE_URL_INVALID
