"""transformers + PEFT, which train on any device; this module is a `libraries.TorchLibrary`."""

import json
import logging
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, PeftModel, get_peft_model, set_peft_model_state_dict
from safetensors import SafetensorError
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModelForCausalLM, BitsAndBytesConfig

from lexicon.faults import Fault, FaultCode
from trainer.domain.plan import AdapterPlan, Base, Build
from trainer.training import lora
from trainer.training.attention import SEGMENTED, implementation_for
from trainer.training.capabilities import require_bitsandbytes
from trainer.training.compute_precision import ComputePrecision
from trainer.training.memory import is_out_of_memory, release_memory

log = logging.getLogger(__name__)

NAME = "peft"
HAS_FUSED_KERNELS = False
ALL_LINEAR = "all-linear"
WEIGHTS_NAME = "adapter_model.safetensors"
# What transformers raises over a config that it does not know, or that is not shaped like one.
_BAD_CONFIG = (AttributeError, KeyError, TypeError, ValueError)


def width_of(base: Base) -> int:
    """Size of the model's hidden state.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED when the architecture is not known.
    """
    return int(_text_config(base).hidden_size)


def vocabulary_of(base: Base) -> int:
    """Tokens that the model has an embedding for, as its config says.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED when the architecture is not known.
    """
    return int(_text_config(base).vocab_size)


