"""Registration with Ollama, across real HTTP: what is sent, what is not, and how it ends."""

import hashlib
import io
import json
import random
import tracemalloc
import zipfile
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from lexicon.names import ollama_name
from tests.support.ollama_server import Ollama, an_ollama
from tests.support.platform_double import Script, a_file, a_platform
from tests.support.ports import free_port
from tunesmith import credentials
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.cli import session
from tunesmith.cli.main import app
from tunesmith.errors import InputError, TunesmithError, UnavailableError
from tunesmith.ollama.register import register_bundle
from tunesmith.ollama.server import POLICY, Blob, Server, checked_name, server_url
from tunesmith.transport import RetryPolicy

CODE = "DEP_OLLAMA_REGISTRATION_FAILED"
MODEL = b"GGUF" + bytes(range(256)) * 5_000
DIGEST = f"sha256:{hashlib.sha256(MODEL).hexdigest()}"
MODELFILE = (
    'FROM ./model.gguf\n\nTEMPLATE """{{ .Prompt }}\n"""\n\nPARAMETER stop "<|im_end|>"\n'
    "PARAMETER temperature 0.7\nPARAMETER num_ctx 8192\n"
)
# What `ollama create mine -f Modelfile` sends for it.
CREATED = {
    "model": "mine",
    "files": {"model.gguf": DIGEST},
    "template": "{{ .Prompt }}\n",
    "parameters": {"stop": ["<|im_end|>"], "temperature": 0.7, "num_ctx": 8192},
}


def zipped(**members: bytes) -> bytes:
    """An archive like the exporter's: stored."""
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        for name, member in members.items():
            archive.writestr(name.replace("__", "."), member)
    return content.getvalue()


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    path = tmp_path / "r1-gguf.zip"
    path.write_bytes(zipped(model__gguf=MODEL, Modelfile=MODELFILE.encode()))
    return path


@pytest.fixture
def ollama() -> Iterator[Ollama]:
    with an_ollama(Ollama()) as serving:
        yield serving


def a_server(url: str, slept: list[float]) -> Server:
    """A server whose waiting is noted and not done; half of each delay is random and here zero."""
    rng = random.Random()
    rng.random = lambda: 0.0  # type: ignore[method-assign]  # a generator that gives its least
    policy = RetryPolicy(
        tries=POLICY.tries,
        first_seconds=POLICY.first_seconds,
        longest_seconds=POLICY.longest_seconds,
        rng=rng,
    )
    return Server(url, policy=policy, sleep=slept.append)


def test_a_bundle_becomes_the_model_that_its_modelfile_describes(
    ollama: Ollama, bundle: Path
) -> None:
    """001-42: the request is the one that `ollama create -f Modelfile` makes."""
    statuses: list[str] = []
    done = register_bundle(bundle, "mine", Server(ollama.url), on_status=statuses.append)
    assert done.was_sent
    assert ollama.models == {"mine": CREATED}
    assert ollama.blobs == {DIGEST: MODEL}
    assert statuses[-2:] == ["writing manifest", "success"]


def test_a_file_that_is_there_is_not_sent_again(ollama: Ollama, bundle: Path) -> None:
    server = Server(ollama.url)
    register_bundle(bundle, "mine", server)
    again = register_bundle(bundle, "other:v2", server)
    assert not again.was_sent
    assert ollama.count("POST", "/api/blobs") == 1
    assert set(ollama.models) == {"mine", "other:v2"}


def test_a_closed_port_has_its_code_and_its_remedy(bundle: Path) -> None:
    """002-09, 002-10"""
    slept: list[float] = []
    port = free_port()
    with pytest.raises(UnavailableError) as caught:
        a_server(f"http://127.0.0.1:{port}", slept).version()
    error = caught.value
    assert error.code == CODE
    assert f"connection refused 127.0.0.1:{port}" in error.message
    assert error.retryable
    assert "`ollama serve`" in error.remedy
    assert "localhost:11434" in error.remedy


def test_it_is_tried_a_few_times_with_growing_delays(ollama: Ollama, bundle: Path) -> None:
    """002-10: four tries of each call, and at least half a second, one, and two between them."""
    slept: list[float] = []
    ollama.busy_count = 100
    with pytest.raises(UnavailableError) as caught:
        register_bundle(bundle, "mine", a_server(ollama.url, slept))
    assert caught.value.code == CODE
    assert "server busy" not in caught.value.message  # a HEAD has no text
    assert slept == [0.5, 1.0, 2.0]
    assert len(ollama.requests) == 4
    assert not ollama.models


@pytest.mark.parametrize(
    ("trouble", "sleeps"),
    [({"busy_count": 3}, 3), ({"cut_uploads": 2}, 2), ({"cut_streams": 1}, 1)],
)
def test_what_passes_is_overcome(
    ollama: Ollama, bundle: Path, trouble: dict[str, int], sleeps: int
) -> None:
    """002-10: busy, dead in the middle of an upload, dead in the middle of a creation."""
    for name, count in trouble.items():
        setattr(ollama, name, count)
    slept: list[float] = []
    progress: list[int] = []
    register_bundle(bundle, "mine", a_server(ollama.url, slept), on_file=lambda *_: progress.append)
    assert ollama.models == {"mine": CREATED}
    assert len(slept) == sleeps
    # Read once to know its digest and sent once; what was sent in vain was taken back.
    assert sum(progress) == 2 * len(MODEL)


