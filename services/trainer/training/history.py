"""The merge history on the disk: the adapter after each merge, and what became of every run.

`merges/run-NNN/` holds an adapter that PEFT loads; `merges/history.json` names the run of the
platform and lists all runs. The folder travels to the object store with the checkpoints, so that
another node can go on with it, and is an artifact of its own in the end.
"""

import errno
import hashlib
import json
import os
import shutil
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import msgspec
from safetensors.torch import save

from lexicon.faults import FaultCode
from trainer.domain.continual import MergeRecord
from trainer.domain.plan import MultiRunPlan, Places
from trainer.training.adapted_model import Tensors
from trainer.training.dataset import Warn

FOLDER_NAME = "merges"
HISTORY_NAME = "history.json"
WEIGHTS_NAME = "adapter_model.safetensors"
CONFIG_NAME = "adapter_config.json"


def folder_of(places: Places) -> Path:
    """Where the history of a run lies."""
    return Path(places.work_folder) / FOLDER_NAME


def file_of(places: Places, record: MergeRecord) -> Path | None:
    """The adapter after a run's merge; None where none was kept."""
    if not record.sha256:
        return None
    return folder_of(places) / run_folder(record.number) / WEIGHTS_NAME


def run_folder(number: int) -> str:
    """Name of the folder of run `number`, from 1."""
    return f"run-{number:03d}"


def keep(places: Places, record: MergeRecord, adapter: Tensors, *, warn: Warn) -> MergeRecord:
    """The record with the digest of the adapter, which is on the disk then.

    A disk that refuses costs the way back to this run, and not the training.
    """
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in adapter.items()}
    content = save(tensors, metadata={"format": "pt"})
    path = folder_of(places) / run_folder(record.number) / WEIGHTS_NAME
    partial = path.with_suffix(".partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with partial.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        partial.rename(path)
    except OSError as error:
        _forget(partial)
        cause = "the disk is full" if error.errno == errno.ENOSPC else error.strerror
        warn(
            FaultCode.STORAGE_FULL,
            f"The adapter after run {record.number} was not kept, {cause}: "
            "there is no way back to it",
        )
        return record
    return replace(record, sha256=hashlib.sha256(content).hexdigest())


def bring_over(
    places: Places, records: tuple[MergeRecord, ...], *, checkpoint_folder: Path, warn: Warn
) -> tuple[MergeRecord, ...]:
    """The records of a checkpoint, with the adapters beside it copied into the run's own folder.

    An adapter that is not there, or is not what it was, costs the way back to its run.
    """
    source = checkpoint_folder.parent / FOLDER_NAME
    brought = []
    for record in records:
        target = file_of(places, record)
        if target is None:
            brought.append(record)
            continue
        try:
            content = (source / run_folder(record.number) / WEIGHTS_NAME).read_bytes()
            whole = hashlib.sha256(content).hexdigest() == record.sha256
            if whole:
                target.parent.mkdir(parents=True, exist_ok=True)
                target.write_bytes(content)
        except OSError:
            whole = False
        if not whole:
            _forget(target)
            warn(
                FaultCode.STATE_CHECKPOINT_INVALID,
                f"The adapter after run {record.number} was lost with its node: "
                "there is no way back to it",
            )
        brought.append(record if whole else replace(record, sha256=""))
    return tuple(brought)


def complete(
    places: Places,
    records: tuple[MergeRecord, ...],
    *,
    adapter_folder: Path,
    run: str,
    base_model: str,
    multi_run: MultiRunPlan,
) -> Path:
    """The folder with history and adapters, each with the config that PEFT needs to load it."""
    folder = folder_of(places)
    folder.mkdir(parents=True, exist_ok=True)
    for record in records:
        path = file_of(places, record)
        if path is not None:
            shutil.copyfile(adapter_folder / CONFIG_NAME, path.with_name(CONFIG_NAME))
    document = {
        "run": run,
        "base_model": base_model,
        "run_count": multi_run.run_count,
        "samples_per_run": multi_run.samples_per_run,
        "runs": [msgspec.to_builtins(record) for record in records],
    }
    (folder / HISTORY_NAME).write_text(json.dumps(document, indent=2) + "\n", "utf-8")
    return folder


def _forget(path: Path) -> None:
    """Delete what is not whole: the folder becomes an archive, with all that lies in it."""
    with suppress(OSError):
        path.unlink()
