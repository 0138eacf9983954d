"""An MLX model speaks: greedy answers, and what it expects after every token.

Shapes: T tokens, K likeliest tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from itertools import islice
from typing import Any

import mlx.core as mx
import numpy as np
import torch
from mlx_lm.generate import generate_step

from trainer.training.mlx_rail.model import Adapted
from trainer.training.speech import ANSWER_TOKENS_MAX, TOP_K, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class MlxSpeaker:
    """See `speech.Voice`."""

    adapted: Adapted
    tokenizer: Any
    end_ids: frozenset[int]
    special_tokens: frozenset[str]

    def as_base(self) -> AbstractContextManager[None]:
        """See `speech.Voice`."""
        return self.adapted.as_base()

    def generate(self, prompts: Sequence[Prompt]) -> list[list[int]]:
        """See `speech.Voice`."""
        return [self._answer(prompt) for prompt in prompts]

    def top_logprobs(self, conversation: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `speech.Voice`."""
        logits_TV = self.adapted.model(mx.array(list(conversation))[None])[0].astype(mx.float32)
        logprobs_TV = logits_TV - mx.logsumexp(logits_TV, axis=-1, keepdims=True)
        order_TK = mx.argsort(-logprobs_TV, axis=-1)[:, :TOP_K]
        top_TK = mx.take_along_axis(logprobs_TV, order_TK, axis=-1)
        return (
            torch.from_numpy(np.array(top_TK)),
            torch.from_numpy(np.array(order_TK.astype(mx.int32))),
        )

    def _answer(self, prompt: Prompt) -> list[int]:
        said: list[int] = []
        steps = generate_step(
            mx.array(list(prompt.ids)), self.adapted.model, max_tokens=ANSWER_TOKENS_MAX
        )
        # One token more is already being computed when the end token is seen; it is let go.
        for token, _ in islice(steps, ANSWER_TOKENS_MAX):
            said.append(int(token))
            if said[-1] in self.end_ids:
                break
        return said
