"""A small object store that speaks S3's protocol: enough of it for what our store asks for."""

import asyncio
import hashlib
import itertools
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from email.utils import formatdate
from xml.sax.saxutils import escape, unescape

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

START_SECONDS = 10.0


@dataclass(kw_only=True)
class Bucket:
    """The objects of one bucket, and what the next requests are to be answered with instead."""

    objects: dict[str, bytes] = field(default_factory=dict)
    parts: dict[str, dict[int, bytes]] = field(default_factory=dict)
    troubles: list[int] = field(default_factory=list)
    numbers: "itertools.count[int]" = field(default_factory=itertools.count)

    async def answer(self, request: Request) -> Response:
        if self.troubles:
            return Response(status_code=self.troubles.pop(0))
        key = request.path_params.get("key", "")
        match request.method:
            case "GET" if "list-type" in request.query_params:
                return self._list(request.query_params.get("prefix", ""))
            case "GET" | "HEAD":
                return self._get(key, request)
            case "PUT":
                return self._put(key, await request.body(), request)
            case "POST" if "delete" in request.query_params:
                return self._delete((await request.body()).decode())
            case "POST":
                return self._assemble(key, request)
            case _:
                self.objects.pop(key, None)
                return Response(status_code=204)

    def _get(self, key: str, request: Request) -> Response:
        if key not in self.objects:
            return Response(status_code=404)
        data = self.objects[key]
        headers = {"etag": _etag(data), "last-modified": formatdate(usegmt=True)}
        span = request.headers.get("range")
        if span is None:
            return Response(data, headers=headers)
        first, last = (int(each) for each in span.removeprefix("bytes=").split("-"))
        headers["content-range"] = f"bytes {first}-{last}/{len(data)}"
        return Response(data[first : last + 1], 206, headers)

    def _put(self, key: str, body: bytes, request: Request) -> Response:
        if "uploadId" in request.query_params:
            number = int(request.query_params["partNumber"])
            self.parts[request.query_params["uploadId"]][number] = body
        elif request.headers.get("if-none-match") == "*" and key in self.objects:
            return Response(status_code=412)
        else:
            self.objects[key] = body
        return Response(headers={"etag": _etag(body)})

    def _assemble(self, key: str, request: Request) -> Response:
        if "uploads" in request.query_params:
            upload = f"upload-{next(self.numbers)}"
            self.parts[upload] = {}
            return _xml(
                f"<InitiateMultipartUploadResult><UploadId>{upload}</UploadId>"
                "</InitiateMultipartUploadResult>"
            )
        parts = self.parts.pop(request.query_params["uploadId"])
        self.objects[key] = b"".join(parts[number] for number in sorted(parts))
        etag = escape(_etag(self.objects[key]))
        return _xml(
            f"<CompleteMultipartUploadResult><ETag>{etag}</ETag></CompleteMultipartUploadResult>"
        )

    def _delete(self, body: str) -> Response:
        keys = [unescape(key) for key in re.findall(r"<Key>(.*?)</Key>", body)]
        for key in keys:
            self.objects.pop(key, None)
        deleted = "".join(f"<Deleted><Key>{escape(key)}</Key></Deleted>" for key in keys)
        return _xml(f"<DeleteResult>{deleted}</DeleteResult>")

    def _list(self, prefix: str) -> Response:
        contents = "".join(
            f"<Contents><Key>{escape(key)}</Key><Size>{len(data)}</Size>"
            f"<LastModified>2024-02-29T12:00:00.000Z</LastModified><ETag>{_etag(data)}</ETag>"
            "</Contents>"
            for key, data in sorted(self.objects.items())
            if key.startswith(prefix)
        )
        return _xml(
            f"<ListBucketResult><IsTruncated>false</IsTruncated>{contents}</ListBucketResult>"
        )


def environment(endpoint: str) -> dict[str, str]:
    """What a process needs in its environment to use a bucket at an endpoint."""
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ALLOW_HTTP": "true",
        "AWS_ACCESS_KEY_ID": "tester",
        "AWS_SECRET_ACCESS_KEY": "made-up",
        "AWS_REGION": "us-east-1",
    }


@asynccontextmanager
async def serving_bucket() -> AsyncIterator[tuple[str, Bucket]]:
    """Serves an empty bucket on a free port of loopback and gives its endpoint."""
    bucket = Bucket()
    methods = ["GET", "HEAD", "PUT", "POST", "DELETE"]
    routes = [
        Route("/bucket", bucket.answer, methods=methods),
        Route("/bucket/{key:path}", bucket.answer, methods=methods),
    ]
    config = uvicorn.Config(Starlette(routes=routes), port=0, log_level="warning", lifespan="off")
    server = uvicorn.Server(config)
    task = asyncio.create_task(server.serve())
    async with asyncio.timeout(START_SECONDS):
        while not server.started:
            await asyncio.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", bucket
    finally:
        server.should_exit = True
        await task


def _etag(data: bytes) -> str:
    return f'"{hashlib.md5(data, usedforsecurity=False).hexdigest()}"'


def _xml(body: str) -> Response:
    return Response(f'<?xml version="1.0"?>{body}', media_type="application/xml")
