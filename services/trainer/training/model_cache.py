"""What stays in memory between two runs on one base, so that the second begins at once.

A second run must be bit for bit what it would be in a fresh process. So nothing that a run changes
is kept as it is: the base is frozen, the adapter's weights are drawn again from the run's own seed,
encoded rows cannot be written to. A run that fails leaves nothing behind at all.
"""

import logging
import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer

from modelspec.recipe import Method
from trainer.domain.plan import Base, BatchPlan, Build, Objective
from trainer.training import peft_library
from trainer.training.compute_precision import ComputePrecision, one_thread
from trainer.training.dataset import DatasetCache
from trainer.training.libraries import TorchLibrary
from trainer.training.memory import release_memory
from trainer.training.probe import BatchShape

log = logging.getLogger(__name__)

# What nn.Linear passes to its own initialisation, and PEFT to that of A.
KAIMING_SLOPE = math.sqrt(5)
# Datasets whose largest micro-batches are remembered at once, none of them larger in every way.
BATCH_SHAPES_MAX = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditions:
    """Under which a micro-batch that fits once fits again."""

    build: Build
    method: Method
    packing: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A base model in memory, and what it was loaded as."""

    digest: str
    compute_precision: ComputePrecision
    library: TorchLibrary
    model: Any


@dataclass(slots=True, kw_only=True)
class ModelCache:
    """The base in memory with the last run's adapter on it, and what is known of both.

    Attributes:
        base: None before the first run, and after one that failed.
        adapted: `base.model` as it was adapted by `build`; None when it carries no adapter.
        dataset_cache: tokenizer, template and datasets as they were read.
        proven: the largest micro-batches that were tried on this base, the latest first.
    """

    base: Loaded | None = None
    adapted: PeftModel | None = None
    build: Build | None = None
    dataset_cache: DatasetCache = field(default_factory=DatasetCache)
    proven: dict[Conditions, tuple[BatchShape, ...]] = field(default_factory=dict)

    def width_of(self, base: Base) -> int:
        """Size of the model's hidden state; the files of a cached base are not read again.

        Raises:
            Fault: MODEL_ARCHITECTURE_UNSUPPORTED when the architecture is not known.
        """
        if self.base is None or self.base.digest != base.digest:
            return peft_library.width_of(base)
        return int(self.base.model.config.get_text_config().hidden_size)

    def adapted_for(
        self,
        base: Base,
        build: Build,
        library: TorchLibrary,
        compute_precision: ComputePrecision,
        *,
        seed: int,
    ) -> PeftModel:
        """The base with a fresh adapter, out of what is in memory as far as that goes.

        Raises:
            Fault: the codes of the library's `load_base` and `attach`.
        """
        loaded = self._found(base, library, compute_precision)
        if loaded is not None and self.adapted is not None:
            if self.build == build and is_renewable(self.adapted, library):
                renew(self.adapted, seed=seed)
                return self.adapted
            library.detach(self.adapted)
        if loaded is None:
            # The old base goes before the new one comes: there may not be room for both.
            self.drop_base()
            model = library.load_base(base, compute_precision)
            loaded = Loaded(
                digest=base.digest,
                compute_precision=compute_precision,
                library=library,
                model=model,
            )
            self.base = loaded
        # Forgotten before it is made: a failed attempt must not pass for the one before.
        self.adapted, self.build = None, None
        adapted: PeftModel = library.attach(loaded.model, build, seed=seed)
        self.adapted, self.build = adapted, build
        return adapted

    def prove(self, conditions: Conditions, batch_shape: BatchShape) -> None:
        """Remember a micro-batch that was tried and fits; smaller ones are forgotten for it."""
        larger = [e for e in self.proven.get(conditions, ()) if not batch_shape.covers(e)]
        self.proven[conditions] = (batch_shape, *larger)[:BATCH_SHAPES_MAX]

    def keep(self) -> bool:
        """Make what is in memory ready for the next run; whether a base stays."""
        if self.base is None or self.adapted is None:
            return False
        if is_renewable(self.adapted, self.base.library):
            return True
        adapted, self.adapted, self.build = self.adapted, None, None
        bare = self.base.library.detach(adapted)
        if bare is None:
            self.drop_base()
            return False
        self.base = replace(self.base, model=bare)
        return True

    def drop(self) -> None:
        """Forget everything and give its memory back."""
        self.dataset_cache = DatasetCache()
        self.drop_base()

    def drop_base(self) -> None:
        """Forget the base and what is known of it; encoded datasets stay."""
        self.base, self.adapted, self.build = None, None, None
        self.proven.clear()
        release_memory()

    def _found(
        self, base: Base, library: TorchLibrary, compute_precision: ComputePrecision
    ) -> Loaded | None:
        loaded = self.base
        wanted = (base.digest, compute_precision, library.NAME)
        if (
            loaded is None
            or (loaded.digest, loaded.compute_precision, loaded.library.NAME) != wanted
        ):
            return None
        log.info("base %s is cached", base.base_model)
        return loaded


def conditions_of(build: Build, objective: Objective, batches: BatchPlan) -> Conditions:
    """What a trial of the largest micro-batch holds for."""
    return Conditions(build=build, method=objective.method, packing=batches.packing)


def is_renewable(adapted: PeftModel, library: TorchLibrary) -> bool:
    """Whether `renew` gives the adapter what a new one would have.

    It has to be plain LoRA on linear layers, made by PEFT itself: DoRA's magnitudes depend on the
    base, and Unsloth draws its numbers in its own way.
    """
    return library.NAME == peft_library.NAME and all(
        not layer.lora_variant and not layer.lora_embedding_A and not any(layer.lora_bias.values())
        for layer in _layers(adapted)
    )


def renew(adapted: PeftModel, *, seed: int) -> None:
    """Give the adapter the weights that a new one would begin with, bit for bit.

    A new layer of PEFT draws for A, for B and then for A again, on the CPU and in float32; what it
    throws away is drawn here as well, so that the same numbers come out.
    """
    torch.manual_seed(seed)
    with torch.no_grad(), one_thread():
        for layer in _layers(adapted):
            for name, down in layer.lora_A.items():
                up = layer.lora_B[name]
                _drawn(down.weight)
                _drawn(up.weight)
                down.weight.copy_(_drawn(down.weight))
                up.weight.zero_()
                down.weight.grad = up.weight.grad = None


def _layers(adapted: PeftModel) -> Iterator[Any]:
    """The adapted layers in the order in which PEFT made them."""
    return (module for module in adapted.modules() if isinstance(module, LoraLayer))


def _drawn(weight: torch.Tensor) -> torch.Tensor:
    fresh = torch.empty(weight.shape, dtype=torch.float32)
    return torch.nn.init.kaiming_uniform_(fresh, a=KAIMING_SLOPE)
