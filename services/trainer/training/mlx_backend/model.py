"""A base model with an adapter in MLX's arrays.

Shapes: B rows, T tokens, N trained tokens, E size of the hidden state, K likeliest tokens,
V vocabulary.
"""

import gc
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx import nn, optimizers
from mlx.utils import tree_flatten, tree_map, tree_unflatten
from mlx_lm.generate import generate_step
from mlx_lm.tuner.lora import LoRALinear
from mlx_lm.tuner.trainer import grad_checkpoint
from mlx_lm.tuner.utils import linear_to_lora_layers
from peft import LoraConfig
from safetensors.torch import save_file

from lexicon.faults import Fault, FaultCode
from trainer.domain import mlx as layout
from trainer.domain.plan import (
    AdapterPlan,
    Base,
    Build,
    ComputePlan,
    OptimisationPlan,
    TrainPlan,
)
from trainer.training.adapted_model import Tensors
from trainer.training.batches import Example, MicroBatch
from trainer.training.mlx_backend.base import end_ids_of, stored_shapes
from trainer.training.optimizer import ADAM_BETAS, ADAM_EPSILON
from trainer.training.peft_library import scale
from trainer.training.preference import PreferenceObjective, Tally

ADAPTER_FILE = "adapter_model.safetensors"
# Two ways to the same logits may differ in their last digits.
SAME_LOGITS_TOLERANCE = 1e-2
# Names of AdamW's two moments in a checkpoint, and in MLX's optimizer.
MOMENTS = {"exp_avg": "m", "exp_avg_sq": "v"}
WEIGHT = "weight"


