"""An Ollama server in this process: a real HTTP server with the part of its API that registers.

It keeps blobs by their digests and refuses others, makes models only of GGUF blobs that it has,
streams its statuses line by line, and can be told to fail as servers fail. What goes wrong before
the first status is an HTTP status, what goes wrong later a line of an answer with status 200.

Source: Ollama's docs/api.md and docs/modelfile.md, and how its server answers (server/create.go and
server/routes.go of 0.34).
"""

import hashlib
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

DIGEST = re.compile(r"sha256[:-][0-9a-fA-F]{64}")
# Host, namespace, model and tag with their lengths; only a host has colons, no namespace has dots.
NAME = re.compile(
    r"((\w[\w.:-]{0,349}/)?\w[\w-]{0,79}/)?\w[\w.-]{0,79}(:\w[\w.-]{0,79})?", re.ASCII
)
NO_ADAPTERS_SINCE = (0, 34, 1)


@dataclass(slots=True, kw_only=True)
class Ollama:
    """What the server has, what reached it, and what it does wrong.

    Attributes:
        blobs: contents by digest.
        models: creation requests by name of the model.
        facts: `model_info` of models that it has without having made them.
        library: the same of models that it can pull.
        requests: method and path of each, in order.
        busy_count: so many requests are answered with 503.
        cut_uploads: so many uploads are cut off in the middle.
        cut_streams: so many streams of a creation end before their success.
        create_error: said in the stream of each creation, after its first status.
        refusal: HTTP status and text with which each creation is refused.
        version: what it says of itself; newer ones take no adapters.
    """

    blobs: dict[str, bytes] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    facts: dict[str, dict[str, Any]] = field(default_factory=dict)
    library: dict[str, dict[str, Any]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    busy_count: int = 0
    cut_uploads: int = 0
    cut_streams: int = 0
    create_error: str = ""
    refusal: tuple[int, str] | None = None
    version: str = "0.15.0"
    url: str = ""

    @property
    def takes_adapters(self) -> bool:
        """Whether models may be made of a base and an adapter."""
        return tuple(int(part) for part in self.version.split(".")) < NO_ADAPTERS_SINCE

    def count(self, method: str, path: str = "") -> int:
        """How many requests of this method, and path where it is given, came."""
        return sum(request.startswith(f"{method} {path}") for request in self.requests)


@contextmanager
def an_ollama(ollama: Ollama) -> Iterator[Ollama]:
    """The server on a free port of this machine."""
    handler = type("Handler", (_Handler,), {"ollama": ollama})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    ollama.url = f"http://127.0.0.1:{server.server_address[1]}"
    serving = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    serving.start()
    try:
        yield ollama
    finally:
        server.shutdown()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    ollama: Ollama
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:
        if self._is_busy():
            return
        digest = self.path.rpartition("/")[2]
        if not DIGEST.fullmatch(digest):
            self._answer(400)
            return
        self._answer(200 if digest in self.ollama.blobs else 404)

    def do_GET(self) -> None:
        if self._is_busy():
            return
        if self.path == "/api/version":
            self._answer(200, {"version": self.ollama.version})
        else:
            self._answer(404, {"error": "not found"})

    def do_POST(self) -> None:
        if self.path.startswith("/api/blobs/"):
            self._take_blob(self.path.rpartition("/")[2])
            return
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if self._is_busy():
            return
        match self.path:
            case "/api/show":
                self._show(body["model"])
            case "/api/pull":
                self._pull(body["model"])
            case "/api/create":
                self._create(body)
            case _:
                self._answer(404, {"error": "not found"})

    def log_message(self, *_args: Any) -> None:
        """Say nothing."""

    def _take_blob(self, digest: str) -> None:
        size = int(self.headers["Content-Length"])
        if self.ollama.cut_uploads > 0:
            self.ollama.cut_uploads -= 1
            self.ollama.requests.append(f"POST {self.path}")
            self.rfile.read(size // 2)
            self.connection.close()
            self.close_connection = True
            return
        content = self.rfile.read(size)
        if self._is_busy():
            return
        found = f"sha256:{hashlib.sha256(content).hexdigest()}"
        if not DIGEST.fullmatch(digest):
            self._answer(400, {"error": "invalid digest format"})
            return
        if digest in self.ollama.blobs:
            self._answer(200)
            return
        if found != digest:
            self._answer(400, {"error": f'digest mismatch, expected "{digest}", got "{found}"'})
            return
        self.ollama.blobs[digest] = content
        self._answer(201)

    def _show(self, model: str) -> None:
        facts = self.ollama.facts.get(model)
        if facts is None:
            self._answer(404, {"error": f"model '{model}' not found"})
        else:
            self._answer(200, {"model_info": facts})

    def _pull(self, model: str) -> None:
        if model not in self.ollama.library:
            self._stream([{"status": "pulling manifest"}, {"error": "file does not exist"}])
            return
        self.ollama.facts[model] = self.ollama.library[model]
        self._stream([{"status": "pulling manifest"}, {"status": "success"}])

    def _create(self, body: dict[str, Any]) -> None:
        if self.ollama.refusal:
            status, text = self.ollama.refusal
            self._answer(status, {"error": text})
            return
        if problem := self._problem_of(body):
            self._answer(400, {"error": problem})
            return
        needed = [*body.get("files", {}).values(), *body.get("adapters", {}).values()]
        if any(not self.ollama.blobs[digest].startswith(b"GGUF") for digest in needed):
            self._stream([{"status": "parsing GGUF"}, {"error": "invalid file magic"}])
            return
        if self.ollama.create_error:
            self._stream([{"status": "parsing GGUF"}, {"error": self.ollama.create_error}])
            return
        statuses = [{"status": "parsing GGUF"}]
        statuses += [{"status": f"using existing layer {digest}"} for digest in needed]
        if self.ollama.cut_streams > 0:
            self.ollama.cut_streams -= 1
            self._stream(statuses)
            return
        self.ollama.models[body["model"]] = body
        self._stream([*statuses, {"status": "writing manifest"}, {"status": "success"}])

    def _problem_of(self, body: dict[str, Any]) -> str:
        """What is wrong with a request before any work, "" for a sound one."""
        files, adapters = body.get("files") or {}, body.get("adapters") or {}
        for path in (*files, *adapters):
            parts = path.split("/")
            if not all(parts) or {".", ".."} & set(parts) or "\\" in path or ":" in path:
                return f"file path must be relative: {path}"
        if adapters and not self.ollama.takes_adapters:
            return "LoRA adapters are no longer supported"
        if not NAME.fullmatch(body.get("model", "")):
            return "invalid model name"
        if (body.get("parameters") or {}).get("typical_p") is not None:
            return "typical_p is deprecated and cannot be set as a model parameter"
        for path, digest in (files | adapters).items():
            if digest not in self.ollama.blobs:
                return f"blob not found for {path} (digest {digest})"
        if not files and not body.get("from"):
            return "neither 'from' or 'files' was specified"
        return ""

    def _is_busy(self) -> bool:
        self.ollama.requests.append(f"{self.command} {self.path}")
        if self.ollama.busy_count > 0:
            self.ollama.busy_count -= 1
            self._answer(503, {"error": "server busy, please try again"})
            return True
        return False

    def _stream(self, documents: list[dict[str, str]]) -> None:
        self.send_response(200)
        self.send_header("Content-Type", "application/x-ndjson")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for document in documents:
            line = json.dumps(document).encode() + b"\n"
            # Split, as a network splits.
            for part in (line[:7], line[7:]):
                self.wfile.write(b"%x\r\n%s\r\n" % (len(part), part))
                self.wfile.flush()
        self.wfile.write(b"0\r\n\r\n")

    def _answer(self, status: int, document: dict[str, Any] | None = None) -> None:
        content = b"" if document is None else json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)