def test_what_ollama_refuses_is_not_tried_again(ollama: Ollama, bundle: Path) -> None:
    slept: list[float] = []
    ollama.refusal = (400, "template error: unexpected EOF")
    with pytest.raises(InputError, match="template error: unexpected EOF") as caught:
        register_bundle(bundle, "mine", a_server(ollama.url, slept))
    assert caught.value.code == CODE
    assert slept == []


def test_an_error_inside_the_stream_is_an_error(ollama: Ollama, bundle: Path) -> None:
    slept: list[float] = []
    ollama.create_error = "no space left on device"
    with pytest.raises(UnavailableError, match="no space left on device"):
        register_bundle(bundle, "mine", a_server(ollama.url, slept))
    assert len(slept) == 3


def test_a_file_that_changed_on_the_way_is_refused_by_its_digest(ollama: Ollama) -> None:
    blob = Blob(
        file_name="model.gguf",
        sha256="0" * 64,
        size_bytes=len(MODEL),
        open=lambda: closing(io.BytesIO(MODEL)),
    )
    with pytest.raises(InputError, match="digest mismatch"):
        Server(ollama.url).push(blob)
    assert not ollama.blobs


def test_a_large_file_is_streamed(ollama: Ollama, tmp_path: Path) -> None:
    path = tmp_path / "big.gguf"
    size = 48 << 20
    with path.open("wb") as file:
        file.truncate(size)
    sha = hashlib.sha256(bytes(size)).hexdigest()
    largest = 0

    @contextmanager
    def opened() -> Iterator[io.BufferedReader]:
        with path.open("rb") as file:
            yield file

    def sent(_count: int) -> None:
        nonlocal largest
        largest = max(largest, tracemalloc.get_traced_memory()[0])

    # The server of this test keeps the whole blob in memory; what comes on top is ours.
    tracemalloc.start()
    Server(ollama.url).push(
        Blob(file_name="big.gguf", sha256=sha, size_bytes=size, open=opened), sent
    )
    tracemalloc.stop()
    assert len(ollama.blobs[f"sha256:{sha}"]) == size
    assert largest < 2 * size


@pytest.mark.parametrize(
    ("text", "environment", "url"),
    [
        ("", "", "http://localhost:11434"),
        ("", "0.0.0.0", "http://127.0.0.1:11434"),
        ("", "[::]:1234", "http://[::1]:1234"),
        ("", "box", "http://box:11434"),
        ("", "https://box/ollama/", "https://box:443/ollama"),
        ("10.0.0.2:5", "box", "http://10.0.0.2:5"),
    ],
)
def test_the_address_is_read_as_ollama_reads_it(text: str, environment: str, url: str) -> None:
    assert server_url(text, environ={"OLLAMA_HOST": environment}) == url


@pytest.mark.parametrize("text", ["ftp://box", "http://me:pw@box", "box:port", "http://box?x=1"])
def test_other_addresses_are_refused(text: str) -> None:
    with pytest.raises(InputError):
        server_url(text)


@pytest.mark.parametrize("name", ["", "../etc", "a b", "a/b/c/d", "-x", "mine\n", "ü", "a" * 81])
def test_names_are_data(name: str) -> None:
    with pytest.raises(InputError):
        checked_name(name)


