"""The held-out prompts, answered by base, adapter and GGUF; each family in a process of its own.

torch and llama.cpp are imported by the functions that need them, so that the demo itself starts at
once and both can warm up while the run is still under way.
"""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from deploy.local import places

ANSWER_TOKENS_MAX = 64
CONTEXT_TOKENS = 512


def warm_torch() -> None:
    """Import what answering with base and adapter needs."""
    import peft  # noqa: F401  # the import is the work
    import transformers  # noqa: F401  # the import is the work


def warm_llama() -> None:
    """Import llama.cpp."""
    import llama_cpp  # noqa: F401  # the import is the work


def of_base(base: str, prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Answers of the base model as it is.

    Args:
        base: folder of the weights, or id on the model hub.
    """
    model, tokenizer = _base(base)
    return tuple(_ask(model, tokenizer, prompt) for prompt in prompts)


def of_adapter(base: str, adapter: Path, prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Answers of the base with the downloaded adapter; tokenizer and template are its own."""
    from peft import PeftModel
    from transformers import AutoTokenizer

    with _quiet():
        model = PeftModel.from_pretrained(_base(base)[0], adapter)
        tokenizer = AutoTokenizer.from_pretrained(adapter)
    return tuple(_ask(model, tokenizer, prompt) for prompt in prompts)


def of_gguf(gguf: Path, prompts: tuple[str, ...]) -> tuple[str, ...]:
    """Answers of the downloaded GGUF through llama.cpp, with the chat template inside the file."""
    from llama_cpp import Llama

    model = Llama(
        model_path=str(gguf),
        n_ctx=CONTEXT_TOKENS,
        n_threads=os.cpu_count() or 1,
        verbose=False,
    )
    if not model.metadata.get("tokenizer.chat_template"):
        raise ValueError("The GGUF carries no chat template.")
    answers = []
    for prompt in prompts:
        reply: Any = model.create_chat_completion(
            [{"role": "user", "content": prompt}],
            temperature=0.0,
            max_tokens=ANSWER_TOKENS_MAX,
        )
        answers.append(str(reply["choices"][0]["message"]["content"]).strip())
    model.close()
    return tuple(answers)


def _base(base: str) -> tuple[Any, Any]:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    # The stack's own cache: what the trainer has fetched from the hub is not fetched again.
    cache = str(places.cache_folder() / "models")
    with _quiet():
        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, cache_dir=cache)
        tokenizer = AutoTokenizer.from_pretrained(base, cache_dir=cache)
    return model.eval(), tokenizer


def _ask(model: Any, tokenizer: Any, prompt: str) -> str:
    import torch

    chat = [{"role": "user", "content": prompt}]
    inputs = tokenizer.apply_chat_template(
        chat, add_generation_prompt=True, return_tensors="pt", return_dict=True
    )
    with torch.inference_mode():
        output = model.generate(
            **inputs,
            max_new_tokens=ANSWER_TOKENS_MAX,
            do_sample=False,
            pad_token_id=tokenizer.pad_token_id or tokenizer.eos_token_id,
        )
    new = output[0, inputs["input_ids"].shape[1] :]
    return str(tokenizer.decode(new, skip_special_tokens=True)).strip()


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep bars and notes of the libraries off the demo's screen."""
    from transformers.utils import logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    yield
