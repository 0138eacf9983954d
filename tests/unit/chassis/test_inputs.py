"""Fresh URLs of a lease's inputs: asked for once, for everybody who waits."""

import asyncio
from dataclasses import dataclass, field

import pytest

from chassis.inputs import InputUrls
from lexicon.faults import Fault, FaultCode, Owner
from tunesmith.api.work.v1 import work_pb2


def a_file(name: str, url: str = "") -> work_pb2.InputFile:
    return work_pb2.InputFile(path=name, url=url or f"http://old/{name}", sha256=name)


@dataclass(slots=True)
class Session:
    """Signs two files anew at each call, or fails as it is told to."""

    calls: int = 0
    faults: list[FaultCode] = field(default_factory=list)

    async def sign_inputs(self) -> list[work_pb2.InputFile]:
        self.calls += 1
        await asyncio.sleep(0)
        if self.faults:
            raise Fault(self.faults.pop(0))
        return [a_file(name, f"http://fresh/{name}/{self.calls}") for name in ("a", "b")]


async def test_files_that_wait_together_are_asked_for_once() -> None:
    """001-24."""
    session = Session()
    urls = InputUrls(session)
    files = [a_file("a"), a_file("b"), a_file("a")]
    found = await asyncio.gather(*(urls.renewed(file, file.url) for file in files))
    assert found == ["http://fresh/a/1", "http://fresh/b/1", "http://fresh/a/1"]
    assert session.calls == 1


async def test_a_renewed_url_that_ends_as_well_is_renewed_again() -> None:
    """A file that starts late gets what was signed long ago, and after its refusal a new one."""
    session = Session()
    urls = InputUrls(session)
    first = await urls.renewed(a_file("a"), "http://old/a")
    late = await urls.renewed(a_file("b"), "http://old/b")
    assert (session.calls, late) == (1, "http://fresh/b/1")
    assert await urls.renewed(a_file("a"), first) == "http://fresh/a/2"
    assert await urls.renewed(a_file("b"), late) == "http://fresh/b/2"
    assert session.calls == 2


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        # The run is elsewhere; nobody asks any more.
        (FaultCode.RUN_LEASE_LOST, FaultCode.RUN_LEASE_LOST),
        (FaultCode.DEP_SERVICE_UNAVAILABLE, FaultCode.DEP_SERVICE_UNAVAILABLE),
        # A scheduler that does not know the call yet.
        (FaultCode.INPUT_METHOD_UNKNOWN, FaultCode.STORAGE_URL_NOT_RENEWED),
        (FaultCode.ACCESS_DENIED, FaultCode.STORAGE_URL_NOT_RENEWED),
    ],
)
async def test_a_refusal_never_blames_the_user(answer: FaultCode, told: FaultCode) -> None:
    """The user has no part in how long a download takes."""
    urls = InputUrls(Session(faults=[answer]))
    with pytest.raises(Fault) as caught:
        await urls.renewed(a_file("a"), "http://old/a")
    assert caught.value.code is told
    assert told is FaultCode.RUN_LEASE_LOST or caught.value.row.owner is Owner.PLATFORM
    # The next one may try again.
    assert await urls.renewed(a_file("a"), "http://old/a") == "http://fresh/a/2"


async def test_a_file_that_is_no_input_any_more_has_no_url() -> None:
    with pytest.raises(Fault) as caught:
        await InputUrls(Session()).renewed(a_file("other"), "http://old/other")
    assert caught.value.code is FaultCode.STORAGE_URL_NOT_RENEWED
