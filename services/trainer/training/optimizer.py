"""AdamW in its variants: made whole before the first step, updated whole or not at all.

The moments exist before the first step, so that no step needs new memory for them. torch's fused
update happens whole or not at all. bitsandbytes goes from weight to weight: there the weights and
moments are kept in copies that lie ready, and put back when memory runs out in between.
"""

import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from trainer.domain.plan import Optimizer, TrainPlan
from trainer.training.capabilities import require_bitsandbytes

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
# Tables that are the same in every run: they are no state.
CONSTANT_KEYS = frozenset({"qmap1", "qmap2"})
STEP_KEY = "step"

Trainable = Mapping[str, torch.nn.Parameter]


@dataclass(slots=True, kw_only=True)
class Updater:
    """An optimizer over the trainable weights, whatever its kind.

    Attributes:
        copies: (live tensor, its copy) of all that an update changes; empty where an update cannot
            stop in between.
    """

    optimizer: torch.optim.Optimizer
    trainable: Trainable
    copies: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def update(self, *, updates_before: int, lr: float) -> None:
        """One update of the weights by their gradients.

        AdamW counts its updates before it moves the weights; the count is put back first, so that
        an update that ran out of memory in between is the same when it is made again.

        Args:
            updates_before: how many updates were made before this one.
        """
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self._count(updates_before)
        with torch.no_grad():
            for live, copy in self.copies:
                copy.copy_(live)
        try:
            self.optimizer.step()
        except (RuntimeError, MemoryError):
            with torch.no_grad():
                for live, copy in self.copies:
                    live.copy_(copy)
            raise

    def tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The live weights and moments, as `key/name of the weight`; without the count."""
        for name, parameter in self.trainable.items():
            yield f"weight/{name}", parameter.data
            for key, value in self.optimizer.state[parameter].items():
                if key != STEP_KEY and key not in CONSTANT_KEYS:
                    yield f"{key}/{name}", value

    def _count(self, updates: int) -> None:
        for parameter in self.trainable.values():
            state = self.optimizer.state[parameter]
            if isinstance(state[STEP_KEY], torch.Tensor):
                state[STEP_KEY].fill_(updates)
            else:
                state[STEP_KEY] = updates


def make_updater(plan: TrainPlan, trainable: Trainable) -> Updater:
    """The optimizer that the plan wants, its moments zero.

    Raises:
        Fault: CONFIG_INVALID_SETTING for an 8-bit optimizer on a node without bitsandbytes.
    """
    if plan.optimizer is Optimizer.ADAMW_TORCH:
        return Updater(optimizer=_adamw(plan, trainable), trainable=trainable)
    updater = Updater(optimizer=_eight_bit(plan, trainable), trainable=trainable)
    updater.copies = [(live, torch.empty_like(live)) for _, live in updater.tensors()]
    return updater


def _adamw(plan: TrainPlan, trainable: Trainable) -> torch.optim.Optimizer:
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


def _eight_bit(plan: TrainPlan, trainable: Trainable) -> torch.optim.Optimizer:
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
