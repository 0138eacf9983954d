"""A base model with an adapter in torch, held by transformers + PEFT or by Unsloth.

Shapes: B prompts, T tokens, K likeliest tokens, V vocabulary.
"""

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from peft import get_peft_model_state_dict
from transformers import GenerationConfig

from trainer.domain.plan import Build, ComputePlan, OptimisationPlan, TrainPlan
from trainer.training import isolation, peft_library, preference, token_loss
from trainer.training.adapted_model import Tensors
from trainer.training.batches import Example, MicroBatch
from trainer.training.compiling import compiled
from trainer.training.compute_precision import ComputePrecision
from trainer.training.libraries import TorchLibrary
from trainer.training.memory import peak_bytes, release_memory
from trainer.training.optimizer import Updater, make_updater
from trainer.training.preference import PreferenceObjective, Tally

log = logging.getLogger(__name__)


@dataclass(slots=True, kw_only=True)
class TorchModel:
    """See `adapted_model.AdaptedModel`.

    Attributes:
        module: the base with its adapter, a `PeftModel`.
        library: what has made `module`.
        trainable: the adapter's weights by name; they are what the optimizer moves.
    """

    module: Any
    compute_precision: ComputePrecision
    library: TorchLibrary
    trainable: dict[str, torch.nn.Parameter] = field(init=False)
    _updater: Updater | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        """Find the weights that are trained."""
        named = self.module.named_parameters()
        self.trainable = {name: each for name, each in named if each.requires_grad}

    @property
    def device(self) -> torch.device:
        """See `AdaptedModel`."""
        return self.compute_precision.device

    @property
    def end_ids(self) -> frozenset[int]:
        """See `AdaptedModel`."""
        configured = self.module.generation_config.eos_token_id
        ids = configured if isinstance(configured, list) else [configured]
        return frozenset(int(each) for each in ids if each is not None)

    @property
    def scales_loss(self) -> bool:
        """See `AdaptedModel`."""
        return self.compute_precision.scales_loss

    @property
    def updater(self) -> Updater:
        """What moves the weights."""
        assert self._updater is not None, "make_optimizer comes first"
        return self._updater

    def keeps_examples_apart(self) -> bool:
        """See `AdaptedModel`; measured where attention by segments does not prove it."""
        return isolation.is_proven(self.module) or isolation.keeps_examples_apart(
            self.module, self.compute_precision
        )

    def train(self) -> None:
        """See `AdaptedModel`."""
        self.module.train()

    def eval(self) -> None:
        """See `AdaptedModel`."""
        self.module.eval()

    @contextmanager
    def training_setup(self, compute: ComputePlan, build: Build) -> Iterator[None]:
        """See `AdaptedModel`; gradient checkpointing is a part of the module already."""
        del build
        wanted = compute.torch_compile and not self.library.HAS_FUSED_KERNELS
        with compiled(self.module, wanted=wanted) as count:
            log.info("%d parts of the model are compiled", count)
            try:
                yield
            finally:
                # Samples and proof need the memory of the moments.
                self._updater = None

    @contextmanager
    def generating(self) -> Iterator[None]:
        """See `AdaptedModel`."""
        was_training = self.module.training
        self.module.eval()
        try:
            with self.forked_random(), self.library.generating(self.module):
                yield
        finally:
            self.module.train(was_training)

    def as_base(self) -> AbstractContextManager[Any]:
        """See `AdaptedModel`."""
        return self.module.disable_adapter()  # type: ignore[no-any-return]

    def seed(self, seed: int) -> None:
        """See `AdaptedModel`."""
        torch.manual_seed(seed)

    def forked_random(self) -> AbstractContextManager[None]:
        """See `AdaptedModel`."""
        return torch.random.fork_rng(devices=[self.device] if self.device.type == "cuda" else [])

    def make_optimizer(self, plan: OptimisationPlan) -> None:
        """See `AdaptedModel`."""
        # The old moments are given back before there is room for new ones.
        self._updater = None
        self._updater = make_updater(plan, self.trainable)

    def reference_point(
        self,
        examples: Sequence[Example],
        objective: PreferenceObjective | None,
        *,
        micro_batch_size: int,
        packing: bool,
    ) -> float:
        """See `AdaptedModel`."""
        return preference.reference_point(
            self.module,
            examples,
            objective,
            self.compute_precision,
            micro_batch_size=micro_batch_size,
            packing=packing,
        )

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
        with self.compute_precision.context():
            loss = batch_loss(
                self.module, batch, objective, reference_point=reference_point, tally=tally
            )
        (loss / divisor * scale).backward()
        return loss.item()

    def clip(self, *, max_norm: float, scale: float = 1.0) -> float:
        """See `AdaptedModel`."""
        if scale != 1.0:
            for parameter in self.trainable.values():
                if parameter.grad is not None:
                    # A power of two, so that nothing rounds.
                    parameter.grad.mul_(1.0 / scale)
        limit = max_norm if max_norm > 0 else float("inf")
        return float(torch.nn.utils.clip_grad_norm_(list(self.trainable.values()), limit))

    def update(self, *, updates_before: int, lr: float) -> None:
        """See `AdaptedModel`."""
        self.updater.update(updates_before=updates_before, lr=lr)

    def discard_gradient(self) -> None:
        """See `AdaptedModel`."""
        for parameter in self.trainable.values():
            parameter.grad = None

    def loss(
        self,
        batch: MicroBatch,
        objective: PreferenceObjective | None,
        *,
        reference_point: float = 0.0,
    ) -> float:
        """See `AdaptedModel`."""
        with torch.no_grad(), self.compute_precision.context():
            return batch_loss(self.module, batch, objective, reference_point=reference_point).item()

    def weights(self) -> dict[str, torch.Tensor]:
        """See `AdaptedModel`; on the CPU: they must not take the device's memory from training."""
        return {name: each.detach().cpu().clone() for name, each in self.trainable.items()}

    def put(self, weights: Tensors) -> None:
        """See `AdaptedModel`."""
        with torch.no_grad():
            for name, parameter in self.trainable.items():
                parameter.copy_(weights[name])

    def live(self) -> dict[str, torch.Tensor]:
        """See `AdaptedModel`."""
        return dict(self.updater.tensors())

    def restore(self, tensors: Tensors) -> None:
        """See `AdaptedModel`."""
        with torch.no_grad():
            for name, target in self.updater.tensors():
                target.copy_(tensors[name])

    def free_memory(self) -> None:
        """See `AdaptedModel`."""
        self.discard_gradient()
        release_memory()

    def peak_bytes(self) -> int:
        """See `AdaptedModel`."""
        return peak_bytes(next(iter(self.trainable.values())).device)

    def generate(
        self, prompts: Sequence[Sequence[int]], *, end_ids: frozenset[int], tokens_max: int
    ) -> list[list[int]]:
        """See `AdaptedModel`; all prompts are one batch."""
        longest = max(len(prompt) for prompt in prompts)
        pad_id = min(end_ids, default=0)
        gaps = [longest - len(prompt) for prompt in prompts]
        ids_BT = torch.tensor(
            [[pad_id] * gap + list(ids) for gap, ids in zip(gaps, prompts, strict=True)],
            device=self.device,
        )
        mask_BT = torch.tensor(
            [[0] * gap + [1] * (longest - gap) for gap in gaps], device=self.device
        )
        with torch.no_grad(), self.compute_precision.context():
            out_BT = self.module.generate(
                input_ids=ids_BT,
                attention_mask=mask_BT,
                generation_config=GenerationConfig(
                    do_sample=False,
                    max_new_tokens=tokens_max,
                    eos_token_id=sorted(end_ids) or None,
                    pad_token_id=pad_id,
                ),
            )
        answers: list[list[int]] = out_BT[:, longest:].tolist()
        return answers

    def top_logprobs(
        self, conversation: Sequence[int], *, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """See `AdaptedModel`."""
        ids_1T = torch.tensor([list(conversation)], device=self.device)
        with torch.no_grad(), self.compute_precision.context():
            logits_TV = self.module(input_ids=ids_1T, use_cache=False).logits[0]
        top = logits_TV.float().log_softmax(-1).topk(min(count, logits_TV.shape[-1]), dim=-1)
        return top.values.cpu(), top.indices.to(torch.int32).cpu()

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """See `AdaptedModel`."""
        yield from self.module.named_parameters()

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """See `AdaptedModel`."""
        tensors: dict[str, torch.Tensor] = get_peft_model_state_dict(
            self.module, save_embedding_layers=False
        )
        return tensors

    def save(self, folder: Path) -> None:
        """See `AdaptedModel`."""
        self.module.save_pretrained(
            str(folder), safe_serialization=True, save_embedding_layers=False
        )

    @contextmanager
    def over_export_base(self, plan: TrainPlan, adapter_folder: Path) -> Iterator["TorchModel"]:
        """See `AdaptedModel`; a base in four bits gives way to the whole one."""
        if not self.compute_precision.four_bit:
            yield self
            return
        module, compute_precision = peft_library.over_whole_base(
            plan.base, plan.build, adapter_folder, self.compute_precision, seed=plan.batches.seed
        )
        whole = TorchModel(module=module, compute_precision=compute_precision, library=peft_library)
        with whole.generating():
            yield whole


def batch_loss(
    module: Any,
    batch: MicroBatch,
    objective: PreferenceObjective | None,
    *,
    reference_point: float,
    tally: Tally | None = None,
) -> torch.Tensor:
    """The summed loss of a micro-batch, by whichever method; preferences are counted in `tally`."""
    if objective is None:
        return token_loss.summed_loss(module, batch)
    return preference.summed_loss(
        module, batch, objective, reference_point=reference_point, tally=tally
    )
