"""AdamW in its variants: made whole before the first step, and an update happens once.

The moments exist before the first step, so that no step needs new memory for them. torch's fused
update happens whole or not at all. bitsandbytes goes from weight to weight; when memory runs out at
one of them, that one is put back and made again, because the ones before it have moved.
"""

import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from lexicon.faults import Fault, FaultCode
from modelspec.recipe import Optimizer
from trainer.domain.healing import TRIES_AT_ONE_MAX
from trainer.domain.plan import OptimisationPlan
from trainer.training.capabilities import require_bitsandbytes
from trainer.training.compute_precision import one_thread
from trainer.training.memory import is_out_of_memory, release_memory

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
# Tables that are the same in every run: they are no state.
CONSTANT_KEYS = frozenset({"qmap1", "qmap2"})
STEP_KEY = "step"


Trainable = Mapping[str, torch.nn.Parameter]
Spare = tuple[str, torch.Size, torch.dtype]


@dataclass(slots=True, kw_only=True)
class Updater:
    """An optimizer over the trainable weights, whatever its kind.

    Attributes:
        spares: room for what an update changes of one weight, by kind and shape, for optimizers
            that go from weight to weight; None for one that cannot stop in between.
    """

    optimizer: torch.optim.Optimizer
    trainable: Trainable
    spares: dict[Spare, torch.Tensor] | None = None

    def update(self, *, updates_before: int, lr: float) -> None:
        """One update of the weights by their gradients.

        AdamW counts its updates before it moves the weights; the count is put back first, so that
        an update that ran out of memory in between is the same when it is made again.

        Args:
            updates_before: how many updates were made before this one.
        Raises:
            Fault: RUNTIME_GPU_OOM when some weights have moved and there is no memory for the rest.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        if self.spares is None:
            for parameter in self.trainable.values():
                self.optimizer.state[parameter][STEP_KEY].fill_(updates_before)
            self.optimizer.step()
            return
        for group_index, group in enumerate(self.optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                # A layer that the step did not run through, such as an idle expert.
                if parameter.grad is not None:
                    self._update_one(group_index, index, parameter, self.spares, updates_before)

    def _update_one(
        self,
        group_index: int,
        index: int,
        parameter: torch.nn.Parameter,
        spares: Mapping[Spare, torch.Tensor],
        updates_before: int,
    ) -> None:
        optimizer: Any = self.optimizer
        group = optimizer.param_groups[group_index]
        parts = [(live, spares[spare_of(key, live)]) for key, live in self._parts(parameter)]
        _copy((spare, live) for live, spare in parts)
        for _ in range(TRIES_AT_ONE_MAX):
            optimizer.state[parameter][STEP_KEY] = updates_before
            try:
                optimizer.prefetch_state(parameter)
                optimizer.update_step(group, parameter, group_index, index)
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
            else:
                return
            # Outside the handler: the error's traceback holds what filled the memory.
            _copy(parts)
            release_memory()
        raise Fault(
            FaultCode.RUNTIME_GPU_OOM,
            f"Out of memory {TRIES_AT_ONE_MAX} times in the update of a weight",
        )

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The live weights and moments, as `key/name of the weight`; without the count."""
        for name, parameter in self.trainable.items():
            for key, live in self._parts(parameter):
                yield f"{key}/{name}", live

    def make_spares(self) -> None:
        """Set room aside for what an update changes of one weight."""
        self.spares = {}
        for parameter in self.trainable.values():
            for key, live in self._parts(parameter):
                self.spares.setdefault(spare_of(key, live), torch.empty_like(live))

    def _parts(self, parameter: torch.nn.Parameter) -> Iterator[tuple[str, torch.Tensor]]:
        yield "weight", parameter.detach()
        for key, value in self.optimizer.state[parameter].items():
            if key != STEP_KEY and key not in CONSTANT_KEYS:
                yield key, value


def spare_of(key: str, live: torch.Tensor) -> Spare:
    """Which spare a tensor fits into."""
    return key, live.shape, live.dtype


def make_updater(plan: OptimisationPlan, trainable: Trainable) -> Updater:
    """The optimizer that the plan wants, its moments zero.

    Raises:
        Fault: CONFIG_INVALID_SETTING for an 8-bit optimizer on a node without bitsandbytes.
    """
    if plan.optimizer is Optimizer.ADAMW_TORCH:
        with one_thread():
            return Updater(optimizer=_adamw(plan, trainable), trainable=trainable)
    updater = Updater(optimizer=_eight_bit(plan, trainable), trainable=trainable)
    updater.make_spares()
    return updater


def _adamw(plan: OptimisationPlan, trainable: Trainable) -> torch.optim.Optimizer:
    optimizer = torch.optim.AdamW(
        list(trainable.values()),
        lr=plan.lr_peak,
        betas=ADAM_BETAS,
        eps=ADAM_EPSILON,
        weight_decay=plan.weight_decay,
        fused=True,
    )
    for parameter in trainable.values():
        optimizer.state[parameter] = {
            STEP_KEY: torch.zeros((), dtype=torch.float32, device=parameter.device),
            "exp_avg": torch.zeros_like(parameter),
            "exp_avg_sq": torch.zeros_like(parameter),
        }
    return optimizer


def _eight_bit(plan: OptimisationPlan, trainable: Trainable) -> torch.optim.Optimizer:
    """AdamW whose moments are 8-bit blocks; small weights keep moments of 32 bits.

    Source: Dettmers et al. 2022, arXiv:2110.02861.
    """
    require_bitsandbytes(
        f"the optimizer {plan.optimizer}",
        next(iter(trainable.values())).device,
        field="training.optimizer",
        instead=f"Use {Optimizer.ADAMW_TORCH}, or take another tier.",
    )
    import bitsandbytes

    paged = plan.optimizer is Optimizer.PAGED_ADAMW_8BIT
    kinds: Any = bitsandbytes.optim
    kind = kinds.PagedAdamW8bit if paged else kinds.AdamW8bit
    optimizer: Any = kind(
        list(trainable.values()),
        lr=plan.lr_peak,
        betas=ADAM_BETAS,
        eps=ADAM_EPSILON,
        weight_decay=plan.weight_decay,
    )
    # What its first step would do, done before any step.
    optimizer.check_overrides()
    optimizer.to_gpu()
    optimizer.initialized = True
    with warnings.catch_warnings():
        # On a CPU there is nothing to page out to; the paged kind is the plain one there.
        warnings.simplefilter("ignore", UserWarning)
        for group_index, group in enumerate(optimizer.param_groups):
            for index, parameter in enumerate(group["params"]):
                optimizer.init_state(group, parameter, group_index, index)
    return optimizer  # type: ignore[no-any-return]


@torch.no_grad()
def _copy(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> None:
    """Copy each second into its first; no memory is needed for it."""
    for target, source in pairs:
        target.copy_(source)
