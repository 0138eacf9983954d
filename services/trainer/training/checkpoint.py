"""Checkpoints: two files in one folder that exists whole or not at all.

`state.safetensors` holds the trainable weights and the optimizer's moments, `manifest.json` says
what run and step they belong to and holds the hash of the tensors. The folder is written as
`step-N.partial`, flushed to the disk, and renamed; a `.partial` is always safe to delete.
Random numbers need no room: those of a step are drawn from (seed, step) alone.
"""

import errno
import hashlib
import json
import os
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import msgspec
import torch
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors

from lexicon.faults import Fault, FaultCode
from trainer.domain.loss_curve import LossCurve
from trainer.domain.plan import Places
from trainer.training.snapshot import Snapshot, Tensors

FORMAT_VERSION = 1
STATE_NAME = "state.safetensors"
MANIFEST_NAME = "manifest.json"
FILE_NAMES = (STATE_NAME, MANIFEST_NAME)
PARTIAL_SUFFIX = ".partial"
# A manifest is a few lines, with the longest merge history a hundred KiB; a bigger one is not ours.
MANIFEST_BYTES_MAX = 256 * 1024
# Small enough for the cache of a core, large enough that a system call costs nothing beside it.
PIECE_BYTES = 1 << 20
# No run is as long; a larger number is not one that we have written.
COUNT_MAX = 1 << 48
Count = Annotated[int, msgspec.Meta(ge=0, le=COUNT_MAX)]
# Keys of a manifest that differ from the names of attributes; the format keeps them.
MANIFEST_KEYS = {"continual_schedule": "course"}
# What safetensors and torch raise over a header that is none.
UNREADABLE = (SafetensorError, ValueError, KeyError, TypeError, RuntimeError, OverflowError)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingProgress:
    """The progress of a run: what cannot be computed from the plan and the step.

    Attributes:
        continual_schedule: merges so far; None unless the training is continual.
        losses: the loss curve so far, for the adapter's card.
    """

    run: str
    attempt: Count
    fencing_epoch: Count
    step: Count
    fingerprint: str
    micro_batch_size: Annotated[int, msgspec.Meta(ge=1, le=COUNT_MAX)]
    trained_token_count: Count
    latest_validation_loss: float | None = None
    best_validation_loss: float | None = None
    validations_without_gain: Count = 0
    continual_schedule: dict[str, Any] | None = None
    losses: dict[str, Any] | None = None


def root_of(places: Places) -> Path:
    """The folder of a run's checkpoints."""
    return Path(places.work_folder) / "checkpoints"


def write(root: Path, progress: TrainingProgress, tensors: Tensors) -> Path:
    """The folder of a new checkpoint under `root`, durable when this returns.

    Raises:
        Fault: STATE_CHECKPOINT_INVALID when the disk refuses; older checkpoints are untouched.
    """
    snapshot = Snapshot()
    snapshot.take({}, tensors)
    return store(root, progress, snapshot.parts())


def store(root: Path, progress: TrainingProgress, state: Sequence[memoryview]) -> Path:
    """The folder of a new checkpoint under `root`, durable when this returns.

    Args:
        state: the bytes of the tensors' file, in parts.
    Raises:
        Fault: STATE_CHECKPOINT_INVALID when the disk refuses; older checkpoints are untouched.
    """
    target = root / f"step-{progress.step:08d}"
    partial = target.with_name(target.name + PARTIAL_SUFFIX)
    try:
        root.mkdir(parents=True, exist_ok=True)
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir()
        sha256 = _write_durably(partial / STATE_NAME, state)
        manifest = {
            "format_version": FORMAT_VERSION,
            "progress": _renamed(asdict(progress), MANIFEST_KEYS),
            "files": {
                STATE_NAME: {"sha256": sha256, "size_bytes": sum(len(part) for part in state)}
            },
        }
        text = json.dumps(manifest, indent=2).encode()
        _write_durably(partial / MANIFEST_NAME, [memoryview(text)])
        _flush_folder(partial)
        if target.exists():
            # The same step comes again after a resume. A folder never loses its files under a name
            # that promises a whole one.
            replaced = target.with_name(f"{target.name}.replaced{PARTIAL_SUFFIX}")
            target.rename(replaced)
            shutil.rmtree(replaced)
        partial.rename(target)
        _flush_folder(root)
    except OSError as error:
        shutil.rmtree(partial, ignore_errors=True)
        raise _unwritable(error, progress.step) from error
    return target


