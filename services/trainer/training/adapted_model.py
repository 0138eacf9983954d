"""What the training loop needs of a base model with an adapter, whichever library computes it.

Schedule, order of the rows, healing, checks and counters are the loop's own; this is the rest.
Tensors cross this border as torch's on the CPU, under the names that their library gives them.

Shapes: T tokens, K likeliest tokens.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import torch

from trainer.domain.plan import Build, ComputePlan, OptimisationPlan, TrainPlan
from trainer.training.batches import Example, MicroBatch
from trainer.training.preference import PreferenceObjective, Tally

Tensors = Mapping[str, torch.Tensor]


class AdaptedModel(Protocol):
    """A frozen base model with an adapter that is trained, asked and saved.

    Whatever computes may run out of memory; `memory.is_out_of_memory` knows the error. Nothing has
    changed then but the gradient, which `free_memory` gives back.
    """

    @property
    def device(self) -> torch.device:
        """Where micro-batches are laid out."""
        ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer, as the model's own files say."""
        ...

    @property
    def scales_loss(self) -> bool:
        """Whether gradients are computed in fp16, whose range small ones fall out of."""
        ...

    def keeps_examples_apart(self) -> bool:
        """Whether examples that share a row do not see each other."""
        ...

    # Modes.

    def train(self) -> None:
        """Dropout is on from here."""
        ...

    def eval(self) -> None:
        """Dropout is off from here."""
        ...

    def training_setup(self, compute: ComputePlan, build: Build) -> AbstractContextManager[None]:
        """The context in which steps are taken; optimizer and gradient are released after it."""
        ...

    def generating(self) -> AbstractContextManager[None]:
        """The context of `generate` and `top_logprobs`; training goes on after it as without it."""
        ...

    def as_base(self) -> AbstractContextManager[Any]:
        """The context in which the adapter is switched off."""
        ...

    def seed(self, seed: int) -> None:
        """Begin the random numbers of dropout at `seed`."""
        ...

    def forked_random(self) -> AbstractContextManager[None]:
        """The context in which numbers may be drawn without a later step drawing others."""
        ...

    # A step.

    def make_optimizer(self, plan: OptimisationPlan) -> None:
        """AdamW with moments of zero, in the place of the one before."""
        ...

    def reference_point(
        self,
        examples: Sequence[Example],
        objective: PreferenceObjective | None,
        *,
        micro_batch_size: int,
        packing: bool,
    ) -> float:
        """See `preference.reference_point`; 0 for every method but KTO."""
        ...

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
        """The summed loss of a micro-batch; its gradient is added to those before it.

        Args:
            divisor: what the summed loss is divided by before it is differentiated.
            scale: the loss scale; 1 unless `scales_loss`.
            tally: counts the examples of a preference method in.
        """
        ...

    def clip(self, *, max_norm: float, scale: float = 1.0) -> float:
        """The norm of the gradient, which is at most `max_norm` after it; 0 leaves it as it is.

        Args:
            scale: the loss scale that is taken out of the gradient first.
        """
        ...

    def update(self, *, updates_before: int, lr: float) -> None:
        """One update of the adapter by the gradient; whole, or not at all.

        Args:
            updates_before: how many updates this optimizer has made.
        """
        ...

    def discard_gradient(self) -> None:
        """Forget the gradient."""
        ...

    def loss(
        self,
        batch: MicroBatch,
        objective: PreferenceObjective | None,
        *,
        reference_point: float = 0.0,
    ) -> float:
        """The summed loss of a micro-batch, without a gradient."""
        ...

    # What it holds.

    def weights(self) -> dict[str, torch.Tensor]:
        """The adapter's weights, independent of what training does next."""
        ...

    def put(self, weights: Tensors) -> None:
        """Put other weights into the adapter; the optimizer keeps its moments."""
        ...

    def live(self) -> dict[str, torch.Tensor]:
        """Weights and moments as a checkpoint holds them; the next update may change them."""
        ...

    def restore(self, tensors: Tensors) -> None:
        """Put back what `live` gave; names, shapes and types have been compared."""
        ...

    def free_memory(self) -> None:
        """Give back what a failed forward or backward pass has left behind."""
        ...

    def peak_bytes(self) -> int:
        """Largest memory since the run began."""
        ...

    # Generation.

    def generate(
        self, prompts: Sequence[Sequence[int]], *, end_ids: frozenset[int], tokens_max: int
    ) -> list[list[int]]:
        """Greedy answers as token ids; what follows an end token means nothing."""
        ...

    def top_logprobs(
        self, conversation: Sequence[int], *, count: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens after every token: logarithms (T, K), then their ids (T, K)."""
        ...

    # What it leaves.

    def named_parameters(self) -> Iterator[tuple[str, torch.Tensor]]:
        """The adapter's weights, among others, by PEFT's names."""
        ...

    def adapter_tensors(self) -> dict[str, torch.Tensor]:
        """The adapter's weights by the names that its file gives them."""
        ...

    def save(self, folder: Path) -> None:
        """Write the two files that `PeftModel.from_pretrained` reads."""
        ...

    def over_export_base(
        self, plan: TrainPlan, adapter_folder: Path
    ) -> AbstractContextManager["AdaptedModel"]:
        """The adapter in `adapter_folder` over the base that an export merges it into, to be asked.

        Raises:
            Fault: RUNTIME_GPU_OOM when there is no memory for it.
        """
        ...
