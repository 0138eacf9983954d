"""The two ZIPs that a run leaves behind: what they hold, and where they are unpacked."""

import zipfile
from dataclasses import dataclass
from pathlib import Path

from tunesmith.api.artifact.v1 import artifact_pb2
from tunesmith.client import Client

ADAPTER_FILES = frozenset(
    {
        "adapter_model.safetensors",
        "adapter_config.json",
        "chat_template.jinja",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    }
)
GGUF_FILES = frozenset({"model.gguf", "Modelfile", "install.sh", "install.bat", "README.md"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Bundle:
    """One downloaded ZIP, unpacked.

    Attributes:
        entries: names inside with their sizes in bytes, in archive order.
    """

    archive: Path
    folder: Path
    entries: tuple[tuple[str, int], ...]


def pull(client: Client, run: str, folder: Path) -> tuple[Bundle, Bundle]:
    """Download both bundles of a run and unpack them: the adapter, and the GGUF."""
    kinds = (artifact_pb2.ARTIFACT_KIND_LORA_ADAPTER, artifact_pb2.ARTIFACT_KIND_GGUF_BUNDLE)
    adapter, gguf = (_unpack(client.artifacts.pull(run, folder, kinds=[kind])[0]) for kind in kinds)
    return adapter, gguf


def _unpack(archive: Path) -> Bundle:
    folder = archive.with_suffix("")
    with zipfile.ZipFile(archive) as opened:
        entries = tuple((info.filename, info.file_size) for info in opened.infolist())
        opened.extractall(folder)  # checked by sha256, and extractall stays inside
    return Bundle(archive=archive, folder=folder, entries=entries)
