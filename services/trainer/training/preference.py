"""What the methods that learn from preferences minimise.

The log-probability of a continuation is the sum over its trained tokens. The reference of DPO and
KTO is the base: the same model with its adapter switched off, so no second copy is in memory. Every
loss is a sum over examples, to be divided by all of the step's: how a step is cut into
micro-batches does not change it.

Shapes: N trained tokens, S sequences of a micro-batch, B examples of a micro-batch.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn.functional import logsigmoid

from modelspec.recipe import Method
from trainer.domain.plan import Objective
from trainer.training.batches import (
    IGNORED_LABEL,
    Example,
    KtoExample,
    MicroBatch,
    Row,
    micro_batches,
    sequences_of,
)
from trainer.training.compute_precision import ComputePrecision
from trainer.training.token_loss import token_losses

# Below this a mean log-probability counts as certainty, whose odds would be infinite.
LOGPROB_MAX = -float(np.finfo(np.float32).eps)


@dataclass(frozen=True, slots=True, kw_only=True)
class PreferenceObjective:
    """A method with its constants; see `PreferencePlan`."""

    method: Method
    beta: float
    gamma: float
    max_sequence_tokens: int


@dataclass(slots=True, kw_only=True)
class Tally:
    """How surely a step's examples were ranked correctly, over all its micro-batches.

    The margin of a pair is beta times how much more likely the chosen continuation is than the
    rejected one: by log-ratios to the reference (DPO), or by mean log-probabilities (ORPO, SimPO).
    That of a single example (KTO) is beta times how far its log-ratio is beyond the reference
    point, to the side where its verdict wants it. Above 0 is right.
    """

    margin_sum: float = 0.0
    right_count: int = 0
    count: int = 0

    def add(self, margins_B: torch.Tensor) -> None:
        """Count the examples of a micro-batch in."""
        self.margin_sum += margins_B.detach().sum().item()
        self.right_count += int((margins_B > 0).sum())
        self.count += len(margins_B)

    @property
    def margin(self) -> float | None:
        """Mean margin; None where nothing is preferred."""
        return self.margin_sum / self.count if self.count else None

    @property
    def accuracy(self) -> float | None:
        """Share of examples whose margin is above 0; None where nothing is preferred."""
        return self.right_count / self.count if self.count else None


def objective_of(objective: Objective) -> PreferenceObjective | None:
    """What is wanted of preferences; None for SFT, which learns single tokens."""
    if objective.method is Method.SFT:
        return None
    assert objective.preference is not None, "a plan of a preference method has its constants"
    return PreferenceObjective(
        method=objective.method,
        beta=objective.preference.beta,
        gamma=objective.preference.simpo_gamma,
        max_sequence_tokens=objective.max_sequence_tokens,
    )


def summed_loss(
    model: Any,
    batch: MicroBatch,
    objective: PreferenceObjective,
    *,
    reference_point: float,
    tally: Tally | None = None,
) -> torch.Tensor:
    """The loss summed over the examples of a micro-batch.

    Args:
        reference_point: what `reference_point` said of all examples of the step; only KTO reads it.
        tally: counts the examples in.
    """
    tally = tally or Tally()
    match objective.method:
        case Method.DPO:
            ratios_S = log_ratios(model, batch)
            tally.add(objective.beta * (ratios_S[0::2] - ratios_S[1::2]))
            return dpo_losses(ratios_S, beta=objective.beta).sum()
        case Method.ORPO:
            means_S = _mean_logprobs(model, batch)
            tally.add(objective.beta * (means_S[0::2] - means_S[1::2]))
            return orpo_losses(means_S, beta=objective.beta).sum()
        case Method.SIMPO:
            means_S = _mean_logprobs(model, batch)
            tally.add(objective.beta * (means_S[0::2] - means_S[1::2]))
            return simpo_losses(means_S, beta=objective.beta, gamma=objective.gamma).sum()
        case Method.KTO:
            ratios_B = log_ratios(model, batch)
            signs_B = _signs(batch.examples, like=ratios_B)
            tally.add(signs_B * objective.beta * (ratios_B - reference_point))
            return kto_losses(
                ratios_B, batch.examples, beta=objective.beta, point=reference_point
            ).sum()
        case Method.SFT:
            raise AssertionError("SFT has no preferences")


def dpo_losses(ratios_S: torch.Tensor, *, beta: float) -> torch.Tensor:
    """-log sigmoid(beta (r_chosen - r_rejected)) of each pair, (B,).

    Args:
        ratios_S: log-ratios of policy and reference, chosen and rejected in turn.
    Source: Rafailov et al. 2023, arXiv:2305.18290, equation 7.
    """
    return -logsigmoid(beta * (ratios_S[0::2] - ratios_S[1::2]))


def orpo_losses(means_S: torch.Tensor, *, beta: float) -> torch.Tensor:
    """NLL of the chosen continuation and beta times the log of the odds ratio, of each pair, (B,).

    Args:
        means_S: mean log-probability of a token, chosen and rejected in turn.
    Source: Hong et al. 2024, arXiv:2403.07691, equations 4 to 7; beta is their lambda.
    """
    certain_S = means_S.clamp(max=LOGPROB_MAX)
    log_odds_S = certain_S - torch.log(-torch.expm1(certain_S))
    return -means_S[0::2] - beta * logsigmoid(log_odds_S[0::2] - log_odds_S[1::2])


def simpo_losses(means_S: torch.Tensor, *, beta: float, gamma: float) -> torch.Tensor:
    """-log sigmoid(beta (mean_chosen - mean_rejected) - gamma) of each pair, (B,).

    Args:
        means_S: mean log-probability of a token, chosen and rejected in turn.
    Source: Meng et al. 2024, arXiv:2405.14734, equation 6.
    """
    return -logsigmoid(beta * (means_S[0::2] - means_S[1::2]) - gamma)


def kto_losses(
    ratios_B: torch.Tensor, examples: Sequence[Example], *, beta: float, point: float
) -> torch.Tensor:
    """weight (1 - sigmoid(±beta (ratio - point))) of each example, plus when desirable, (B,).

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, equation 8.
    """
    kto_examples = [example for example in examples if isinstance(example, KtoExample)]
    signs_B = _signs(examples, like=ratios_B)
    weights_B = ratios_B.new_tensor([example.weight for example in kto_examples])
    return weights_B * (1 - torch.sigmoid(signs_B * beta * (ratios_B - point)))


def reference_point(
    model: Any,
    examples: Sequence[Example],
    objective: PreferenceObjective | None,
    compute_precision: ComputePrecision,
    *,
    micro_batch_size: int,
    packing: bool,
) -> float:
    """KTO's estimate of how far the policy is from the reference, in nats, at least 0.

    It is the mean log-ratio over prompts with the answers of other examples, and no gradient goes
    through it. It is taken over all examples of a step, not over a micro-batch: else the loss would
    depend on how the step is cut. 0 for other methods, and where there is no other example.

    Source: Ethayarajh et al. 2024, arXiv:2402.01306, section 4.2.
    """
    if objective is None or objective.method is not Method.KTO or len(examples) < 2:
        return 0.0
    strangers = mismatched(sequences_of(examples), max_tokens=objective.max_sequence_tokens)
    total = 0.0
    for batch in micro_batches(
        strangers,
        micro_batch_size=micro_batch_size,
        packing=packing,
        device=compute_precision.device,
    ):
        with _judging(model), compute_precision.context():
            total += log_ratios(model, batch).sum().item()
    return max(0.0, total / len(strangers))


def mismatched(rows: Sequence[Row], *, max_tokens: int) -> list[Row]:
    """Every prompt with a continuation of another prompt, that of the next row that has one."""
    starts = [1 + int((row.labels[1:] != IGNORED_LABEL).argmax()) for row in rows]
    prompts = [row.ids[:start] for row, start in zip(rows, starts, strict=True)]
    strangers = []
    for prompt, place in zip(prompts, _strangers([p.tobytes() for p in prompts]), strict=True):
        other, start = rows[place], starts[place]
        ids = np.concatenate([prompt, other.ids[start:]])
        labels = np.concatenate([np.full_like(prompt, IGNORED_LABEL), other.labels[start:]])
        strangers.append(Row(ids=ids[:max_tokens], labels=labels[:max_tokens]))
    return strangers


def log_ratios(model: Any, batch: MicroBatch) -> torch.Tensor:
    """log policy - log reference of each sequence, (S,); the gradient is the policy's alone."""
    # The reference comes first: switching the adapter off takes its weights' gradient from them,
    # which must not happen between the policy's forward and backward pass.
    with _judging(model), model.disable_adapter():
        reference_S = _logprobs(model, batch)
    return _logprobs(model, batch) - reference_S