def _text_config(base: Base) -> Any:
    folder = Path(base.folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    except (*_BAD_CONFIG, OSError) as error:
        raise _unsupported(folder, base, error) from error
    return config.get_text_config()


def load_base(base: Base, compute_precision: ComputePrecision) -> Any:
    """The base model from its local folder: safetensors only, no code of the folder is run.

    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID, RUNTIME_GPU_OOM,
            CONFIG_INVALID_SETTING for nf4 on a node that cannot.
    """
    if compute_precision.four_bit:
        require_bitsandbytes(
            "4-bit weights",
            compute_precision.device,
            field="training.load_in_4bit",
            instead="Leave load_in_4bit out, or take another tier.",
        )
    folder = Path(base.folder)
    try:
        config = AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            config=config,
            dtype=compute_precision.weights,
            attn_implementation=implementation_for(config),
            quantization_config=_nf4(compute_precision) if compute_precision.four_bit else None,
            # Placed while it is read: a whole model in 16 bits need not fit where four bits do.
            device_map={"": compute_precision.device} if compute_precision.four_bit else None,
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            # Refused below, by name.
            ignore_mismatched_sizes=True,
            output_loading_info=True,
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
    model, loading_info = loaded
    _require_whole(model, base, loading_info)
    model.requires_grad_(False)
    if compute_precision.four_bit:
        _keep_differentiable(model)
        return model
    return model.to(compute_precision.device)


def require_whole(base: Base) -> None:
    """Checks that the files hold all weights of the model, without memory for one.

    Raises:
        Fault: MODEL_WEIGHTS_INVALID.
    """
    loaded: Any = AutoModelForCausalLM.from_pretrained(
        Path(base.folder),
        device_map={"": "meta"},
        use_safetensors=True,
        trust_remote_code=False,
        local_files_only=True,
        ignore_mismatched_sizes=True,
        output_loading_info=True,
    )
    model, loading_info = loaded
    _require_whole(model, base, loading_info)


def _require_whole(model: Any, base: Base, loading_info: Mapping[str, Any]) -> None:
    """Refuses a model of which the files lack a part: the library makes that up from noise."""
    mismatched = {name for name, *_ in loading_info["mismatched_keys"]}
    parameters = {name for name, _ in model.named_parameters()}
    made_up = sorted(parameters & {*loading_info["missing_keys"], *mismatched})
    if made_up:
        why = "of another shape than its config says" if mismatched else "not in its files"
        raise Fault(
            FaultCode.MODEL_WEIGHTS_INVALID,
            f"{len(made_up)} weights of {base.model_id} are {why}, such as {made_up[0]}",
            model=base.model_id,
        )


def attach(model: Any, build: Build, *, seed: int) -> PeftModel:
    """The frozen base with a fresh adapter; only the adapter's weights require a gradient.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN when no module has the wanted name.
    """
    adapter = build.adapter
    config = LoraConfig(
        r=adapter.rank,
        lora_alpha=adapter.alpha,  # type: ignore[arg-type]  # PEFT computes with floats
        lora_dropout=adapter.dropout,
        target_modules=targets(adapter),
        use_rslora=adapter.use_rslora,
        use_dora=adapter.use_dora,
        task_type="CAUSAL_LM",
    )
    torch.manual_seed(seed)
    try:
        adapted = get_peft_model(model, config)
    except ValueError as error:
        wanted = ", ".join(adapter.target_modules)
        raise Fault(
            FaultCode.CONFIG_TARGET_UNKNOWN,
            f"No adapter can be put on {wanted}: {error}",
            targets=wanted,
        ) from error
    lora.lighten(adapted)
    if build.gradient_checkpointing:
        adapted.gradient_checkpointing_enable(
            gradient_checkpointing_kwargs={"use_reentrant": False}
        )
    return adapted


@contextmanager
def generating(adapted: PeftModel) -> Iterator[None]:
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
    model: Any = adapted.unload()
    # Gradient checkpointing hangs a hook on the embeddings, which its end leaves there.
    model.disable_input_require_grads()
    # PEFT leaves its configuration on the model, where the next adapter would warn about it.
    if hasattr(model, "peft_config"):
        del model.peft_config
    return model.requires_grad_(False)


def targets(adapter: AdapterPlan) -> str | list[str]:
    """The modules that get an adapter, in PEFT's form."""
    wanted = adapter.target_modules
    return ALL_LINEAR if ALL_LINEAR in wanted else list(wanted)


def over_whole_base(
    base: Base, build: Build, folder: Path, compute_precision: ComputePrecision, *, seed: int
) -> tuple[PeftModel, ComputePrecision]:
    """The adapter in `folder` over its unquantised base, and what that is computed in.

    An export merges into this base; one in four bits is another model. It may be too large for the
    device, which is why four bits were taken: then it runs on the processor.

    Raises:
        Fault: RUNTIME_GPU_OOM when the host's memory does not suffice either.
    """
    whole = replace(compute_precision, four_bit=False)
    try:
        model = load_base(base, whole)
    except (RuntimeError, MemoryError) as error:
        if compute_precision.device.type == "cpu" or not is_out_of_memory(error):
            raise
        model = None
    if model is None:
        # Outside the handler: the error's traceback holds what was loaded so far.
        release_memory()
        whole = replace(whole, device=torch.device("cpu"))
        model = load_base(base, whole)
    adapted = attach(model, build, seed=seed)
    set_peft_model_state_dict(adapted, load_file(folder / WEIGHTS_NAME))
    adapted.eval()
    return adapted, whole


def scale(adapter: AdapterPlan) -> float:
    """What B·A is multiplied by. Source: Hu et al. 2021; Kalajdzievski 2023 for rsLoRA."""
    rank = adapter.rank
    return adapter.alpha / (math.sqrt(rank) if adapter.use_rslora else rank)


def _nf4(compute_precision: ComputePrecision) -> BitsAndBytesConfig:
    """4-bit normal floats whose scales are quantised in turn.

    Source: Dettmers et al. 2023, arXiv:2305.14314, sections 3.1 and 3.2.
    """
    return BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=compute_precision.weights,
    )


def _keep_differentiable(model: Any) -> None:
    """Keep bitsandbytes from packing weights for its inference kernel of processors.

    The first forward pass that needs no gradient, such as a validation's, would pack them for good,
    and the kernel passes no gradient on: every step after it would learn something else.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False


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
