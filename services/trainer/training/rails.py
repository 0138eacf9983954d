"""How a base model comes into memory and gets its adapter, on the device that is there."""

import json
import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForCausalLM

from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import Backend, Base, Precision, TrainPlan
from trainer.training.attention import SEGMENTED, implementation_for

log = logging.getLogger(__name__)

# Below this width a model's matrices are too small for bf16 units and for more than one thread:
# converting and waiting for each other costs more than it wins (measured at 256: two threads on two
# busy cores are up to twice as slow as one).
WIDE_MODEL = 1024
# What transformers raises over a config that it does not know, or that is not shaped like one.
_BAD_CONFIG = (AttributeError, KeyError, TypeError, ValueError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Arithmetic:
    """In which numbers the model is held and computed."""

    device: torch.device
    weights: torch.dtype
    autocast: torch.dtype | None

    def context(self) -> AbstractContextManager[Any]:
        """The context of a forward pass."""
        if self.autocast is None:
            return nullcontext()
        return torch.autocast(self.device.type, dtype=self.autocast)


@dataclass(frozen=True, slots=True, kw_only=True)
class WarmBase:
    """A base model in memory, and what it was loaded as."""

    digest: str
    arithmetic: Arithmetic
    model: Any


def device_for(backend: Backend) -> torch.device:
    """The device of a rail.

    Raises:
        Fault: DEP_GPU_NOT_AVAILABLE when CUDA is asked for and not there; DEP_MLX_UNAVAILABLE for
            MLX, which this child does not drive.
    """
    has_cuda = torch.cuda.is_available()
    match backend:
        case Backend.MLX:
            raise Fault(FaultCode.DEP_MLX_UNAVAILABLE)
        case Backend.CUDA if not has_cuda:
            raise Fault(FaultCode.DEP_GPU_NOT_AVAILABLE)
        case Backend.CPU:
            return torch.device("cpu")
        case _:
            return torch.device("cuda" if has_cuda else "cpu")


def width_of(base: Base) -> int:
    """Size of the model's hidden state.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED when the architecture is not known.
    """
    folder = Path(base.folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (*_BAD_CONFIG, OSError) as error:
        raise _unsupported(folder, base, error) from error
    return int(config.get_text_config().hidden_size)


def arithmetic_for(precision: Precision, device: torch.device, *, width: int) -> Arithmetic:
    """The numbers to compute in: what was asked for, or what the hardware is good at.

    bf16 on a CPU without matrix units for it is several times slower than fp32; a GPU without bf16
    computes in fp16.
    """
    good_at_bf16 = (
        torch.cuda.is_bf16_supported(including_emulation=False)
        if device.type == "cuda"
        else cpu_has_bf16_matrix_units() and width >= WIDE_MODEL
    )
    if precision is Precision.AUTO:
        if good_at_bf16:
            precision = Precision.BF16
        else:
            precision = Precision.FP16 if device.type == "cuda" else Precision.FP32
    match precision:
        case Precision.BF16:
            return Arithmetic(device=device, weights=torch.bfloat16, autocast=torch.bfloat16)
        case Precision.FP16 if device.type == "cuda":
            return Arithmetic(device=device, weights=torch.float16, autocast=torch.float16)
        case Precision.FP16:
            raise Fault(
                FaultCode.CONFIG_INVALID_SETTING, "fp16 needs a GPU; use auto, bf16 or fp32"
            )
        case _:
            return Arithmetic(device=device, weights=torch.float32, autocast=None)


def threads_for(width: int, *, available: int) -> int:
    """CPU threads that a model of this width can keep busy."""
    return available if width >= WIDE_MODEL else 1


def cpu_has_bf16_matrix_units() -> bool:
    """Whether this CPU multiplies bf16 matrices in hardware (AMX)."""
    return bool(torch.cpu._is_amx_tile_supported())


def load_base(base: Base, arithmetic: Arithmetic) -> Any:
    """The base model from its local folder: safetensors only, no code of the folder is run.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID, RUNTIME_GPU_OOM.
    """
    folder = Path(base.folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=arithmetic.weights,
            attn_implementation=implementation_for(config),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
        )
    except _BAD_CONFIG as error:
        raise _unsupported(folder, base, error) from error
    except (OSError, SafetensorError) as error:
        # The library's text names folders of the node, which are nobody's business.
        why = str(error).replace(base.folder, ".")
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"The weights of {base.model_id} cannot be read: {why}",
            model=base.model_id,
        ) from error
    model.requires_grad_(False)
    # The type of `to` in transformers knows no device.
    placed: Any = model.to(arithmetic.device)  # type: ignore[arg-type]
    return placed


def attach(model: Any, plan: TrainPlan) -> PeftModel:
    """The frozen base with a fresh adapter; only the adapter's weights require a gradient.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN when no module has the wanted name.
    """
    wanted = plan.adapter.target_modules
    config = LoraConfig(
        r=plan.adapter.rank,
        lora_alpha=plan.adapter.alpha,  # type: ignore[arg-type]  # PEFT computes with floats
        lora_dropout=plan.adapter.dropout,
        target_modules="all-linear" if wanted == ("all-linear",) else list(wanted),
        use_rslora=plan.adapter.use_rslora,
        use_dora=plan.adapter.use_dora,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(plan.seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        raise Fault(
            FaultCode.CONFIG_TARGET_UNKNOWN,
            f"No adapter can be put on {', '.join(wanted)}: {error}",
            targets=", ".join(wanted),
        ) from error
    if plan.gradient_checkpointing:
        adapted.enable_input_require_grads()
        adapted.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return adapted


@contextmanager
def speaking(adapted: PeftModel) -> Iterator[None]:
    """Attention as generation needs it, with masks and a cache; training's comes back after it."""
    model: Any = adapted.get_base_model()
    trained_with = model.config._attn_implementation
    if trained_with == SEGMENTED:
        model.set_attn_implementation("sdpa")
    try:
        yield
    finally:
        model.set_attn_implementation(trained_with)


def detach(adapted: PeftModel) -> Any:
    """The base model as it was before `attach`, for the next run."""
    if getattr(adapted, "is_gradient_checkpointing", False):
        adapted.gradient_checkpointing_disable()
    model = adapted.unload()
    # PEFT leaves its configuration on the model, where the next adapter would warn about it.
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(False)


def scale(plan: TrainPlan) -> float:
    """What B·A is multiplied by. Source: Hu et al. 2021; Kalajdzievski 2023 for rsLoRA."""
    rank = plan.adapter.rank
    return plan.adapter.alpha / (math.sqrt(rank) if plan.adapter.use_rslora else rank)


def _unsupported(folder: Path, base: Base, error: Exception) -> Fault:
    log.warning("the model in %s was refused: %s", folder, error)
    try:
        config = json.loads((folder / "config.json").read_text("utf-8"))
        name = str((config.get("architectures") or [config["model_type"]])[0])
    except (*_BAD_CONFIG, OSError):
        name = base.model_id
    return Fault(
        FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED,
        f"Unsupported architecture: {name}",
        architecture=name,
    )