def _signs(examples: Sequence[Example], *, like: torch.Tensor) -> torch.Tensor:
    """1 for each desirable example and -1 for each other, (B,)."""
    kto_examples = [example for example in examples if isinstance(example, KtoExample)]
    return like.new_tensor([1.0 if example.desirable else -1.0 for example in kto_examples])


def _logprobs(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Log-probability of each sequence's trained tokens, (S,)."""
    counts = [row.trained_count for row in sequences_of(batch.examples)]
    parts = token_losses(model, batch).split(counts)
    # In float64: differences of large sums are all that counts.
    return torch.stack([-part.sum(dtype=torch.float64) for part in parts])


def _mean_logprobs(model: Any, batch: MicroBatch) -> torch.Tensor:
    """Mean log-probability of each sequence's trained tokens, (S,)."""
    logprobs_S = _logprobs(model, batch)
    counts = [row.trained_count for row in sequences_of(batch.examples)]
    return logprobs_S / logprobs_S.new_tensor(counts)


@contextmanager
def _judging(model: Any) -> Iterator[None]:
    """No gradient and no dropout; the mode before comes back whatever happens."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)


def _strangers(prompts: Sequence[bytes]) -> list[int]:
    """For each prompt the next place, around the end, with another one; else the next place."""
    count, is_same = len(prompts), len(set(prompts)) == 1
    places = [0] * count
    # Backwards and twice around: what follows the last prompt is known in the second round.
    for step in reversed(range(2 * count)):
        here, after = step % count, (step + 1) % count
        differs = is_same or prompts[after] != prompts[here]
        places[here] = after if differs else places[after]
    return places