def read(
    folder: Path, *, run: str, fingerprint: str
) -> tuple[TrainingProgress, dict[str, torch.Tensor]]:
    """A whole checkpoint of this run, every byte checked against its manifest.

    Raises:
        Fault: STATE_CHECKPOINT_INVALID for anything but a whole checkpoint of the same run, in
            words that say what is wrong with it.
    """
    try:
        names = sorted(path.name for path in folder.iterdir())
        if names != sorted(FILE_NAMES):
            raise _invalid(folder, f"it must hold {' and '.join(FILE_NAMES)}, but holds {names}")
        manifest = _manifest(folder)
        entry = manifest.files[STATE_NAME]
        size_bytes = (folder / STATE_NAME).stat().st_size
        if size_bytes != entry.size_bytes:
            why = f"{STATE_NAME} has {size_bytes} bytes, and not {entry.size_bytes}"
            raise _invalid(folder, why)
        state = (folder / STATE_NAME).read_bytes()
    except OSError as error:
        raise _invalid(folder, f"it cannot be read: {error.strerror}") from error
    if hashlib.sha256(state).hexdigest() != entry.sha256:
        raise _invalid(folder, f"{STATE_NAME} does not match its hash")
    progress = manifest.progress
    if progress.run != run or progress.fingerprint != fingerprint:
        raise _invalid(folder, "it belongs to another run or configuration")
    try:
        tensors = load_tensors(state)
    except UNREADABLE as error:
        first = next(iter(str(error).splitlines()), "")
        why = f"{STATE_NAME} holds no tensors: {type(error).__name__} {first:.200}"
        raise _invalid(folder, why) from error
    return progress, tensors


def remove_partials(root: Path) -> int:
    """Delete what an interrupted write left behind; how many there were."""
    partials = list(root.glob(f"*{PARTIAL_SUFFIX}"))
    for partial in partials:
        shutil.rmtree(partial, ignore_errors=True)
    return len(partials)


class _Entry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A file as the manifest knows it."""

    sha256: str
    size_bytes: Count


class _Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """The manifest, every field of its kind."""

    format_version: int
    progress: TrainingProgress
    files: dict[str, _Entry]


def _manifest(folder: Path) -> _Manifest:
    path = folder / MANIFEST_NAME
    if path.stat().st_size > MANIFEST_BYTES_MAX:
        raise _invalid(folder, "the manifest is too long")
    try:
        document = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise _invalid(folder, f"the manifest is no JSON: {error}") from error
    # Another version may name and nest its fields in another way: this comes before all else.
    if not isinstance(document, dict) or document.get("format_version") != FORMAT_VERSION:
        raise _invalid(folder, "its format is not known")
    if isinstance(document.get("progress"), dict):
        names = {key: name for name, key in MANIFEST_KEYS.items()}
        document["progress"] = _renamed(document["progress"], names)
    try:
        manifest = msgspec.convert(document, _Manifest)
        LossCurve.of(manifest.progress.losses)
    except (msgspec.ValidationError, ValueError) as error:
        raise _invalid(folder, f"the manifest is not sound: {error}") from error
    unknown = document["progress"].keys() - {field.name for field in fields(TrainingProgress)}
    if unknown:
        # It means something that training would have to continue with.
        raise _invalid(folder, f"the manifest holds what nobody knows: {sorted(unknown)}")
    if manifest.files.keys() != {STATE_NAME}:
        raise _invalid(folder, f"the manifest names {sorted(manifest.files)}, not {STATE_NAME}")
    return manifest


def _renamed(document: Mapping[str, Any], names: Mapping[str, str]) -> dict[str, Any]:
    return {names.get(key, key): value for key, value in document.items()}


def _write_durably(path: Path, parts: Sequence[memoryview]) -> str:
    """The sha256 of the file's content, which is on the disk when this returns.

    Hashing and writing let other threads run, and each piece is hashed while it is in the cache.
    """
    digest = hashlib.sha256()
    with path.open("wb", buffering=0) as file:
        for part in parts:
            for begin in range(0, len(part), PIECE_BYTES):
                piece = part[begin : begin + PIECE_BYTES]
                digest.update(piece)
                while piece:
                    piece = piece[file.write(piece) :]
        os.fsync(file.fileno())
    return digest.hexdigest()


def _flush_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _invalid(folder: Path, why: str) -> Fault:
    return Fault(
        FaultCode.STATE_CHECKPOINT_INVALID,
        f"Checkpoint {folder.name} cannot be used: {why}",
        checkpoint=folder.name,
    )


def _unwritable(error: OSError, step: int) -> Fault:
    cause = "the disk is full" if error.errno == errno.ENOSPC else str(error)
    return Fault(
        FaultCode.STATE_CHECKPOINT_INVALID,
        f"The checkpoint of step {step} could not be written: {cause}",
        step=step,
        errno=error.errno or 0,
    )
