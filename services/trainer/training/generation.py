"""Generation by the trained model: samples beside the base's, and the reference of the proof.

Shapes: T tokens, K likeliest tokens.
"""

from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file

from trainer.domain.healing import OomRecovery
from trainer.domain.samples import flags
from trainer.pipe import Sample
from trainer.training.adapted_model import AdaptedModel
from trainer.training.memory import is_out_of_memory

SAMPLES_COUNT = 3
ANSWER_TOKENS_MAX = 96
# Answers while a run trains are shorter: they show a tendency, and training waits for them.
BRIEF_TOKENS_MAX = 48
# As many of the likeliest tokens as hold practically all probability of a trained model.
TOP_K = 64
PROOF_FORMAT_VERSION = "1"
PROOF_NAME = "proof_reference.safetensors"


@dataclass(frozen=True, slots=True, kw_only=True)
class Generator:
    """A model with what is needed to ask it: tokenizer, and the tokens that end an answer.

    Attributes:
        special_tokens: what the tokenizer declares special.
    """

    model: AdaptedModel
    tokenizer: Any
    end_ids: frozenset[int]
    special_tokens: frozenset[str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A held-out prompt and its tokens, rendered by the training template."""

    text: str
    ids: tuple[int, ...]


def ask_both(
    generator: Generator, prompts: Sequence[Prompt], *, step: int = 0
) -> tuple[tuple[Sample, ...], list[list[int]]]:
    """Three samples, and the adapter's greedy answers to all prompts, as ids with the end token.

    Args:
        step: optimizer steps that the adapter has done.
    """
    adapter_ids = generate(generator, prompts)
    with generator.model.as_base():
        base_ids = generate(generator, prompts[:SAMPLES_COUNT])
    return side_by_side(generator, prompts, adapter_ids, base_ids, step=step), adapter_ids


def side_by_side(
    generator: Generator,
    prompts: Sequence[Prompt],
    adapter_ids: Sequence[Sequence[int]],
    base_ids: Sequence[Sequence[int]],
    *,
    step: int,
) -> tuple[Sample, ...]:
    """Samples of as many prompts as both adapter and base have answered."""
    return tuple(
        Sample(
            prompt=prompt.text,
            completion=(text := decode(generator, said)),
            base_completion=decode(generator, base_said),
            flags=flags(text, special_tokens=sorted(generator.special_tokens)),
            step=step,
        )
        for prompt, said, base_said in zip(prompts, adapter_ids, base_ids, strict=False)
    )


def generate(
    generator: Generator, prompts: Sequence[Prompt], *, tokens_max: int = ANSWER_TOKENS_MAX
) -> list[list[int]]:
    """Greedy answers as token ids, the end token included where one came.

    All prompts are one batch; when memory runs out, the batches get smaller.

    Raises:
        Fault: RUNTIME_GPU_OOM when there is no memory for a single prompt.
    """
    recovery = OomRecovery(effective_batch_size=len(prompts), micro_batch_size=len(prompts))
    answers: list[list[int]] = []
    while len(answers) < len(prompts):
        batch = prompts[len(answers) : len(answers) + recovery.micro_batch_size]
        try:
            said = generator.model.generate(
                [prompt.ids for prompt in batch], end_ids=generator.end_ids, tokens_max=tokens_max
            )
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            answers += [until_end(ids, generator.end_ids) for ids in said]
            recovery = recovery.after_success()
            continue
        generator.model.free_memory()
        recovery = recovery.after_out_of_memory(allowed=True)
    return answers


def decode(generator: Generator, ids: Sequence[int]) -> str:
    """The answer as text, without its end token; other special tokens stay visible."""
    answer = ids[:-1] if ids and ids[-1] in generator.end_ids else ids
    return str(generator.tokenizer.decode(list(answer), skip_special_tokens=False)).strip()


def write_proof(
    generator: Generator,
    prompts: Sequence[Prompt],
    answers: Sequence[Sequence[int]],
    path: Path,
    *,
    base_model: str,
    run: str,
) -> None:
    """Write `proof_reference.safetensors`: what base and adapter expect after every token.

    Row n of the top-k tables is the distribution of the token after position n of its conversation,
    likeliest first, natural logarithms. `scored` marks rows whose next token belongs to the answer.
    """
    offsets, ids, scored = [0], list[int](), list[int]()
    tables: dict[str, list[torch.Tensor]] = {
        name: [] for name in ("base_ids", "base_logprobs", "adapter_ids", "adapter_logprobs")
    }
    for prompt, answer in zip(prompts, answers, strict=True):
        conversation = [*prompt.ids, *answer]
        ids += conversation
        scored += [0] * (len(prompt.ids) - 1) + [1] * len(answer) + [0]
        offsets.append(len(ids))
        for who, context in (("base", generator.model.as_base()), ("adapter", nullcontext())):
            with context:
                logprobs_TK, ids_TK = generator.model.top_logprobs(conversation, count=TOP_K)
            tables[f"{who}_ids"].append(ids_TK)
            tables[f"{who}_logprobs"].append(logprobs_TK)
    save_file(
        {
            "token_ids": torch.tensor(ids, dtype=torch.int32),
            "segment_offsets": torch.tensor(offsets, dtype=torch.int64),
            "scored": torch.tensor(scored, dtype=torch.uint8),
            "base_topk_ids": torch.cat(tables["base_ids"]),
            "base_topk_logprobs": torch.cat(tables["base_logprobs"]),
            "adapter_topk_ids": torch.cat(tables["adapter_ids"]),
            "adapter_topk_logprobs": torch.cat(tables["adapter_logprobs"]),
        },
        path,
        metadata={
            "format_version": PROOF_FORMAT_VERSION,
            "top_k": str(TOP_K),
            "base_model": base_model,
            "run": run,
        },
    )


def end_tokens(labels: Sequence[np.ndarray], special_ids: frozenset[int]) -> frozenset[int]:
    """The special token that a trained answer ends with, if there is one."""
    for row in labels:
        trained = row[row >= 0]
        # Templates end a turn with a mark and a line break: the mark is what ends the answer.
        for end in trained[-1:-3:-1].tolist():
            if end in special_ids:
                return frozenset({end})
    return frozenset()


def until_end(ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """The ids up to the first that ends an answer, that one included."""
    for index, token in enumerate(ids):
        if token in end_ids:
            return list(ids[: index + 1])
    return list(ids)
