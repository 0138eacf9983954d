"""The preference methods as their papers write them: a sequence at a time, all logits, two models.

Slow and obvious on purpose, and without a line of the trainer's own arithmetic: the reference is a
second model without an adapter, and every formula is spelt out in plain numbers.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch

from trainer.training.batches import IGNORED_LABEL, KtoExample, Pair, Row

# The loss of one step over (policy, reference, examples).
SlowLoss = Callable[[Any, Any, Sequence[Any]], torch.Tensor]


def logprob(model: Any, row: Row) -> torch.Tensor:
    """log pi(y | x): the sum over the continuation's tokens."""
    logits_TV = model(input_ids=torch.tensor([row.ids.tolist()])).logits[0]
    logprobs_TV = torch.log(torch.softmax(logits_TV.double(), dim=1))
    words = [place for place, label in enumerate(row.labels) if label != IGNORED_LABEL]
    return torch.stack([logprobs_TV[place - 1, int(row.ids[place])] for place in words]).sum()


def length(row: Row) -> int:
    """|y|."""
    return sum(int(label) != IGNORED_LABEL for label in row.labels)


def log_ratio(policy: Any, reference: Any, row: Row) -> torch.Tensor:
    """log pi(y | x) - log pi_ref(y | x)."""
    with torch.no_grad():
        anchor = logprob(reference, row)
    return logprob(policy, row) - anchor


def dpo(beta: float) -> SlowLoss:
    """arXiv:2305.18290, equation 7: the mean over the pairs."""

    def loss(policy: Any, reference: Any, pairs: Sequence[Pair]) -> torch.Tensor:
        total = torch.zeros(())
        for pair in pairs:
            better = beta * log_ratio(policy, reference, pair.chosen)
            worse = beta * log_ratio(policy, reference, pair.rejected)
            total = total - torch.log(1 / (1 + torch.exp(-(better - worse))))
        return total / len(pairs)

    return loss


def orpo(weight: float) -> SlowLoss:
    """arXiv:2403.07691, equations 3 to 7: the mean over the pairs."""

    def loss(policy: Any, reference: Any, pairs: Sequence[Pair]) -> torch.Tensor:
        total = torch.zeros(())
        for pair in pairs:
            likely = torch.exp(logprob(policy, pair.chosen) / length(pair.chosen))
            unlikely = torch.exp(logprob(policy, pair.rejected) / length(pair.rejected))
            ratio = (likely / (1 - likely)) / (unlikely / (1 - unlikely))
            odds_loss = -torch.log(1 / (1 + torch.exp(-torch.log(ratio))))
            total = total - torch.log(likely) + weight * odds_loss
        return total / len(pairs)

    return loss


def simpo(beta: float, gamma: float) -> SlowLoss:
    """arXiv:2405.14734, equation 6: the mean over the pairs."""

    def loss(policy: Any, reference: Any, pairs: Sequence[Pair]) -> torch.Tensor:
        total = torch.zeros(())
        for pair in pairs:
            better = beta / length(pair.chosen) * logprob(policy, pair.chosen)
            worse = beta / length(pair.rejected) * logprob(policy, pair.rejected)
            total = total - torch.log(1 / (1 + torch.exp(-(better - worse - gamma))))
        return total / len(pairs)

    return loss


def kto(beta: float) -> SlowLoss:
    """arXiv:2402.01306, equation 8: the mean of lambda_y - v(x, y) over the examples.

    z_0 is the mean over (x_1, y_2), (x_2, y_3), …, (x_m, y_1), at least 0, without a gradient.
    """

    def loss(policy: Any, reference: Any, examples: Sequence[KtoExample]) -> torch.Tensor:
        count = len(examples)
        strangers = [stranger(examples[i], examples[(i + 1) % count]) for i in range(count)]
        with torch.no_grad():
            distance = sum(float(log_ratio(policy, reference, row)) for row in strangers)
        point = max(0.0, distance / count)
        total = torch.zeros(())
        for example in examples:
            reward = log_ratio(policy, reference, example.completion)
            away = reward - point if example.desirable else point - reward
            value = example.weight / (1 + torch.exp(-beta * away))
            total = total + example.weight - value
        return total / count

    return loss


def stranger(one: KtoExample, other: KtoExample) -> Row:
    """The prompt of one with the continuation of the other."""
    prompt = [int(token) for token in one.completion.ids][: -length(one.completion)]
    words = [int(token) for token in other.completion.ids][-length(other.completion) :]
    ids = torch.tensor(prompt + words).numpy()
    return Row(ids=ids, labels=torch.tensor([IGNORED_LABEL] * len(prompt) + words).numpy())
