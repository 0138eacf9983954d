"""What the MLX backend does, and how its adapter is named and laid out in PEFT's files.

mlx-lm multiplies from the right, `x @ lora_a @ lora_b`, so that `lora_a` is (in, rank) and `lora_b`
is (rank, out). PEFT keeps matrices as `torch.nn.Linear` does: `lora_A` is (rank, in) and `lora_B`
is (out, rank). The factor of both is the same number: mlx-lm calls it `scale`, PEFT computes it
from alpha and rank.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Method, Optimizer, Precision
from trainer.domain.plan import TrainPlan

PEFT_PREFIX = "base_model.model."
# Endings of a layer's two matrices, here and there.
ENDINGS = {"lora_a": "lora_A.weight", "lora_b": "lora_B.weight"}
ALL_LINEAR = "all-linear"
# PEFT's `all-linear` leaves the output layer out.
OUTPUT_LAYER = "lm_head"


def unsupported(plan: TrainPlan) -> tuple[str, ...]:
    """What of the plan this backend does not do, in words; empty for LoRA by plain supervision."""
    asked = {
        f"the method {plan.objective.method.upper()}": plan.objective.method is not Method.SFT,
        "fp8": plan.compute.precision is Precision.FP8,
        "DoRA": plan.build.adapter.use_dora,
        "4-bit weights": plan.compute.load_in_4bit,
        "8-bit optimizers": plan.optimisation.optimizer is not Optimizer.ADAMW_TORCH,
        "compilation by torch": plan.compute.torch_compile,
        "multi-run": plan.multi_run is not None,
        "several merged runs": plan.multi_run is not None,
    }
    return tuple(what for what, wanted in asked.items() if wanted)


def require_supported(plan: TrainPlan) -> None:
    """Checks that this backend does all of the plan.

    Raises:
        Fault: CONFIG_INVALID_SETTING.
    """
    refused = unsupported(plan)
    if refused:
        raise Fault(
            FaultCode.CONFIG_INVALID_SETTING,
            f"The MLX backend trains LoRA by SFT; it does not do: {', '.join(refused)}",
            setting=", ".join(refused),
        )


def chosen_layers(layers: Iterable[str], targets: Sequence[str]) -> tuple[str, ...]:
    """Names of the linear layers that get an adapter, by PEFT's rule.

    A target is the whole name of a layer or its end behind a dot; `all-linear` means every layer
    but the output.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN when there is none.
    """
    everything = ALL_LINEAR in targets
    chosen = tuple(
        name
        for name in sorted(layers)
        if (everything and name.rpartition(".")[2] != OUTPUT_LAYER)
        or any(name == target or name.endswith(f".{target}") for target in targets)
    )
    if not chosen:
        raise Fault(
            FaultCode.CONFIG_TARGET_UNKNOWN,
            f"No adapter can be put on {', '.join(targets)}: the model has no such layer",
            targets=", ".join(targets),
        )
    return chosen


def as_mlx_reads(config: Mapping[str, Any]) -> dict[str, Any]:
    """What has to be added to a model's config, so that mlx-lm reads its rotary positions in it.

    Since transformers 5 they stand in `rope_parameters`, which mlx-lm does not read for most
    models: it would take a default without a word, and compute another model.
    """
    rope = config.get("rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    changes: dict[str, Any] = {}
    by_layer = rope.get("full_attention")
    if isinstance(by_layer, Mapping):
        sliding = rope.get("sliding_attention")
        if isinstance(sliding, Mapping) and "rope_theta" in sliding:
            changes["rope_local_base_freq"] = sliding["rope_theta"]
        rope = by_layer
    for name in ("rope_theta", "partial_rotary_factor"):
        if name in rope:
            changes[name] = rope[name]
    if rope.get("rope_type", "default") != "default":
        changes["rope_scaling"] = {**rope, "type": rope["rope_type"]}
    return {name: value for name, value in changes.items() if config.get(name) is None}


def require_same_layers(
    chosen: Mapping[str, tuple[int, ...]], stored: Mapping[str, tuple[int, ...]]
) -> None:
    """Checks that MLX names and shapes the layers as the model's own files do.

    Otherwise the adapter would fit MLX's copy of the model and no other.

    Args:
        chosen: shape (out, in) by name, of the layers that get an adapter.
        stored: shapes of the tensors in the model's files.
    Raises:
        Fault: MODEL_ARCHITECTURE_UNSUPPORTED.
    """
    for name, shape in chosen.items():
        if stored.get(f"{name}.weight") != shape:
            raise Fault(
                FaultCode.MODEL_ARCHITECTURE_UNSUPPORTED,
                f"MLX keeps the layer {name} in another form than the model's files",
                layer=name,
            )


def to_peft(arrays: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """An adapter of mlx-lm under PEFT's names and in its shapes.

    Raises:
        Fault: RUNTIME_TRAINING_FAILED when it is not pairs of matrices that fit each other.
    """
    return _renamed(arrays, ENDINGS, before="", after=PEFT_PREFIX)


def to_mlx(tensors: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The opposite of `to_peft`.

    Raises:
        Fault: RUNTIME_TRAINING_FAILED when it is not pairs of matrices that fit each other.
    """
    endings = {theirs: ours for ours, theirs in ENDINGS.items()}
    return _renamed(tensors, endings, before=PEFT_PREFIX, after="")


def _renamed(
    arrays: Mapping[str, np.ndarray], endings: Mapping[str, str], *, before: str, after: str
) -> dict[str, np.ndarray]:
    renamed: dict[str, np.ndarray] = {}
    ranks: dict[str, dict[str, int]] = {}
    for name, array in arrays.items():
        ending = next((each for each in endings if name.endswith(f".{each}")), None)
        if ending is None or not name.startswith(before) or array.ndim != 2:
            raise _misshapen(name)
        layer = name.removeprefix(before).removesuffix(f".{ending}")
        # The rank is the inner side of the product, whichever way the matrices lie.
        inner = 1 if ending in {"lora_a", "lora_B.weight"} else 0
        ranks.setdefault(layer, {})[ending] = array.shape[inner]
        renamed[f"{after}{layer}.{endings[ending]}"] = np.ascontiguousarray(array.T)
    for layer, by_ending in ranks.items():
        if len(by_ending) != len(endings) or len(set(by_ending.values())) != 1:
            raise _misshapen(layer)
    return renamed


def _misshapen(name: str) -> Fault:
    return Fault(
        FaultCode.RUNTIME_TRAINING_FAILED,
        f"{name} is not one of two matrices of a LoRA layer",
        tensor=name,
    )
