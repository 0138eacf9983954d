"""The fresh model speaks: samples beside the base's, and the reference that proves the export.

Shapes: B prompts, T tokens, N tokens of all conversations, K likeliest tokens, V vocabulary.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GenerationConfig

from trainer.domain.answers import flags
from trainer.domain.healing import Ladder
from trainer.pipe import Answer
from trainer.training.arithmetic import Arithmetic
from trainer.training.memory import is_out_of_memory, release_memory

SAMPLES_COUNT = 3
ANSWER_TOKENS_MAX = 96
# Answers while a run trains are shorter: they show a tendency, and training waits for them.
BRIEF_TOKENS_MAX = 48
# As many of the likeliest tokens as hold practically all probability of a trained model.
TOP_K = 64
PROOF_FORMAT_VERSION = "1"
PROOF_NAME = "proof_reference.safetensors"


class Voice(Protocol):
    """A model that can be asked, on whichever rail it was trained."""

    @property
    def tokenizer(self) -> Any: ...

    @property
    def end_ids(self) -> frozenset[int]:
        """Tokens that end an answer."""
        ...

    @property
    def special_tokens(self) -> frozenset[str]:
        """What the tokenizer declares special."""
        ...

    def as_base(self) -> AbstractContextManager[Any]:
        """The context in which the adapter is switched off."""
        ...

    def generate(self, prompts: Sequence["Prompt"]) -> list[list[int]]:
        """Greedy answers as token ids, the end token included where one came."""
        ...

    def top_logprobs(self, conversation: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """The likeliest tokens after every token: logarithms (T, K), then their ids (T, K)."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Speaker:
    """A model with what is needed to ask it: tokenizer, end tokens, arithmetic."""

    model: Any
    tokenizer: Any
    end_ids: frozenset[int]
    special_tokens: frozenset[str]
    arithmetic: Arithmetic

    def as_base(self) -> AbstractContextManager[Any]:
        """The context in which the adapter is switched off."""
        return self.model.disable_adapter()  # type: ignore[no-any-return]

    def generate(self, prompts: Sequence["Prompt"]) -> list[list[int]]:
        """See `Voice`."""
        return generate(self, prompts)

    def top_logprobs(self, conversation: Sequence[int]) -> tuple[torch.Tensor, torch.Tensor]:
        """See `Voice`."""
        return _top_logprobs(self, conversation)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A held-out prompt and its tokens, rendered by the training template."""

    text: str
    ids: tuple[int, ...]


def ask_both(
    speaker: Voice, prompts: Sequence[Prompt], *, step: int = 0
) -> tuple[tuple[Answer, ...], list[list[int]]]:
    """Three samples, and the adapter's greedy answers to all prompts, as ids with the end token.

    Args:
        step: optimizer steps that the adapter has done.
    """
    adapter_ids = speaker.generate(prompts)
    with speaker.as_base():
        base_ids = speaker.generate(prompts[:SAMPLES_COUNT])
    return side_by_side(speaker, prompts, adapter_ids, base_ids, step=step), adapter_ids


def side_by_side(
    speaker: Voice,
    prompts: Sequence[Prompt],
    adapter_ids: Sequence[Sequence[int]],
    base_ids: Sequence[Sequence[int]],
    *,
    step: int,
) -> tuple[Answer, ...]:
    """Samples of as many prompts as both adapter and base have answered."""
    return tuple(
        Answer(
            prompt=prompt.text,
            completion=(text := decode(speaker, said)),
            base_completion=decode(speaker, base_said),
            flags=flags(text, special_tokens=sorted(speaker.special_tokens)),
            step=step,
        )
        for prompt, said, base_said in zip(prompts, adapter_ids, base_ids, strict=False)
    )


def generate(
    speaker: Speaker, prompts: Sequence[Prompt], *, tokens_max: int = ANSWER_TOKENS_MAX
) -> list[list[int]]:
    """Greedy answers as token ids, the end token included where one came.

    All prompts are one batch; when memory runs out, the batches get smaller.

    Raises:
        Fault: RUNTIME_GPU_OOM when there is no memory for a single prompt.
    """
    ladder = Ladder(effective_batch_size=len(prompts), micro_batch_size=len(prompts))
    answers: list[list[int]] = []
    while len(answers) < len(prompts):
        batch = prompts[len(answers) : len(answers) + ladder.micro_batch_size]
        try:
            answers += _generate_batch(speaker, batch, tokens_max=tokens_max)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
        else:
            ladder = ladder.after_success()
            continue
        release_memory()
        ladder = ladder.after_out_of_memory(allowed=True)
    return answers


def decode(speaker: Voice, ids: Sequence[int]) -> str:
    """The answer as text: its end token gone, any other special token left to be seen."""
    spoken = ids[:-1] if ids and ids[-1] in speaker.end_ids else ids
    return str(speaker.tokenizer.decode(list(spoken), skip_special_tokens=False)).strip()


def write_proof(
    speaker: Voice,
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
        for who, context in (("base", speaker.as_base()), ("adapter", nullcontext())):
            with context:
                logprobs_TK, ids_TK = speaker.top_logprobs(conversation)
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


def end_tokens(model: Any, labels: Sequence[np.ndarray], special_ids: frozenset[int]) -> set[int]:
    """Ids that end an answer: the model's own, and the special token that training ends with."""
    configured = model.generation_config.eos_token_id
    ends = set(configured if isinstance(configured, list) else [configured]) - {None}
    for row in labels:
        trained = row[row >= 0]
        if trained.size and int(trained[-1]) in special_ids:
            ends.add(int(trained[-1]))
            break
        # Templates end a turn with a mark and a line break: the mark is what ends the answer.
        if trained.size > 1 and int(trained[-2]) in special_ids:
            ends.add(int(trained[-2]))
            break
    return {int(end) for end in ends}


