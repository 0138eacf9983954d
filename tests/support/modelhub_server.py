"""A model hub on this machine that speaks the Hugging Face protocol and misbehaves on request."""

import hashlib
import json
import re
import threading
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import TracebackType
from typing import Self
from urllib.parse import unquote, urlsplit

_API = re.compile(r"/api/models/(?P<model>[^/]+(?:/[^/]+)?)/(?P<what>revision|tree)/(?P<rev>[^/]+)")
_RESOLVE = re.compile(r"/(?P<model>[^/]+(?:/[^/]+)?)/resolve/(?P<rev>[^/]+)/(?P<file>.+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")

_ERRORS: Mapping[int, tuple[str, str]] = {
    401: ("RepoNotFound", "Invalid username or password."),
    403: ("GatedRepo", "Access to this model is restricted."),
    404: ("RepoNotFound", "Repository not found"),
}


@dataclass(kw_only=True)
class Repo:
    """A model of the hub at its one commit.

    Attributes:
        gated: everybody may see it, only `tokens` may read its files.
        private: only `tokens` know of it.
    """

    files: dict[str, bytes]
    gated: bool = False
    private: bool = False
    tokens: frozenset[str] = frozenset()

    @property
    def sha(self) -> str:
        """The commit: it follows from the content."""
        digest = hashlib.sha1(usedforsecurity=False)
        for name in sorted(self.files):
            digest.update(name.encode() + b"\x00" + self.files[name])
        return digest.hexdigest()

    @classmethod
    def of_folder(cls, folder: Path) -> Self:
        files = {
            path.relative_to(folder).as_posix(): path.read_bytes()
            for path in sorted(folder.rglob("*"))
            if path.is_file()
        }
        return cls(files=files)


@dataclass(kw_only=True)
class _Mishap:
    """What happens in place of the next answers: a status, or a body that ends too early."""

    file: str | None
    status: int | None
    cut_after_bytes: int
    times: int


