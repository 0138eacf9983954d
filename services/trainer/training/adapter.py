"""The adapter's folder: exactly what `PeftModel.from_pretrained` and a chat need (001-35)."""

import json
import shutil
from pathlib import Path
from typing import Any

import torch

from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import Base
from trainer.training.adapted_model import AdaptedModel

FILE_NAMES = (
    "README.md",
    "adapter_config.json",
    "adapter_model.safetensors",
    "chat_template.jinja",
    "tokenizer.json",
    "tokenizer_config.json",
)


def write_adapter(
    model: AdaptedModel,
    base: Base,
    folder: Path,
    *,
    tokenizer: Any,
    template_source: str,
    card: str,
) -> None:
    """Write the six files of the adapter into the new folder `folder`.

    Args:
        tokenizer: a `tokenizers.Tokenizer`, written when the base brought no tokenizer.json.
    Raises:
        Fault: STORAGE_FULL when the disk refuses.
    """
    try:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        model.save(folder)
        _name_base(folder / "adapter_config.json", base)
        source = Path(base.folder)
        if (source / "tokenizer.json").exists():
            shutil.copyfile(source / "tokenizer.json", folder / "tokenizer.json")
        else:
            tokenizer.save(str(folder / "tokenizer.json"))
        _write_tokenizer_config(source, folder)
        (folder / "chat_template.jinja").write_text(template_source, "utf-8")
        (folder / "README.md").write_text(card, "utf-8")
    except OSError as error:
        raise Fault(
            FaultCode.STORAGE_FULL, f"The adapter could not be written: {error.strerror}"
        ) from error
    for path in folder.iterdir():
        if path.name not in FILE_NAMES:
            path.unlink()
        else:
            path.chmod(0o644)


def require_changed(model: AdaptedModel) -> None:
    """Make sure that training has moved the adapter: every B begins as zero.

    Raises:
        Fault: RUNTIME_ADAPTER_UNCHANGED when no B of any layer has left zero.
    """
    for name, parameter in model.named_parameters():
        if "lora_B" in name and bool(torch.count_nonzero(parameter)):
            return
    raise Fault(
        FaultCode.RUNTIME_ADAPTER_UNCHANGED,
        "Training ended, but the adapter is what it was before: nothing was learned",
    )


def _name_base(path: Path, base: Base) -> None:
    config = json.loads(path.read_text("utf-8"))
    config["base_model_name_or_path"] = base.base_model
    config["revision"] = base.revision or None
    # PEFT holds target modules in a set; sorted, the same run gives the same bytes.
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    path.write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", "utf-8")


def _write_tokenizer_config(base: Path, folder: Path) -> None:
    source = base / "tokenizer_config.json"
    config = json.loads(source.read_text("utf-8")) if source.exists() else {}
    # The template travels in chat_template.jinja alone: two copies could disagree.
    config.pop("chat_template", None)
    config.pop("auto_map", None)
    config.setdefault("tokenizer_class", "PreTrainedTokenizerFast")
    text = json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    (folder / "tokenizer_config.json").write_text(text, "utf-8")