def _generate_batch(
    speaker: Speaker, prompts: Sequence[Prompt], *, tokens_max: int
) -> list[list[int]]:
    longest = max(len(prompt.ids) for prompt in prompts)
    pad_id = min(speaker.end_ids, default=0)
    gaps = [longest - len(prompt.ids) for prompt in prompts]
    ids_BT = torch.tensor(
        [[pad_id] * gap + list(prompt.ids) for gap, prompt in zip(gaps, prompts, strict=True)],
        device=speaker.arithmetic.device,
    )
    mask_BT = torch.tensor(
        [[0] * gap + [1] * (longest - gap) for gap in gaps], device=speaker.arithmetic.device
    )
    with torch.no_grad(), speaker.arithmetic.context():
        out_BT = speaker.model.generate(
            input_ids=ids_BT,
            attention_mask=mask_BT,
            generation_config=GenerationConfig(
                do_sample=False,
                max_new_tokens=tokens_max,
                eos_token_id=sorted(speaker.end_ids) or None,
                pad_token_id=pad_id,
            ),
        )
    return [until_end(row, speaker.end_ids) for row in out_BT[:, longest:].tolist()]


def _top_logprobs(
    speaker: Speaker, conversation: Sequence[int]
) -> tuple[torch.Tensor, torch.Tensor]:
    ids_1T = torch.tensor([list(conversation)], device=speaker.arithmetic.device)
    with torch.no_grad(), speaker.arithmetic.context():
        logits_TV = speaker.model(input_ids=ids_1T, use_cache=False).logits[0]
    top = logits_TV.float().log_softmax(-1).topk(min(TOP_K, logits_TV.shape[-1]), dim=-1)
    return top.values.cpu(), top.indices.to(torch.int32).cpu()


def until_end(ids: Sequence[int], end_ids: frozenset[int]) -> list[int]:
    """The ids up to the first that ends an answer, that one included."""
    for index, token in enumerate(ids):
        if token in end_ids:
            return list(ids[: index + 1])
    return list(ids)