@dataclass(kw_only=True)
class ModelHubServer:
    """Use as a context manager; `url` is the endpoint.

    Attributes:
        repos: models by id.
        renames: id under which a model was known, to its id now.
        requests: `METHOD path` of everything that was asked.
        tokens_seen: tokens that came with requests; empty for none.
    """

    repos: dict[str, Repo] = field(default_factory=dict)
    renames: dict[str, str] = field(default_factory=dict)
    requests: deque[str] = field(default_factory=lambda: deque(maxlen=10_000))
    tokens_seen: set[str] = field(default_factory=set)
    _mishaps: dict[str, list[_Mishap]] = field(default_factory=dict)
    _server: ThreadingHTTPServer | None = None

    @property
    def url(self) -> str:
        """Endpoint on the loopback interface."""
        assert self._server is not None
        return f"http://127.0.0.1:{self._server.server_address[1]}"

    def fail(self, model: str, status: int, *, times: int = 1_000_000) -> None:
        """The next `times` answers about a model are errors of that status."""
        self._mishaps.setdefault(model, []).append(
            _Mishap(file=None, status=status, cut_after_bytes=0, times=times)
        )

    def cut(self, model: str, file: str, *, after_bytes: int, times: int = 1) -> None:
        """The next `times` transfers of a file end after some bytes."""
        self._mishaps.setdefault(model, []).append(
            _Mishap(file=file, status=None, cut_after_bytes=after_bytes, times=times)
        )

    def mishap(self, model: str, *, file: str | None, is_body: bool) -> _Mishap | None:
        """Takes the mishap that is due, if one is."""
        for mishap in self._mishaps.get(model, []):
            due = mishap.file is None or (mishap.file == file and is_body)
            if due and mishap.times > 0:
                mishap.times -= 1
                return mishap
        return None

    def __enter__(self) -> Self:
        handler = type("Handler", (_Handler,), {"server_hub": self})
        self._server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        value: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        assert self._server is not None
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    server_hub: ModelHubServer
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        self._route()

    def do_HEAD(self) -> None:
        self._route()

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Silence: tests read `requests`."""

    def _route(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.server_hub.requests.append(f"{self.command} {path}")
        if found := _API.fullmatch(path):
            self._describe(found["model"], found["what"], found["rev"])
        elif found := _RESOLVE.fullmatch(path):
            self._resolve(found["model"], found["rev"], found["file"])
        else:
            self._error(404)

    def _describe(self, model: str, what: str, revision: str) -> None:
        if model in self.server_hub.renames:
            now = self.server_hub.renames[model]
            self._redirect(f"/api/models/{now}/{what}/{revision}?{urlsplit(self.path).query}")
            return
        repo = self._repo(model, revision, file=None)
        if repo is None:
            return
        if what == "tree":
            tree = [
                {"type": "file", "path": name, "size": len(content), "oid": "0" * 40}
                for name, content in repo.files.items()
            ]
            self._json(tree)
            return
        self._json(
            {
                "_id": "0" * 24,
                "id": model,
                "sha": repo.sha,
                "private": repo.private,
                "gated": "manual" if repo.gated else False,
                "siblings": [
                    {"rfilename": name, "size": len(content)}
                    for name, content in repo.files.items()
                ],
            }
        )

    def _resolve(self, model: str, revision: str, file: str) -> None:
        if model in self.server_hub.renames:
            now = self.server_hub.renames[model]
            self._redirect(f"/{now}/resolve/{revision}/{file}")
            return
        repo = self._repo(model, revision, file=file)
        if repo is None:
            return
        if file not in repo.files:
            self._error(404, code="EntryNotFound", text="Entry not found")
            return
        content = repo.files[file]
        start = 0
        if found := _RANGE.fullmatch(self.headers.get("Range", "")):
            start = int(found[1])
        body = content[start:]
        self.send_response(206 if start else 200)
        self.send_header("ETag", f'"{hashlib.sha256(content).hexdigest()}"')
        self.send_header("X-Repo-Commit", repo.sha)
        self.send_header("X-Linked-Size", str(len(content)))
        self.send_header("Accept-Ranges", "bytes")
        if start:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command == "HEAD":
            return
        mishap = self.server_hub.mishap(model, file=file, is_body=True)
        if mishap is not None and mishap.status is None:
            self.wfile.write(body[: mishap.cut_after_bytes])
            self.close_connection = True
            return
        self.wfile.write(body)

    def _repo(self, model: str, revision: str, *, file: str | None) -> Repo | None:
        """The model asked for, after the answer was given when there is none to give."""
        mishap = self.server_hub.mishap(model, file=file, is_body=False)
        if mishap is not None and mishap.status is not None:
            self._error(mishap.status)
            return None
        repo = self.server_hub.repos.get(model)
        if repo is None:
            self._error(404)
        elif not self._may_read(repo, file=file):
            # The hub does not tell strangers which private models there are.
            code = "RepoNotFound" if repo.private else "GatedRepo"
            self._error(401, code=code, text="Access to this model is restricted.")
            return None
        elif revision not in {"main", repo.sha}:
            self._error(404, code="RevisionNotFound", text="Invalid rev id")
            return None
        return repo

    def _may_read(self, repo: Repo, *, file: str | None) -> bool:
        token = self.headers.get("Authorization", "").removeprefix("Bearer ")
        self.server_hub.tokens_seen.add(token)
        is_open = not repo.private and (file is None or not repo.gated or not repo.tokens)
        return is_open or token in repo.tokens

    def _json(self, value: object) -> None:
        body = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def _redirect(self, location: str) -> None:
        self.send_response(307)
        self.send_header("Location", location)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _error(self, status: int, *, code: str | None = None, text: str | None = None) -> None:
        usual_code, usual_text = _ERRORS.get(status, ("", "Something went wrong"))
        body = json.dumps({"error": text or usual_text}).encode()
        self.send_response(status)
        if code or usual_code:
            self.send_header("X-Error-Code", code or usual_code)
        self.send_header("X-Error-Message", text or usual_text)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)
