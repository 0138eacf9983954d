"""A proof reference for a model of random weights, which no trainer could have asked.

What base and adapter expect after every token comes from llama.cpp over unquantised weights: those
of a file, such as the classical chain makes, or those of the exporter's own merge.
"""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from corpus import chat
from corpus.samples import Message, Role
from exporter.domain.adapter import read_adapter
from exporter.engine.base import BaseModel
from exporter.engine.export import CONFIG_NAME, WEIGHTS_NAME
from exporter.engine.kernel.kernel import Kernel
from exporter.engine.llama_model import LlamaModel
from exporter.engine.merge_plan import merge_plan
from exporter.engine.weight_swap import WeightSwap
from exporter.engine.weights import GgufFile, SafetensorsFile, read_json

# As many as the trainer writes at the most: three prompts with answers of 96 tokens.
QUESTIONS = ("What is iron?", "Is fire hot?", "Who works at the forge?")
ANSWER_TOKENS = 96
TOP = 64

Logits = Callable[[Sequence[Sequence[int]]], list[NDArray[np.float32]]]


def write_reference(adapter: Path, *, base: Logits, merged: Logits) -> int:
    """Writes `proof_reference.safetensors` beside the adapter; returns how many tokens it scores.

    Args:
        base: logits after every token of each conversation, (tokens, vocabulary).
        merged: the same of the adapter on its base.
    """
    tokenizer, template = Tokenizer.from_file(str(adapter / "tokenizer.json")), chat.load(adapter)
    size = tokenizer.get_vocab_size()
    rng = np.random.default_rng(0)
    conversations, scored = list[list[int]](), list[int]()
    for question in QUESTIONS:
        asked = template.render(
            [Message(role=Role.USER, content=question)], add_generation_prompt=True
        )
        prompt = tokenizer.encode(asked, add_special_tokens=False).ids
        conversations.append([*prompt, *rng.integers(size // 4, size // 2, ANSWER_TOKENS).tolist()])
        scored += [0] * (len(prompt) - 1) + [1] * ANSWER_TOKENS + [0]
    tables = {}
    for who, logits in (("base", base), ("adapter", merged)):
        rows: NDArray[Any] = np.concatenate(logits(conversations))
        top = np.argsort(rows, axis=1)[:, ::-1][:, :TOP]
        logprobs = rows - np.logaddexp.reduce(rows, axis=1, keepdims=True)
        tables[f"{who}_topk_ids"] = top.astype(np.int32)
        tables[f"{who}_topk_logprobs"] = np.take_along_axis(logprobs, top, axis=1)
    lengths = [len(conversation) for conversation in conversations]
    save_file(
        {
            "token_ids": np.concatenate(conversations).astype(np.int32),
            "segment_offsets": np.cumsum([0, *lengths]).astype(np.int64),
            "scored": np.array(scored, np.uint8),
            **tables,
        },
        adapter / "proof_reference.safetensors",
        metadata={"format_version": "1"},
    )
    return sum(scored)


def of_file(path: Path) -> Logits:
    """Logits of an unquantised GGUF."""

    def logits(conversations: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        with LlamaModel(path, thread_count=_threads()) as model:
            return [
                np.stack([row for _, row in model.logits(tokens, range(len(tokens)))])
                for tokens in conversations
            ]

    return logits


def of_merge(base: BaseModel, adapter: Path, kernel: Kernel) -> Logits:
    """Logits of an adapter merged into its base, for models too large for the classical chain."""

    def logits(conversations: Sequence[Sequence[int]]) -> list[NDArray[np.float32]]:
        with GgufFile(base.gguf) as gguf, SafetensorsFile(adapter / WEIGHTS_NAME) as weights:
            shapes = {name: span.shape for name, span in weights.tensors.items()}
            read = read_adapter(read_json(adapter / CONFIG_NAME), shapes)
            tensors = merge_plan(gguf, base.placements(), read, weights, merge=kernel.merge)
            token_ids = [token for tokens in conversations for token in tokens]
            found: list[list[NDArray[np.float32]]] = [[] for _ in conversations]
            with (
                LlamaModel(base.gguf, thread_count=_threads()) as model,
                WeightSwap(tensors, token_ids, thread_count=_threads()) as swap,
            ):
                asked = [(tokens, range(len(tokens))) for tokens in conversations]
                for number, _, row in model.logits_together(asked, on_node=swap.callback):
                    found[number].append(row)
                swap.require_complete()
            return [np.stack(rows) for rows in found]

    return logits


def _threads() -> int:
    return len(os.sched_getaffinity(0))
