"""Unsloth: its kernels under our own loop, on NVIDIA; this module is a `libraries.TorchLibrary`.

Unsloth has to be imported before transformers and PEFT, because it changes both while it is: that
is why it comes first here, and why `libraries` imports this module before any other.

Its forward pass knows packed rows by the lengths of their segments, under a name of its own; the
rest of what we ask of a model (label positions only, summed loss) is asked of it as of any other.
"""

# isort: off
from unsloth import FastLanguageModel
# isort: on

import json
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from lexicon.faults import Fault
from trainer.domain.plan import Base, Build
from trainer.training import peft_library
from trainer.training.compute_precision import ComputePrecision

log = logging.getLogger(__name__)

NAME = "unsloth"
HAS_FUSED_KERNELS = True
# What Unsloth calls the lengths of the examples in a packed row, and the type that it wants.
PACKED_LENGTHS = "packed_seq_lengths"
GRADIENT_CHECKPOINTING = "unsloth"
NUMPY_SEEDS = 1 << 32


def load_base(base: Base, compute_precision: ComputePrecision) -> Any:
    """The base with Unsloth's kernels; anything that is raised is a reason to fall back to PEFT."""
    _require_whole(base)
    model, _ = FastLanguageModel.from_pretrained(
        model_name=base.folder,
        max_seq_length=_context_tokens(base),
        dtype=compute_precision.weights,
        load_in_4bit=compute_precision.four_bit,
        device_map={"": compute_precision.device.index or 0},
        # The folder is the model: no look-up of a quantised twin on a hub.
        use_exact_model_name=True,
        # Rows are encoded by our own tokenizer; theirs is not looked at.
        fix_tokenizer=False,
        trust_remote_code=False,
        local_files_only=True,
        use_gradient_checkpointing=GRADIENT_CHECKPOINTING,
    )
    return model.requires_grad_(False)


def _require_whole(base: Base) -> None:
    """Unsloth looks for a sentence in the log that transformers no longer writes."""
    try:
        peft_library.require_whole(base)
    except Fault:
        raise
    except Exception:
        log.warning("It is not known whether the weights are whole", exc_info=True)


def attach(model: Any, build: Build, *, seed: int) -> Any:
    """The base with a fresh adapter that Unsloth's kernels train."""
    adapter, checkpointing = build.adapter, build.gradient_checkpointing
    torch.manual_seed(seed)
    adapted = FastLanguageModel.get_peft_model(
        model,
        r=adapter.rank,
        target_modules=peft_library.targets(adapter),
        lora_alpha=adapter.alpha,
        lora_dropout=adapter.dropout,
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        use_gradient_checkpointing=GRADIENT_CHECKPOINTING
        if build.gradient_checkpointing
        else False,
        # numpy, which it seeds as well, takes 32 bits.
        random_state=seed % NUMPY_SEEDS,
    )
    adapted.get_base_model().base_model.register_forward_pre_hook(_translate, with_kwargs=True)
    FastLanguageModel.for_training(adapted, use_gradient_checkpointing=bool(checkpointing))
    return adapted


def detach(adapted: Any) -> None:
    """Nothing: Unsloth writes its kernels into the layers, and the bare base cannot be had back."""
    del adapted


@contextmanager
def generating(adapted: Any) -> Iterator[None]:
    """Unsloth's fast generation; what training needs comes back after it, whatever happens."""
    was_training = adapted.training
    checkpointing = bool(getattr(adapted.get_base_model(), "is_gradient_checkpointing", False))
    FastLanguageModel.for_inference(adapted)
    try:
        yield
    finally:
        FastLanguageModel.for_training(adapted, use_gradient_checkpointing=checkpointing)
        adapted.train(was_training)


def _translate(
    _: torch.nn.Module, args: tuple[Any, ...], named: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    lengths = named.pop("segment_lengths", None)
    if lengths is not None:
        named[PACKED_LENGTHS] = torch.tensor(lengths, dtype=torch.int32)
    return args, named


def _context_tokens(base: Base) -> int:
    config = json.loads((Path(base.folder) / "config.json").read_text("utf-8"))
    return int(config.get("text_config", config)["max_position_embeddings"])
