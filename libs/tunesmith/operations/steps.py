"""What all operations are made of: calls and pages."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar, cast

from google.protobuf.message import Message

from tunesmith.transport import CALL_SECONDS, Call, Operation

PAGE_SIZE = 200
PAGES_MAX = 10_000

_Response = TypeVar("_Response", bound=Message)
_Item = TypeVar("_Item")


def call(
    service: str,
    method: str,
    request: Message,
    response: type[_Response],
    timeout_seconds: float = CALL_SECONDS,
) -> Operation[_Response]:
    """One unary call."""
    answer = yield Call(
        method=f"{service}/{method}",
        request=request,
        response=response,
        timeout_seconds=timeout_seconds,
    )
    return cast(_Response, answer)


def pages(
    service: str,
    method: str,
    request: Any,
    response: type[_Response],
    items: Callable[[Any], Iterable[_Item]],
    *,
    limit: int | None,
) -> Operation[list[_Item]]:
    """All items of a list, page by page, up to a limit."""
    found: list[_Item] = []
    for _ in range(PAGES_MAX):
        if limit is not None:
            request.page_size = max(1, min(PAGE_SIZE, limit - len(found)))
        page: Any = yield from call(service, method, request, response)
        found.extend(items(page))
        if not page.next_page_token or (limit is not None and len(found) >= limit):
            break
        request.page_token = page.next_page_token
    return found if limit is None else found[:limit]
