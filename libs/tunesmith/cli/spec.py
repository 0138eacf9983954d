"""Options of a submission, shared by every command that takes a spec."""

from __future__ import annotations

import functools
import inspect
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, get_type_hints

import typer
from google.protobuf.json_format import ParseDict, ParseError

from tunesmith.api.run.v1 import spec_pb2
from tunesmith.errors import InputError


@dataclass(frozen=True, slots=True, kw_only=True)
class SpecFlags:
    """The options of a submission as typed."""

    spec_file: Annotated[
        Path | None,
        typer.Option("--spec", help="RunSpec as JSON; the other options change parts of it."),
    ] = None
    base_model: Annotated[
        str, typer.Option("--base-model", "-m", help="Catalog id, hub id org/name or hub URL.")
    ] = ""
    dataset: Annotated[
        list[str] | None,
        typer.Option("--dataset", "-d", help="Dataset, or dataset@version; may come again."),
    ] = None
    tier: Annotated[str, typer.Option("--tier", "-t", help="GPU tier, for example cpu.")] = ""
    backend: Annotated[str, typer.Option(help="auto, cuda, cpu or mlx. Default auto.")] = ""
    method: Annotated[str, typer.Option(help="sft, dpo, orpo, kto or simpo. Default sft.")] = ""
    max_steps: Annotated[int | None, typer.Option(help="Optimizer steps.")] = None
    epochs: Annotated[int | None, typer.Option(help="Passes over the data.")] = None
    batch_size: Annotated[int | None, typer.Option(help="Examples per forward pass.")] = None
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None
    max_sequence_tokens: Annotated[int | None, typer.Option(help="Longest example.")] = None
    seed: Annotated[int | None, typer.Option(help="Seed of everything random.")] = None
    rank: Annotated[int | None, typer.Option(help="Rank of the adapter.")] = None
    alpha: Annotated[float | None, typer.Option(help="Alpha of the adapter.")] = None
    target: Annotated[
        list[str] | None, typer.Option(help="Module with an adapter, or all-linear.")
    ] = None
    runs: Annotated[
        int | None,
        typer.Option(help="Train in so many runs, each on samples of its own, merged by SLAO."),
    ] = None
    samples: Annotated[int | None, typer.Option(help="Fresh samples of each of the --runs.")] = None
    gguf: Annotated[bool | None, typer.Option("--gguf/--no-gguf", help="Make a GGUF.")] = None
    quantization: Annotated[
        list[str] | None, typer.Option("--quantization", "-q", help="For example Q4_K_M.")
    ] = None
    prompt: Annotated[
        list[str] | None, typer.Option(help="Held-out prompt for the samples; may come again.")
    ] = None
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="Any field of RunSpec: training.packing=false"),
    ] = None
    attest: Annotated[
        bool,
        typer.Option(
            "--attest",
            help="I may train on the datasets, and accept the licence of the base model.",
        ),
    ] = False
    waive_refund: Annotated[
        bool,
        typer.Option(help="I know that failures of a model that is not verified are not refunded."),
    ] = False


# Field of SpecFlags to path in RunSpec.
_PATHS = {
    "base_model": "base_model",
    "dataset": "datasets",
    "tier": "gpu_tier",
    "max_steps": "training.max_steps",
    "epochs": "training.epochs",
    "batch_size": "training.micro_batch_size",
    "learning_rate": "training.learning_rate",
    "max_sequence_tokens": "training.max_sequence_tokens",
    "seed": "training.seed",
    "rank": "lora.rank",
    "alpha": "lora.alpha",
    "target": "lora.target_modules",
    "runs": "training.multi_run.run_count",
    "samples": "training.multi_run.samples_per_run",
    "gguf": "export.gguf",
    "quantization": "export.quantizations",
    "prompt": "sample_prompts",
}


def takes_spec(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the options of SpecFlags; it receives them as its argument `flags`."""
    own = inspect.signature(command)
    hints = get_type_hints(SpecFlags, include_extras=True)
    shared = [
        inspect.Parameter(
            field.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=field.default,
            annotation=hints[field.name],
        )
        for field in fields(SpecFlags)
    ]
    names = {parameter.name for parameter in shared}

    @functools.wraps(command)
    def with_flags(**values: Any) -> None:
        flags = SpecFlags(**{name: values.pop(name) for name in names})
        command(flags=flags, **values)

    own_hints = get_type_hints(command, include_extras=True)
    rest = [
        parameter.replace(annotation=own_hints[name], kind=inspect.Parameter.KEYWORD_ONLY)
        for name, parameter in own.parameters.items()
        if name != "flags"
    ]
    signature = own.replace(parameters=[*rest, *shared], return_annotation=None)
    with_flags.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
    with_flags.__annotations__ = {p.name: p.annotation for p in signature.parameters.values()}
    return with_flags


def to_spec(flags: SpecFlags) -> spec_pb2.RunSpec:
    """The spec that the options describe.

    Raises:
        InputError: a file or a value cannot be read, or a field does not exist.
    """
    document = _read(flags.spec_file) if flags.spec_file else {}
    for name, path in _PATHS.items():
        value = getattr(flags, name)
        if value not in (None, "", []):
            put(document, path, value)
    for name in ("backend", "method"):
        word = getattr(flags, name)
        if word:
            put(document, f"training.{name}", f"{name}_{word}".upper())
    if flags.attest:
        put(document, "attestations.dataset_rights", True)
        put(document, "attestations.model_license", True)
    if flags.waive_refund:
        put(document, "attestations.refund_waived", True)
    for text in flags.set_ or []:
        path, _, value = text.partition("=")
        put(document, path.strip(), json_value(value))
    if flags.spec_file is None:
        # On the command line both parts are present, even if all their fields take the default.
        document.setdefault("training", {})
        document.setdefault("lora", {})
    try:
        return ParseDict(document, spec_pb2.RunSpec())
    except ParseError as error:
        raise InputError(
            "INPUT_FIELD_INVALID", f"The spec cannot be read: {error}", remedy="Correct the field."
        ) from None


def changes_of(texts: list[str] | None) -> dict[str, str]:
    """Changes for a duplicate: field path to JSON value."""
    pairs = (text.partition("=") for text in texts or [])
    return {path.strip(): json.dumps(json_value(value)) for path, _, value in pairs}


def put(document: dict[str, Any], path: str, value: Any) -> None:
    """Set a field by its dotted path; missing parts of the path are created."""
    *folders, last = path.split(".")
    for folder in folders:
        document = document.setdefault(folder, {})
        if not isinstance(document, dict):
            raise InputError("INPUT_FIELD_INVALID", f"{path} is not a field of a run spec.")
    document[last] = value


def json_value(text: str) -> Any:
    """A JSON value, or the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _read(path: Path) -> dict[str, Any]:
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InputError(
            "INPUT_FIELD_INVALID",
            f"The spec {path} cannot be read: {error}.",
            remedy="Give a JSON file with the fields of RunSpec.",
        ) from None
    if not isinstance(document, dict):
        raise InputError("INPUT_FIELD_INVALID", f"The spec {path} is not a JSON object.")
    return document
