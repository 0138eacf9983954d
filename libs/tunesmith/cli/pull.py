"""`tunesmith pull …`: download the artifacts of a run, and register them with Ollama."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress
from typer.core import TyperCommand

from lexicon.names import ollama_name
from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.cli import output
from tunesmith.cli.progress import bars
from tunesmith.cli.runs import RunArgument
from tunesmith.cli.session import Json, connected, settings
from tunesmith.client import Client
from tunesmith.errors import InputError, NotFoundError
from tunesmith.names import local_name
from tunesmith.ollama.register import (
    OnFile,
    Registered,
    register_adapter,
    register_bundle,
)
from tunesmith.ollama.server import DEFAULT_URL, Server, checked_name, require_adapters
from tunesmith.transfer import OnBytes

LORA = artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER
GGUF = artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE
OLLAMA_OPTION = "--ollama"


class OptionalName(TyperCommand):
    """A command that accepts `--ollama` without a name: at the end, or before an option."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Give a bare `--ollama` the empty name."""
        followers = [*args[1:], "-"]
        whole = [
            f"{OLLAMA_OPTION}=" if word == OLLAMA_OPTION and follower.startswith("-") else word
            for word, follower in zip(args, followers, strict=False)
        ]
        return super().parse_args(ctx, whole)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Wish:
    """The model to register: the merged model, or the adapter on a base of Ollama's."""

    artifact: artifact_pb2.Artifact
    name: str
    base: str
    quantization: str
    server: Server

    @property
    def kind(self) -> artifact_pb2.ArtifactKind:
        return LORA if self.base else GGUF


def pull(
    *,
    run: RunArgument,
    to: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
    lora: Annotated[bool, typer.Option("--lora", help="Only the adapter.")] = False,
    gguf: Annotated[bool, typer.Option("--gguf", help="Only the GGUF bundle.")] = False,
    quantization: Annotated[
        str, typer.Option(help="Of several GGUF bundles this one, for example Q8_0.")
    ] = "",
    ollama: Annotated[
        str | None,
        typer.Option(
            OLLAMA_OPTION,
            metavar="[NAME]",
            help="Register the model with Ollama, under a name of its own or this one.",
        ),
    ] = None,
    ollama_url: Annotated[
        str, typer.Option(help=f"Ollama's address; default $OLLAMA_HOST or {DEFAULT_URL}.")
    ] = "",
    adapter: Annotated[
        bool, typer.Option("--adapter", help="Register the adapter alone, on --base.")
    ] = False,
    base: Annotated[str, typer.Option(help="Base model of --adapter by its name in Ollama.")] = "",
    json_: Json = False,
) -> None:
    """Download the artifacts of a run, checked by sha256; --ollama also registers the model."""
    quantization = quantization.upper()
    if (adapter or base) and not (adapter and base and ollama is not None):
        raise InputError(
            "INPUT_FIELD_MISSING",
            "An adapter alone needs --ollama, --adapter and --base together.",
            remedy="For example: --ollama --adapter --base llama3.2:1b",
        )
    with connected() as client, bars() as progress:
        wish = None
        if ollama is not None:
            wish = _wish(client, run, ollama, base, quantization, ollama_url)
        kinds = [kind for wanted, kind in ((lora, LORA), (gguf, GGUF)) if wanted]
        if wish is not None and wish.kind not in kinds:
            kinds.append(wish.kind)
        if wish is not None and wish.kind == GGUF:
            quantization = wish.quantization
        paths = client.artifacts.pull(
            run, to, kinds=kinds, quantization=quantization, on_file=_on_download(progress)
        )
        registered = None if wish is None else _register(wish, paths, progress)
    _show(paths, registered)


def rollback(
    *,
    run: RunArgument,
    number: Annotated[int, typer.Argument(help="Run of the multi-run, from 1.", min=1)],
    to: Annotated[Path, typer.Option(help="Folder for the files.")] = Path(),
    json_: Json = False,
) -> None:
    """Download the adapter of a multi-run as it was after one of its runs."""
    with connected() as client, bars() as progress:
        path = client.artifacts.rollback(run, number, to, on_file=_on_download(progress))
    _show([path], None)


def _wish(client: Client, run: str, name: str, base: str, quantization: str, url: str) -> _Wish:
    """Checks the request before gigabytes are downloaded, also that Ollama answers."""
    artifact = client.artifacts.get(run)
    wish = _Wish(
        artifact=artifact,
        name=checked_name(name or ollama_name(artifact.base_model, artifact.run)),
        base=checked_name(base) if base else "",
        quantization="" if base else _one_quantization(artifact, quantization),
        server=Server(url, sleep=settings().sleep),
    )
    version = wish.server.version()
    if base:
        require_adapters(version)
    return wish


def _one_quantization(artifact: artifact_pb2.Artifact, wanted: str) -> str:
    stored = [file.quantization for file in artifact.files if file.kind == GGUF]
    if not stored:
        raise NotFoundError(
            "ARTIFACT_NOT_FOUND",
            f"{artifact.name} has no GGUF bundle.",
            remedy=f"Make one: tunesmith artifact export {output.last_part(artifact.name)}",
            metadata={"artifact": artifact.name},
        )
    if wanted or len(stored) == 1:
        return wanted or stored[0]
    raise InputError(
        "INPUT_FIELD_MISSING",
        f"{artifact.name} has several GGUF bundles: {', '.join(stored)}.",
        remedy=f"Choose one, for example --quantization {stored[0]}",
    )


def _register(wish: _Wish, paths: Sequence[Path], progress: Progress | None) -> Registered:
    file = next(
        file
        for file in wish.artifact.files
        if file.kind == wish.kind and file.quantization == wish.quantization
    )
    path = next(path for path in paths if path.name == local_name(file))
    on_file, on_status = _on_blob(progress), _on_status(progress)
    if wish.base:
        return register_adapter(
            path,
            wish.name,
            wish.base,
            wish.server,
            on_file=on_file,
            on_status=on_status,
        )
    return register_bundle(path, wish.name, wish.server, on_file=on_file, on_status=on_status)


def _show(paths: Sequence[Path], registered: Registered | None) -> None:
    if settings().as_json:
        document: dict[str, Any] = {"files": [str(path) for path in paths]}
        if registered is not None:
            document["ollama"] = {
                "model": registered.name,
                "url": registered.url,
                "sent": registered.was_sent,
            }
        output.print_json(document)
        return
    screen = output.console()
    for path in paths:
        screen.print(f"✔ {path}  {output.bytes_text(path.stat().st_size)}", markup=False)
    if registered is not None:
        screen.print(f"✔ {registered.name} at {registered.url}", style="green3", markup=False)
        hint = f"Try it: ollama run {registered.name}"
        output.error_console().print(hint, style="dim", markup=False)


def _on_download(progress: Progress | None) -> Any:
    def on_file(file: artifact_pb2.ArtifactFile) -> OnBytes | None:
        return _bar(progress, file.file_name, file.size_bytes)

    return on_file


def _on_blob(progress: Progress | None) -> OnFile:
    return lambda does, name, size_bytes: _bar(progress, f"{does} {name}", size_bytes)


def _on_status(progress: Progress | None) -> Any:
    if progress is None:
        return None
    return lambda status: progress.console.print(f"  {status}", style="dim", markup=False)


def _bar(progress: Progress | None, name: str, size_bytes: int) -> OnBytes | None:
    if progress is None:
        return None
    task = progress.add_task(name, total=size_bytes)
    return lambda count: progress.advance(task, count)
