"""The base model in MLX's arrays, and what its files say of it."""

import json
from pathlib import Path
from typing import Any

import mlx.core as mx
from mlx_lm.utils import load_model
from safetensors import SafetensorError, safe_open

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Precision
from trainer.domain import mlx as layout
from trainer.domain.plan import Base

DTYPES = {
    Precision.BF16: mx.bfloat16,
    Precision.FP16: mx.float16,
    Precision.FP32: mx.float32,
}
GENERATION_FILE, CONFIG_FILE = "generation_config.json", "config.json"


def load_base(base: Base, precision: Precision) -> Any:
    """The frozen base model from its local folder: safetensors only, no code of the folder is run.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID.
    """
    folder = Path(base.folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        model, _ = load_model(
            folder, model_config=layout.as_mlx_reads(config), trust_remote_code=False
        )
    except OSError as error:
        raise _unreadable(base, error) from error
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise Fault(
            FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED,
            f"mlx-lm cannot load {base.model_id}: {_without_folder(base, error)}",
            model=base.model_id,
        ) from error
    except RuntimeError as error:
        raise _unreadable(base, error) from error
    dtype = dtype_for(precision)
    if dtype is not None:
        model.set_dtype(dtype)
    model.freeze()
    mx.eval(model.parameters())
    return model


def dtype_for(precision: Precision) -> Any | None:
    """The numbers to hold the base in; None leaves them as they are stored.

    By itself an Apple GPU computes in what is stored, commonly bf16; a CPU computes in fp32.
    """
    if precision is Precision.AUTO:
        return None if mx.metal.is_available() else mx.float32
    return DTYPES[precision]


def stored_shapes(base: Base) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors in the model's files, by name.

    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in sorted(Path(base.folder).glob("*.safetensors")):
            with safe_open(path, framework="np") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise _unreadable(base, error) from error
    return shapes


def end_ids_of(folder: Path) -> tuple[int, ...]:
    """Tokens that end an answer, by the model's own files."""
    for name in (GENERATION_FILE, CONFIG_FILE):
        path = folder / name
        ids = json.loads(path.read_bytes()).get("eos_token_id") if path.exists() else None
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def _unreadable(base: Base, error: Exception) -> Fault:
    return Fault(
        FaultCode.MODEL_WEIGHTS_INVALID,
        f"The weights of {base.model_id} cannot be read: {_without_folder(base, error)}",
        model=base.model_id,
    )


def _without_folder(base: Base, error: Exception) -> str:
    """An error's first line; folders of the node are nobody's business."""
    first = next(iter(str(error).splitlines()), type(error).__name__)
    return first.replace(base.folder, ".")[:300]
