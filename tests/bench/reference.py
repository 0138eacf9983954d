"""A proof reference for a model of random weights, which no trainer could have heard."""

import math
import os
import tempfile
import zipfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import save_file
from tokenizers import Tokenizer

from corpus import chat
from corpus.samples import Message, Role
from exporter.engine.llama_model import LlamaModel

ANSWER_TOKENS = 24
TOP = 64
QUESTIONS = ("What is iron?", "Is fire hot?")


def write_reference(bundle: Path, adapter: Path) -> None:
    """Writes beside the adapter what the bundle's own model says of made-up conversations.

    What an export does with a reference does not depend on what stands in it. The base is said to
    know nothing, so that the two are far apart.
    """
    tokenizer, template = Tokenizer.from_file(str(adapter / "tokenizer.json")), chat.load(adapter)
    size = tokenizer.get_vocab_size()
    rng = np.random.default_rng(0)
    tokens: list[int] = []
    offsets, scored = [0], list[int]()
    ids: list[NDArray[np.int32]] = []
    logprobs: list[NDArray[np.float32]] = []
    with tempfile.TemporaryDirectory(dir=adapter.parent) as folder:
        with zipfile.ZipFile(bundle) as archive:
            path = Path(archive.extract("model.gguf", folder))
        with LlamaModel(path, thread_count=len(os.sched_getaffinity(0))) as model:
            for question in QUESTIONS:
                asked = template.render(
                    [Message(role=Role.USER, content=question)], add_generation_prompt=True
                )
                prompt = tokenizer.encode(asked, add_special_tokens=False).ids
                said = [*prompt, *rng.integers(size // 4, size // 2, ANSWER_TOKENS).tolist()]
                tokens += said
                offsets.append(len(tokens))
                scored += [0] * (len(prompt) - 1) + [1] * ANSWER_TOKENS + [0]
                for _, row in model.logits(said, range(len(said))):
                    top = np.argsort(row)[::-1][:TOP]
                    ids.append(top.astype(np.int32))
                    logprobs.append((row - np.logaddexp.reduce(row))[top])
            ignorance = -math.log(model.token_count)
    save_file(
        {
            "token_ids": np.array(tokens, np.int32),
            "segment_offsets": np.array(offsets, np.int64),
            "scored": np.array(scored, np.uint8),
            "adapter_topk_ids": np.stack(ids),
            "adapter_topk_logprobs": np.stack(logprobs),
            "base_topk_ids": np.stack(ids),
            "base_topk_logprobs": np.full((len(ids), TOP), ignorance, np.float32),
        },
        adapter / "proof_reference.safetensors",
        metadata={"format_version": "1"},
    )