@pytest.mark.parametrize(
    ("base", "run", "name"),
    [
        ("tunesmith/anvil-3m", "projects/p/runs/019a-Bc", "anvil-3m-019a-bc"),
        (
            "Qwen/Qwen2.5-0.5B-Instruct",
            "projects/p/runs/run_0123456789abcdef",
            "qwen2.5-0.5b-instruct-89abcdef",
        ),
        ("///", "projects/p/runs/x", "model-x"),
        ("o/m", "projects/p/runs/a-1234567", "m-1234567"),
        ("o/m", "", "m"),
        # The longest name that the hub allows; Ollama takes 80 characters.
        ("o/" + "n" * 96, "projects/p/runs/0123456789abcdef", "n" * 71 + "-89abcdef"),
        (
            "o/" + "n" * 70 + "." + "m" * 25,
            "projects/p/runs/0123456789abcdef",
            "n" * 70 + "-89abcdef",
        ),
        ("o/" + "n" * 96, "", "n" * 79),
    ],
)
def test_ollama_takes_the_name_of_a_run_s_model(base: str, run: str, name: str) -> None:
    assert checked_name(ollama_name(base, run)) == name


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"PK\x03\x04 nothing",
        zipped(model__gguf=MODEL),
        zipped(Modelfile=MODELFILE.encode()),
        zipped(Modelfile=b"FROM /etc/passwd", model__gguf=MODEL),
        zipped(Modelfile=b"FROM ./model.gguf\nADAPTER ./x", model__gguf=MODEL, x=b""),
        zipped(Modelfile=b"\xff\xfe", model__gguf=MODEL),
        zipped(model__gguf=MODEL, Modelfile=MODELFILE.encode()).replace(MODEL[:64], b"x" * 64),
    ],
)
def test_a_damaged_bundle_is_refused(ollama: Ollama, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "b.zip"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        register_bundle(path, "mine", Server(ollama.url))
    assert caught.value.code == CODE
    assert not ollama.models


class Shell:
    """The command line before a platform and an Ollama."""

    def __init__(self, folder: Path, ollama: Ollama) -> None:
        self.folder, self.ollama = folder, ollama

    def __call__(self, *words: str, sleep: Callable[[float], None] | None = None) -> Result:
        session._SETTINGS.as_json = False
        given = ["--credentials", str(self.folder / "credentials.json"), "pull", "r1"]
        to = ["--to", str(self.folder / "out")]
        runner = CliRunner(env={"OLLAMA_HOST": self.ollama.url})
        return runner.invoke(app, [*given, *to, *words], obj=sleep)


@pytest.fixture
def script(bundle: Path) -> Script:
    gguf = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
    files = [
        a_file(b"an adapter", file_name="r1-lora.zip"),
        a_file(bundle.read_bytes(), file_name="r1-q4_k_m.zip", kind=gguf, quantization="Q4_K_M"),
    ]
    return Script(files=files)


@pytest.fixture
def shell(script: Script, ollama: Ollama, tmp_path: Path) -> Iterator[Shell]:
    with a_platform(script) as mine:
        credentials.save(mine, tmp_path / "credentials.json")
        yield Shell(tmp_path, ollama)


def test_pull_registers_what_it_downloads(shell: Shell, tmp_path: Path) -> None:
    done = shell("--ollama")
    assert done.exit_code == 0, done.output
    assert set(shell.ollama.models) == {"anvil-3m-r1"}
    assert "ollama run anvil-3m-r1" in done.stderr
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["r1-q4_k_m.zip"]
    named = shell("--ollama", "mine", "--json")
    assert json.loads(named.stdout)["ollama"] == {
        "model": "mine",
        "url": shell.ollama.url,
        "sent": False,
    }
    assert shell.ollama.models["mine"] == CREATED


def test_nothing_is_downloaded_when_ollama_is_away(shell: Shell, script: Script) -> None:
    """002-09, 002-10"""
    waits: list[float] = []
    words = ("--ollama", "--ollama-url", f"http://127.0.0.1:{free_port()}")
    done = shell(*words, sleep=waits.append)
    assert done.exit_code == UnavailableError.exit_code == 8
    assert CODE in done.stderr
    assert "ollama serve" in " ".join(done.stderr.split())
    assert len(waits) == POLICY.tries - 1
    assert waits == sorted(waits)
    assert script.ranges == []


@pytest.mark.parametrize("version", ["0.34.1", "0.35.0", "1.0.0-rc0"])
def test_an_ollama_that_takes_no_adapters_is_told_of_before_any_download(
    shell: Shell, script: Script, version: str
) -> None:
    """The merged model is what such a server takes, and the next step says so."""
    shell.ollama.version = version
    done = shell("--ollama", "--adapter", "--base", "llama3.2:1b")
    assert done.exit_code == InputError.exit_code
    assert CODE in done.stderr
    assert "tunesmith artifact export" in " ".join(done.stderr.split())
    assert script.ranges == []
    assert shell("--ollama").exit_code == 0


def test_a_server_that_only_says_it_when_asked_gives_the_same_next_step(ollama: Ollama) -> None:
    ollama.version = "0.34.1"
    with pytest.raises(InputError) as caught:
        Server(ollama.url).create({"model": "m", "from": "b", "adapters": {"a.gguf": DIGEST}})
    assert caught.value.code == CODE
    assert "tunesmith artifact export" in caught.value.remedy
    assert ollama.count("POST", "/api/create") == 1


def test_of_several_types_one_is_named(shell: Shell, script: Script, bundle: Path) -> None:
    gguf = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
    script.files.append(
        a_file(bundle.read_bytes(), file_name="r1-q8_0.zip", kind=gguf, quantization="Q8_0")
    )
    refused = shell("--ollama")
    assert refused.exit_code == InputError.exit_code
    assert "--quantization" in refused.stderr
    assert shell("--ollama", "--quantization", "q8_0").exit_code == 0
    missing = shell("--ollama", "--quantization", "Q2_K")
    assert missing.exit_code == 4
    assert "Q4_K_M, Q8_0" in " ".join(missing.stderr.split())


def test_an_adapter_alone_needs_its_base_named(shell: Shell) -> None:
    for words in (("--adapter",), ("--ollama", "--adapter"), ("--base", "b")):
        refused = shell(*words)
        assert refused.exit_code == InputError.exit_code
        assert isinstance(refused.exception, SystemExit | TunesmithError)
