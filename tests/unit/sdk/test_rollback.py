"""The way back to any run of a multi-run, and how a user asks for one and sees it."""

import hashlib
import io
import json
import zipfile
from collections.abc import Iterator
from io import StringIO
from pathlib import Path

import pytest
from rich.console import Console
from typer.testing import CliRunner

from tests.support.platform_double import Script, a_file, a_platform
from tunesmith import AsyncClient, Client, credentials
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.api.event.v1 import event_pb2
from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli import session
from tunesmith.cli.live import follow
from tunesmith.cli.main import app
from tunesmith.cli.run_page import show_run
from tunesmith.credentials import Credentials
from tunesmith.errors import ConflictError, LimitError, NotFoundError

SIX = [
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
]


def an_archive(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def a_history(weights: dict[int, bytes], *, refused: tuple[int, ...] = ()) -> bytes:
    digests = {n: hashlib.sha256(content).hexdigest() for n, content in weights.items()}
    runs = [{"number": n, "sha256": digests.get(n, "")} for n in sorted({*weights, *refused})]
    files = {"history.json": json.dumps({"run": "r1", "runs": runs}).encode()}
    for number, content in weights.items():
        files[f"run-{number:03d}/adapter_config.json"] = b"{}"
        files[f"run-{number:03d}/adapter_model.safetensors"] = content
    return an_archive(files)


def a_script(merges: bytes | None) -> Script:
    lora = an_archive({name: f"last {name}".encode() for name in SIX})
    files = [a_file(lora, file_name="r1-lora.zip")]
    if merges is not None:
        kind = artifact_pb2.ARTIFACT_KIND_MERGE_HISTORY
        files.append(a_file(merges, file_name="r1-merges.zip", kind=kind))
    return Script(files=files)


@pytest.fixture
def multi_run() -> Iterator[Credentials]:
    merges = a_history({1: b"first", 2: b"second", 4: b"last"}, refused=(3,))
    with a_platform(a_script(merges)) as mine:
        yield mine


def test_the_adapter_of_a_run_is_the_same_archive_with_its_weights(
    multi_run: Credentials, tmp_path: Path
) -> None:
    """001-35: the set of files does not change"""
    with Client(multi_run) as client:
        path = client.artifacts.rollback("r1", 2, tmp_path)
    assert path == tmp_path / "r1-lora-run-002.zip"
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.namelist() == SIX
        assert archive.read("adapter_model.safetensors") == b"second"
        assert archive.read("tokenizer.json") == b"last tokenizer.json"
        card = archive.read("README.md").decode()
    assert card.startswith("last README.md")
    assert "These are the weights after run 2 of 4." in card
    left = sorted(found.name for found in tmp_path.iterdir())
    assert left == ["r1-lora-run-002.zip", "r1-lora.zip", "r1-merges.zip"]


async def test_the_async_client_goes_back_too(multi_run: Credentials, tmp_path: Path) -> None:
    async with AsyncClient(multi_run) as client:
        path = await client.artifacts.rollback("r1", 1, tmp_path)
    assert zipfile.ZipFile(path).read("adapter_model.safetensors") == b"first"


@pytest.mark.parametrize("number", [3, 5])
def test_a_run_without_an_adapter_names_those_with_one(
    multi_run: Credentials, tmp_path: Path, number: int
) -> None:
    with (
        Client(multi_run) as client,
        pytest.raises(NotFoundError, match=r"no adapter of run \d; it has those of 1, 2, 4"),
    ):
        client.artifacts.rollback("r1", number, tmp_path)
    assert not list(tmp_path.glob("*run-*"))


def test_an_ordinary_run_has_no_way_back(tmp_path: Path) -> None:
    with (
        a_platform(a_script(None)) as mine,
        Client(mine) as client,
        pytest.raises(NotFoundError, match="its run was no multi-run"),
    ):
        client.artifacts.rollback("r1", 1, tmp_path)


@pytest.mark.parametrize("what", ["digest", "zip", "history", "member"])
def test_a_history_that_is_not_whole_is_refused(tmp_path: Path, what: str) -> None:
    broken = {
        "digest": a_history({1: b"first"}).replace(b"first", b"worse"),
        "zip": b"no archive",
        "history": an_archive({"history.json": b"[]"}),
        "member": an_archive({"history.json": b'{"runs": [{"number": 1, "sha256": "aa"}]}'}),
    }[what]
    with (
        a_platform(a_script(broken)) as mine,
        Client(mine) as client,
        pytest.raises(ConflictError, match="STORAGE_CHECKSUM_MISMATCH"),
    ):
        client.artifacts.rollback("r1", 1, tmp_path)
    assert not list(tmp_path.glob("*run-*"))


def test_a_folder_that_cannot_be_written_is_said(multi_run: Credentials, tmp_path: Path) -> None:
    (tmp_path / "r1-lora-run-001.zip.partial").mkdir()
    with Client(multi_run) as client, pytest.raises(LimitError, match="STORAGE_FULL"):
        client.artifacts.rollback("r1", 1, tmp_path)


def test_the_command_line_goes_back_and_asks_for_runs(tmp_path: Path) -> None:
    """002-17: the option is the one that the refusal names"""
    script = a_script(a_history({1: b"first"}))
    with a_platform(script) as mine:
        file = tmp_path / "credentials.json"
        credentials.save(mine, file)

        def shell(*words: str) -> str:
            session._SETTINGS.as_json = False
            done = CliRunner().invoke(app, ["--credentials", str(file), *words])
            assert done.exit_code == 0, done.output
            return done.output

        said = shell("rollback", "r1", "1", "--to", str(tmp_path / "out"))
        assert "r1-lora-run-001.zip" in said.replace("\n", "")
        shell(
            "run", "submit", "-m", "m", "-d", "habit", "-t", "cpu", "--attest", "--yes",
            "--runs", "5", "--samples", "200", "--request-id", "mine",
        )  # fmt: skip
    multi_run = script.submitted["mine"].spec.training.multi_run
    assert (multi_run.run_count, multi_run.samples_per_run) == (5, 200)


def test_a_watched_run_tells_of_each_merge_once() -> None:
    first, second = (
        run_pb2.RunMerge(number=n, outcome=run_pb2.MERGE_OUTCOME_MERGED, weight=1) for n in (1, 2)
    )
    told = [event_pb2.SamplesRecorded(merges=m) for m in ([first], [first, second])]
    events = [event_pb2.Event(samples_recorded=each) for each in (*told, told[-1])]
    screen = Console(file=StringIO(), width=120)
    for _ in follow(events, name="projects/p/runs/r1", screen=screen):
        pass
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    assert said.count("run 1: merged") == 1
    assert said.count("run 2: merged") == 1


def test_a_run_shows_what_became_of_its_runs() -> None:
    """002-34"""
    run = run_pb2.Run(
        name="projects/p/runs/r1",
        merges=[
            run_pb2.RunMerge(
                number=1, outcome=run_pb2.MERGE_OUTCOME_MERGED, weight=1, loss_begin=3, loss_end=2,
                held_out_loss_before=3.5, held_out_loss_after=2.5,
            ),
            run_pb2.RunMerge(
                number=2, outcome=run_pb2.MERGE_OUTCOME_NOT_FINITE, weight=2**-0.5,
                drift_cosine=0.25, loss_begin=2, loss_end=1,
            ),
        ],
    )  # fmt: skip
    screen = Console(file=StringIO(), width=120)
    show_run(run, screen)
    said = screen.file.getvalue()  # type: ignore[attr-defined]
    assert "merged · λ 1.00 · loss 3.0000 → 2.0000 · held out 3.5000 → 2.5000" in said
    assert "refused: not finite · λ 0.71 · cosine 0.250 · loss 2.0000 → 1.0000" in said
