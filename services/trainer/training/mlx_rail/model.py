"""Base model and adapter in MLX's arrays.

Shapes: B rows, T tokens, N trained tokens, E size of the hidden state, V vocabulary.
"""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn
from mlx.utils import tree_flatten, tree_unflatten
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.utils import linear_to_lora_layers
from mlx_lm.utils import load_model
from peft import LoraConfig
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Precision
from trainer.domain import mlx as layout
from trainer.domain.plan import AdapterPlan, Base
from trainer.training.peft_rail import scale

DTYPES = {
    Precision.BF16: mx.bfloat16,
    Precision.FP16: mx.float16,
    Precision.FP32: mx.float32,
}
GENERATION_FILE, CONFIG_FILE = "generation_config.json", "config.json"
ADAPTER_FILE = "adapter_model.safetensors"
# Two ways to the same logits may differ by the last digits of their arithmetic.
SAME_LOGITS_TOLERANCE = 1e-2


@dataclass(frozen=True, slots=True, kw_only=True)
class Adapted:
    """A frozen base model with a fresh adapter.

    Attributes:
        layers: names of the layers that have one.
        has_plain_head: whether its logits are one matrix times the hidden state.
    """

    model: Any
    adapter: AdapterPlan
    layers: tuple[str, ...]
    has_plain_head: bool

    def trainable(self) -> dict[str, mx.array]:
        """The adapter's arrays by mlx-lm's names."""
        return dict(tree_flatten(self.model.trainable_parameters()))

    def tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's tensors by PEFT's names, on the CPU, independent of what training does."""
        arrays = {name: np.array(array) for name, array in self.trainable().items()}
        return {name: torch.from_numpy(each) for name, each in layout.to_peft(arrays).items()}

    def put(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """Puts tensors in PEFT's layout in the place of the adapter's.

        Raises:
            Fault: STATE_CHECKPOINT_INVALID when names or shapes are those of another adapter.
        """
        wanted = {name: tensor.shape for name, tensor in self.tensors().items()}
        if {name: tensor.shape for name, tensor in tensors.items()} != wanted:
            raise Fault(
                FaultCode.STATE_CHECKPOINT_INVALID, "The checkpoint belongs to another adapter"
            )
        self.model.update(as_tree(tensors))

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """As a `PeftModel` names them."""
        yield from self.tensors().items()

    def save_pretrained(
        self, save_directory: str, *, safe_serialization: bool, save_embedding_layers: bool
    ) -> None:
        """Writes the two files that `PeftModel.from_pretrained` reads, as a `PeftModel` would."""
        assert safe_serialization
        assert not save_embedding_layers
        adapter = self.adapter
        config = LoraConfig(
            r=adapter.rank,
            lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT computes with floats
            lora_dropout=adapter.dropout,
            target_modules=sorted({name.rpartition(".")[2] for name in self.layers}),
            use_rslora=adapter.use_rslora,
            task_type="CAUSAL_LM",
            inference_mode=True,
        )
        config.save_pretrained(save_directory)
        save_file(self.tensors(), Path(save_directory) / ADAPTER_FILE, metadata={"format": "pt"})

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """The context in which the adapter is switched off."""
        adapters = [each for each in self.model.modules() if isinstance(each, LoRALinear)]
        scales = [each.scale for each in adapters]
        for each in adapters:
            each.scale = 0.0
        try:
            yield
        finally:
            for each, scale in zip(adapters, scales, strict=True):
                each.scale = scale


def as_tree(tensors: Mapping[str, torch.Tensor]) -> Any:
    """Tensors in PEFT's layout as MLX nests the arrays of a model."""
    arrays = layout.to_mlx({name: tensor.numpy() for name, tensor in tensors.items()})
    return tree_unflatten([(name, mx.array(array)) for name, array in arrays.items()])


def load_base(base: Base, precision: Precision) -> Any:
    """The frozen base model from its local folder: safetensors only, no code of the folder is run.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID.
    """
    folder = Path(base.folder)
    try:
        config = json.loads((folder / CONFIG_FILE).read_bytes())
        model, _ = load_model(
            folder, model_config=layout.told_as_mlx_reads(config), trust_remote_code=False
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


def attach(model: Any, base: Base, adapter: AdapterPlan, *, seed: int) -> Adapted:
    """The base with a fresh adapter; only the adapter's arrays are trained.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN, MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID.
    """
    linear = {name: each for name, each in model.named_modules() if type(each) is nn.Linear}
    layers = layout.chosen_layers(linear, adapter.target_modules)
    layout.require_same_layers(
        {name: tuple(linear[name].weight.shape) for name in layers}, _stored_shapes(base)
    )
    mx.random.seed(seed)
    linear_to_lora_layers(
        model,
        len(model.layers),
        {
            "rank": adapter.rank,
            "scale": scale(adapter),
            "dropout": adapter.dropout,
            "keys": set(layers),
        },
    )
    mx.eval(model.parameters())
    return Adapted(
        model=model, adapter=adapter, layers=layers, has_plain_head=_has_plain_head(model)
    )


def logits_at(adapted: Adapted, ids_BT: mx.array, at_N: mx.array) -> Any:
    """Logits (N, V) at flat places of a batch, in fp32; the others are not computed if possible."""
    model = adapted.model
    if not adapted.has_plain_head:
        logits_BTV = model(ids_BT)
        logits_NV = logits_BTV.reshape(-1, logits_BTV.shape[-1])[at_N]
    else:
        hidden_BTE = model.model(ids_BT)
        logits_NV = _head(model)(hidden_BTE.reshape(-1, hidden_BTE.shape[-1])[at_N])
    return logits_NV.astype(mx.float32)


def end_ids_of(folder: Path) -> tuple[int, ...]:
    """Tokens that end an answer, by the model's own files."""
    for name in (GENERATION_FILE, CONFIG_FILE):
        path = folder / name
        ids = json.loads(path.read_bytes()).get("eos_token_id") if path.exists() else None
        if ids is not None:
            return tuple(ids) if isinstance(ids, list) else (ids,)
    return ()


def _head(model: Any) -> Any:
    return model.lm_head if "lm_head" in model else model.model.embed_tokens.as_linear


def _has_plain_head(model: Any) -> bool:
    """Whether the way of `logits_at` past the model's own gives the model's own logits."""
    ids_BT = mx.arange(4)[None]
    try:
        by_hand = _head(model)(model.model(ids_BT)).astype(mx.float32)
    except (AttributeError, KeyError, TypeError, ValueError):
        return False
    logits = model(ids_BT).astype(mx.float32)
    if by_hand.shape != logits.shape:
        return False
    return bool(mx.allclose(by_hand, logits, atol=SAME_LOGITS_TOLERANCE).item())


def _stored_shapes(base: Base) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {}
    try:
        for path in sorted(Path(base.folder).glob("*.safetensors")):
            with safe_open(path, framework="np") as file:
                shapes |= {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    except (OSError, SafetensorError) as error:
        raise _unreadable(base, error) from error
    return shapes


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
