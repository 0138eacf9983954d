"""Caches of models that belong to one stack alone, so that a test may damage what lies in them."""

import json
import shutil
from pathlib import Path

from safetensors.torch import load_file, save_file

from deploy.local.places import cache_folder
from exporter.engine.weights import GgufFile

# Matrices whose rows may stand in another order, and the model would still be one.
TURNED_GGUF = ("ffn_down", "attn_output")
TURNED = ("down_proj", "o_proj")


def make_caches(folder: Path) -> Path:
    """A cache folder with copies of this machine's models and links to everything else of it.

    Returns:
        The copied models; `XDG_CACHE_HOME` of a stack that uses them is `folder`.
    """
    own = folder / "tunesmith"
    own.mkdir(parents=True)
    for path in cache_folder().iterdir():
        if path.name != "models":
            (own / path.name).symlink_to(path)
    return Path(shutil.copytree(cache_folder() / "models", own / "models", symlinks=True))


def damage_conversions(models: Path) -> int:
    """Turns rows of every converted base upside down; returns how many there were."""
    bases = list(models.glob("gguf/*/base.gguf"))
    for base in bases:
        _disorder(base)
    return len(bases)


def damage_weights(models: Path) -> None:
    """Turns rows of the base's own weights upside down, as the trainer keeps them."""
    for path in models.glob("store/*/model.safetensors"):
        weights = load_file(path)
        for name, tensor in weights.items():
            if any(part in name for part in TURNED):
                weights[name] = tensor.flip(0).contiguous()
        save_file(weights, path, metadata={"format": "pt"})


def damage_tokenizers(models: Path) -> None:
    """Takes the word that begins a turn from the base's tokenizer, as the trainer keeps it."""
    for path in models.glob("store/*/tokenizer.json"):
        settings = json.loads(path.read_text("utf-8"))
        text = json.dumps(settings, ensure_ascii=False).replace("<|im_start|>", "<|turn|>")
        path.write_text(text, "utf-8")


def _disorder(path: Path) -> None:
    with GgufFile(path) as file:
        start = file.header.data_start
        turned = {
            start + info.offset: file.raw(info, first_row=0, row_count=info.row_count)[
                ::-1
            ].tobytes()
            for info in file.header.tensors
            if any(part in info.name for part in TURNED_GGUF)
        }
    with path.open("r+b") as out:
        for place, rows in turned.items():
            out.seek(place)
            out.write(rows)
