"""The HTTP door: signed URLs and nothing else."""

import hashlib
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest

from gateway.http import CODE_HEADER, application
from objects.signing import UrlSigner
from objects.store import open_store

NOW = datetime(2026, 11, 21, 12, 0, tzinfo=UTC)
BASE = "http://files.test:8080"
BODY = bytes(range(256)) * 40
SIGNER = UrlSigner(["a-key-of-at-least-16-characters"], BASE)


@pytest.fixture
async def web(tmp_path: Path) -> AsyncIterator[httpx.AsyncClient]:
    app = application(
        signer=SIGNER,
        store=open_store(tmp_path.as_uri()),
        hosts=frozenset({"files.test"}),
        object_bytes_max=1 << 20,
        clock=lambda: NOW,
    )
    transport = httpx.ASGITransport(app=app)
    async with httpx.AsyncClient(transport=transport, base_url=BASE) as client:
        yield client


def signed(method: str = "GET", *, minutes: int = 15, **fields: object) -> str:
    expire_time = NOW + timedelta(minutes=minutes)
    return SIGNER.sign("runs/r1/model.zip", method, expire_time=expire_time, **fields)  # type: ignore[arg-type]  # literals of a test


async def stored(web: httpx.AsyncClient) -> None:
    assert (await web.put(signed("PUT"), content=BODY)).status_code == 200


async def test_put_then_get_gives_the_same_bytes_with_name_and_digest(
    web: httpx.AsyncClient,
) -> None:
    answer = await web.put(signed("PUT", size_bytes=len(BODY)), content=BODY)
    sha256 = hashlib.sha256(BODY).hexdigest()
    assert answer.json() == {"size_bytes": len(BODY), "sha256": sha256}
    found = await web.get(signed(file_name='wünsch "1".zip'))
    assert found.content == BODY
    assert found.headers["etag"] == f'"{sha256}"'
    disposition = found.headers["content-disposition"]
    assert disposition.startswith('attachment; filename="w_nsch _1_.zip"')
    assert disposition.endswith("filename*=UTF-8''w%C3%BCnsch%20%221%22.zip")


async def test_a_range_gives_the_part_and_says_of_what(web: httpx.AsyncClient) -> None:
    await stored(web)
    part = await web.get(signed(), headers={"Range": "bytes=100-199"})
    assert (part.status_code, part.content) == (206, BODY[100:200])
    assert part.headers["content-range"] == f"bytes 100-199/{len(BODY)}"
    behind = await web.get(signed(), headers={"Range": "bytes=99999-"})
    assert behind.status_code == 416
    assert behind.headers["content-range"] == f"bytes */{len(BODY)}"
    assert code_of(behind) == "INPUT_FIELD_INVALID"
    other = await web.get(signed(), headers={"Range": "bytes=1-2", "If-Range": '"old"'})
    assert (other.status_code, other.content) == (200, BODY)


async def test_head_answers_without_bytes(web: httpx.AsyncClient) -> None:
    await stored(web)
    found = await web.head(signed())
    assert (found.status_code, found.content) == (200, b"")
    assert found.headers["content-length"] == str(len(BODY))


async def test_each_changed_character_of_a_url_is_refused(web: httpx.AsyncClient) -> None:
    await stored(web)
    url = signed()
    path = url.removeprefix(BASE)
    for position in range(len("/objects/"), len(path)):
        other = "x" if path[position] != "x" else "y"
        changed = BASE + path[:position] + other + path[position + 1 :]
        answer = await web.get(changed)
        assert answer.status_code == 403, changed
        assert answer.headers[CODE_HEADER] == "STORAGE_URL_INVALID"


async def test_an_expired_url_and_the_wrong_method_are_refused(web: httpx.AsyncClient) -> None:
    """001-38"""
    await stored(web)
    late = await web.get(signed(minutes=0))
    assert (late.status_code, late.headers[CODE_HEADER]) == (403, "STORAGE_URL_EXPIRED")
    assert (await web.put(signed("GET"), content=b"x")).status_code == 403
    assert (await web.get(signed("PUT"))).status_code == 403
    assert (await web.delete(signed())).status_code == 405


async def test_sizes_and_second_contents_are_refused(web: httpx.AsyncClient) -> None:
    short = await web.put(signed("PUT", size_bytes=len(BODY)), content=BODY[:-1])
    assert (short.status_code, short.headers[CODE_HEADER]) == (413, "STORAGE_SIZE_MISMATCH")
    large = await web.put(signed("PUT"), content=b"x" * ((1 << 20) + 1))
    assert large.status_code == 413
    assert (await web.get(signed())).headers[CODE_HEADER] == "STORAGE_OBJECT_NOT_FOUND"
    await stored(web)
    await stored(web)
    again = await web.put(signed("PUT"), content=b"other")
    assert (again.status_code, again.headers[CODE_HEADER]) == (409, "STORAGE_OBJECT_EXISTS")


@pytest.mark.parametrize("host", ["evil.test", "evil.test:8080", "files.test.evil", "", "[::1"])
async def test_a_foreign_host_is_refused(web: httpx.AsyncClient, host: str) -> None:
    answer = await web.get("/healthz", headers={"Host": host})
    assert answer.status_code == 421
    assert code_of(answer) == "ACCESS_HOST_UNKNOWN"


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/nowhere", 404),
        ("DELETE", "/objects/a", 405),
        ("POST", "/objects/a", 405),
        ("TRACE", "/healthz", 405),
    ],
)
async def test_a_path_or_method_that_is_none_has_the_one_shape_of_a_refusal(
    web: httpx.AsyncClient, method: str, path: str, status: int
) -> None:
    """002-42: a stable code in header and body, whatever refuses."""
    answer = await web.request(method, path)
    assert answer.status_code == status
    assert code_of(answer) == "INPUT_METHOD_UNKNOWN"
    assert ("allow" in answer.headers) is (status == 405)


def code_of(answer: httpx.Response) -> str:
    """The code of a refusal, which its header says as well."""
    error = answer.json()["error"]
    assert set(error) == {"code", "message", "remedy"}
    assert answer.headers[CODE_HEADER] == error["code"]
    code: str = error["code"]
    return code


async def test_every_answer_carries_the_security_headers(web: httpx.AsyncClient) -> None:
    for url in ("/healthz", "/objects/nothing", "/nowhere", signed()):
        answer = await web.get(url)
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["cache-control"] == "private, no-store"


@pytest.mark.parametrize("path", ["/objects/../etc/passwd", "/objects/%2e%2e/x", "/objects//x"])
async def test_a_path_that_is_no_key_is_refused(web: httpx.AsyncClient, path: str) -> None:
    answer = await web.get(path)
    assert answer.status_code in {403, 404}