@dataclass(slots=True, kw_only=True)
class MlxModel:
    """See `adapted_model.AdaptedModel`. Its tensors have PEFT's names and shapes.

    MLX changes no array in place, so that tensors which were given away stay what they were.

    Attributes:
        module: the base with its adapter, as mlx-lm holds it.
        layers: names of the layers that have an adapter.
        has_plain_head: whether its logits are one matrix times the hidden state.
        end_ids: see `AdaptedModel`.
    """

    module: Any
    adapter: AdapterPlan
    layers: tuple[str, ...]
    has_plain_head: bool
    end_ids: frozenset[int]
    # Where micro-batches are laid out; MLX takes them from there.
    device: torch.device = field(default=torch.device("cpu"), init=False)
    scales_loss: bool = field(default=False, init=False)
    _optimizer: Any = field(default=None, init=False)
    _gradient: Any = field(default=None, init=False)

    def keeps_examples_apart(self) -> bool:
        """See `AdaptedModel`; mlx-lm's models know no attention by segment."""
        return False

    def train(self) -> None:
        """See `AdaptedModel`."""
        self.module.train()

    def eval(self) -> None:
        """See `AdaptedModel`."""
        self.module.eval()

    @contextmanager
    def training_setup(self, compute: ComputePlan, build: Build) -> Iterator[None]:
        """See `AdaptedModel`; `torch_compile` was refused by name."""
        del compute
        kind = type(self.module.layers[0])
        own_call = kind.__call__
        try:
            if build.gradient_checkpointing:
                # It changes the layers' class, whose own call is put back for the next run.
                grad_checkpoint(self.module.layers[0])
            yield
        finally:
            kind.__call__ = own_call
            self._optimizer = None
            self.discard_gradient()

    @contextmanager
    def generating(self) -> Iterator[None]:
        """See `AdaptedModel`."""
        was_training = self.module.training
        self.module.eval()
        try:
            yield
        finally:
            self.module.train(was_training)

    @contextmanager
    def as_base(self) -> Iterator[None]:
        """See `AdaptedModel`."""
        adapters = [each for each in self.module.modules() if isinstance(each, LoRALinear)]
        scales = [each.scale for each in adapters]
        for each in adapters:
            each.scale = 0.0
        try:
            yield
        finally:
            for each, scale in zip(adapters, scales, strict=True):
                each.scale = scale

    def seed(self, seed: int) -> None:
        """See `AdaptedModel`."""
        mx.random.seed(seed)

    def forked_random(self) -> AbstractContextManager[None]:
        """See `AdaptedModel`; MLX's random state cannot be set, and every step seeds it."""
        return nullcontext()

    def make_optimizer(self, plan: OptimisationPlan) -> None:
        """See `AdaptedModel`."""
        optimizer = optimizers.AdamW(
            learning_rate=plan.lr_peak,
            betas=list(ADAM_BETAS),
            eps=ADAM_EPSILON,
            weight_decay=plan.weight_decay,
            # Without it MLX takes first steps that are many times too long.
            bias_correction=True,
        )
        optimizer.init(self.module.trainable_parameters())
        self._optimizer = optimizer

    def reference_point(
        self,
        examples: Sequence[Example],
        objective: PreferenceObjective | None,
        *,
        micro_batch_size: int,
        packing: bool,
    ) -> float:
        """See `AdaptedModel`."""
        del examples, micro_batch_size, packing
        assert objective is None, "preference methods were refused by name"
        return 0.0

    def accumulate(
        self,
        batch: MicroBatch,
        objective: PreferenceObjective | None,
        *,
        divisor: int,
        scale: float = 1.0,
        reference_point: float = 0.0,
        tally: Tally | None = None,
    ) -> float:
        """See `AdaptedModel`."""
        del reference_point, tally
        assert objective is None, "preference methods were refused by name"
        assert scale == 1.0, "nothing is computed with a loss scale"

        def loss_and_parts(*arrays: mx.array) -> tuple[Any, Any]:
            """What is differentiated, and the loss of each trained token in float32, (N,)."""
            losses_N = _losses(self, *arrays)
            return losses_N.sum() / divisor, losses_N.astype(mx.float32)

        (_, losses_N), slope = nn.value_and_grad(self.module, loss_and_parts)(*_arrays(batch))
        held = self._gradient
        self._gradient = slope if held is None else tree_map(mx.add, held, slope)
        # MLX is lazy: what is not asked for here would fill the memory of a later place.
        mx.eval(losses_N, self._gradient)
        # In float64: a sum in float32 depends on how a step is cut, in the last digits.
        return float(np.array(losses_N).sum(dtype=np.float64))

    def clip(self, *, max_norm: float, scale: float = 1.0) -> float:
        """See `AdaptedModel`."""
        assert scale == 1.0, "nothing is computed with a loss scale"
        limit = max_norm if max_norm > 0 else float("inf")
        self._gradient, norm = optimizers.clip_grad_norm(self._gradient, limit)
        return float(norm.item())

    def update(self, *, updates_before: int, lr: float) -> None:
        """See `AdaptedModel`."""
        self._optimizer.learning_rate = lr
        self._optimizer.state["step"] = mx.array(updates_before, mx.uint64)
        self._optimizer.update(self.module, self._gradient)
        mx.eval(self.module.trainable_parameters(), self._optimizer.state)

    def discard_gradient(self) -> None:
        """See `AdaptedModel`."""
        self._gradient = None

    def loss(
        self,
        batch: MicroBatch,
        objective: PreferenceObjective | None,
        *,
        reference_point: float = 0.0,
    ) -> float:
        """See `AdaptedModel`."""
        del reference_point
        assert objective is None, "preference methods were refused by name"
        return float(_losses(self, *_arrays(batch)).sum().item())

    def weights(self) -> dict[str, torch.Tensor]:
        """See `AdaptedModel`."""
        return _as_tensors(self.trainable())

    def put(self, weights: Tensors) -> None:
        """See `AdaptedModel`.

        Raises:
            Fault: STATE_CHECKPOINT_INVALID when names or shapes are those of another adapter.
        """
        wanted = {name: tensor.shape for name, tensor in self.weights().items()}
        if {name: tensor.shape for name, tensor in weights.items()} != wanted:
            raise Fault(
                FaultCode.STATE_CHECKPOINT_INVALID, "The checkpoint belongs to another adapter"
            )
        self.module.update(as_tree(weights))

    def live(self) -> dict[str, torch.Tensor]:
        """See `AdaptedModel`."""
        tensors = {f"{WEIGHT}/{name}": tensor for name, tensor in self.weights().items()}
        held = dict(tree_flatten(self._optimizer.state))
        for ours, theirs in MOMENTS.items():
            moments = _as_tensors({name: held[f"{name}.{theirs}"] for name in self.trainable()})
            tensors |= {f"{ours}/{name}": tensor for name, tensor in moments.items()}
        return tensors

    def restore(self, tensors: Tensors) -> None:
        """See `AdaptedModel`."""
        parts: dict[str, dict[str, torch.Tensor]] = {}
        for name, tensor in tensors.items():
            part, _, parameter = name.partition("/")
            parts.setdefault(part, {})[parameter] = tensor
        self.put(parts[WEIGHT])
        moments = [as_tree(parts[ours]) for ours in MOMENTS]
        self._optimizer.state = {
            **tree_map(lambda *pair: dict(zip(MOMENTS.values(), pair, strict=True)), *moments),
            "step": self._optimizer.state["step"],
            "learning_rate": self._optimizer.state["learning_rate"],
        }

    def free_memory(self) -> None:
        """See `AdaptedModel`."""
        self.discard_gradient()
        gc.collect()
        mx.clear_cache()

    def peak_bytes(self) -> int:
        """See `AdaptedModel`."""
        return int(mx.get_peak_memory())

    def generate(
        self, prompts: Sequence[Sequence[int]], *, end_ids: frozenset[int], tokens_max: int
    ) -> list[list[int]]:
        """See `AdaptedModel`; one prompt after another."""
        return [self._answer(ids, end_ids=end_ids, tokens_max=tokens_max) for ids in prompts]

    def top_logprobs(
        self, conversation: Sequence[int], *, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `AdaptedModel`."""
        logits_TV = self.module(mx.array(list(conversation))[None])[0].astype(mx.float32)
        logprobs_TV = logits_TV - mx.logsumexp(logits_TV, axis=-1, keepdims=True)
        order_TK = mx.argsort(-logprobs_TV, axis=-1)[:, :count]
        top_TK = mx.take_along_axis(logprobs_TV, order_TK, axis=-1)
        return (
            torch.from_numpy(np.array(top_TK)),
            torch.from_numpy(np.array(order_TK.astype(mx.int32))),
        )

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `AdaptedModel`."""
        yield from self.weights().items()

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """See `AdaptedModel`."""
        return self.weights()

    def save(self, folder: Path) -> None:
        """See `AdaptedModel`."""
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
        config.save_pretrained(str(folder))
        save_file(self.weights(), folder / ADAPTER_FILE, metadata={"format": "pt"})

    @contextmanager
    def over_export_base(self, plan: TrainPlan, adapter_folder: Path) -> Iterator["MlxModel"]:
        """See `AdaptedModel`; the base is whole already."""
        del plan, adapter_folder
        yield self

    def trainable(self) -> dict[str, mx.array]:
        """The adapter's arrays by mlx-lm's names."""
        return dict(tree_flatten(self.module.trainable_parameters()))

    def _answer(
        self, prompt: Sequence[int], *, end_ids: frozenset[int], tokens_max: int
    ) -> list[int]:
        answer: list[int] = []
        steps = generate_step(mx.array(list(prompt)), self.module, max_tokens=tokens_max)
        # One token more is already being computed when the end token is seen; it is let go.
        for token, _ in islice(steps, tokens_max):
            answer.append(int(token))
            if answer[-1] in end_ids:
                break
        return answer


def attach(model: Any, base: Base, adapter: AdapterPlan, *, seed: int) -> "MlxModel":
    """The base with a fresh adapter; only the adapter's arrays are trained.

    Raises:
        Fault: CONFIG_TARGET_UNKNOWN, MODEL_ARCHITECTURE_UNSUPPORTED, MODEL_WEIGHTS_INVALID.
    """
    linear = {name: each for name, each in model.named_modules() if type(each) is nn.Linear}
    layers = layout.chosen_layers(linear, adapter.target_modules)
    layout.require_same_layers(
        {name: tuple(linear[name].weight.shape) for name in layers}, stored_shapes(base)
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
    return MlxModel(
        module=model,
        adapter=adapter,
        layers=layers,
        has_plain_head=_has_plain_head(model),
        end_ids=frozenset(end_ids_of(Path(base.folder))),
    )


def as_tree(tensors: Tensors) -> Any:
    """Tensors in PEFT's layout as MLX nests the arrays of a model."""
    arrays = layout.to_mlx({name: tensor.numpy() for name, tensor in tensors.items()})
    return tree_unflatten([(name, mx.array(array)) for name, array in arrays.items()])


def logits_at(adapted: MlxModel, ids_BT: mx.array, at_N: mx.array) -> Any:
    """Logits (N, V) at flat places of a batch, in fp32; the others are not computed if possible."""
    model = adapted.module
    if not adapted.has_plain_head:
        logits_BTV = model(ids_BT)
        logits_NV = logits_BTV.reshape(-1, logits_BTV.shape[-1])[at_N]
    else:
        hidden_BTE = model.model(ids_BT)
        logits_NV = _head(model)(hidden_BTE.reshape(-1, hidden_BTE.shape[-1])[at_N])
    return logits_NV.astype(mx.float32)


def _losses(adapted: MlxModel, ids_BT: mx.array, at_N: mx.array, targets_N: mx.array) -> Any:
    """Cross-entropy of each trained token, (N,)."""
    logits_NV = logits_at(adapted, ids_BT, at_N)
    return nn.losses.cross_entropy(logits_NV, targets_N, reduction="none")


def _arrays(batch: MicroBatch) -> tuple[mx.array, mx.array, mx.array]:
    return (
        mx.array(batch.ids_BT.numpy()),
        mx.array(batch.at_N.numpy()),
        mx.array(batch.targets_N.numpy()),
    )


def _as_tensors(arrays: Mapping[str, mx.array]) -> dict[str, torch.Tensor]:
    """Arrays by mlx-lm's names as tensors in PEFT's layout."""
    named = layout.to_peft({name: np.array(array) for name, array in arrays.items()})
    return {name: torch.from_numpy(array) for name, array in named.items()}


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
