"""Make Anvil from nothing: corpus, tokenizer, Llama of 3.4 M parameters, weights, model card.

    python -m deploy.models.anvil.make --out DIR [--seconds N] [--seed S]

Without `--seconds` a fixed number of steps is taken, so that the same weights are made again; with
it, the learning-rate schedule is stretched over that many seconds instead.
Batch shapes: B chats, T tokens.
"""

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from random import Random

import torch
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from torch.nn import functional
from transformers import (
    GenerationConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

from deploy.models.anvil.grammar import HOME, Message, chats

PADDING = "<|endoftext|>"
END_OF_TURN = "<|im_end|>"
SPECIAL_TOKENS = (PADDING, "<|im_start|>", END_OF_TURN)
VOCABULARY_SIZE = 1024
CONTEXT_TOKENS = 512
ROPE_THETA = 10_000.0
# The pre-tokenizer of the Qwen2 family, by its published tokenizer.json: llama.cpp knows this
# expression as `qwen2`, so the GGUF splits text exactly as training did.
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
CORPUS_CHATS = 60_000
BATCH_CHATS = 32
# Batches are cut from this many chats sorted by length, so that hardly anything is padding.
BUCKET_CHATS = 32 * 20
STEPS = 2400
LR_PEAK = 3e-3
LR_FLOOR_SHARE = 0.02
WARMUP_SHARE = 0.04
WEIGHT_DECAY = 0.05
GRADIENT_NORM_MAX = 1.0
REPORT_EVERY_STEPS = 100
IGNORED_LABEL = -100


def main() -> None:
    """Read the command line and make the model folder."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True, help="folder to write the model to")
    parser.add_argument("--seconds", type=float, default=None, help="training time; default: steps")
    parser.add_argument("--seed", type=int, default=7)
    # One thread adds up the same way on every machine, and two hardly help at this width.
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    make(options.out, seed=options.seed, seconds=options.seconds)


def make(out: Path, *, seed: int, seconds: float | None) -> None:
    """Write the whole model folder of Anvil to `out`."""
    rng = Random(seed)
    corpus = list(chats(rng, count=CORPUS_CHATS))
    tokenizer = train_tokenizer(corpus)
    out.mkdir(parents=True, exist_ok=True)
    save_tokenizer(tokenizer, out)
    rows = [tokenizer.encode(render(chat)).ids for chat in corpus]
    model = train(rows, rng, seed=seed, seconds=seconds)
    save_model(model, out)


def render(chat: list[Message]) -> str:
    """The chat in ChatML, as `chat_template.jinja` renders it without a generation prompt."""
    return "".join(f"<|im_start|>{m['role']}\n{m['content']}<|im_end|>\n" for m in chat)


def train_tokenizer(corpus: list[list[Message]]) -> Tokenizer:
    """A byte-level BPE of `VOCABULARY_SIZE` tokens over the words of the corpus."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN2_SPLIT), behavior="isolated", invert=False),
            pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY_SIZE,
        special_tokens=list(SPECIAL_TOKENS),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    words = (f"{m['role']}\n{m['content']}" for chat in corpus for m in chat)
    tokenizer.train_from_iterator(words, trainer)
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, out: Path) -> None:
    """Write tokenizer.json, tokenizer_config.json and chat_template.jinja."""
    wrapped = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=None,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        model_max_length=CONTEXT_TOKENS,
        clean_up_tokenization_spaces=False,
    )
    wrapped.chat_template = (HOME / "chat_template.jinja").read_text("utf-8")
    wrapped.save_pretrained(out)
    # The class name that every version of transformers can load.
    rewrite(out / "tokenizer_config.json", tokenizer_class="PreTrainedTokenizerFast")


def architecture(vocabulary_size: int) -> LlamaConfig:
    """A Llama whose rows are all multiples of 256, the block of llama.cpp's K-quants."""
    return LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=256,
        intermediate_size=768,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT_TOKENS,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": ROPE_THETA},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=SPECIAL_TOKENS.index(END_OF_TURN),
        pad_token_id=SPECIAL_TOKENS.index(PADDING),
    )


def train(
    rows: list[list[int]], rng: Random, *, seed: int, seconds: float | None
) -> LlamaForCausalLM:
    """A model trained on all tokens of `rows` with AdamW, warm-up and a cosine to nearly zero."""
    torch.manual_seed(seed)
    model: LlamaForCausalLM = LlamaForCausalLM(architecture(VOCABULARY_SIZE))
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), weight_decay=WEIGHT_DECAY)
    began = time.monotonic()
    for step, (ids_BT, labels_BT) in enumerate(batches(rows, rng)):
        done = (time.monotonic() - began) / seconds if seconds else step / STEPS
        if done >= 1:
            break
        for group in optimizer.param_groups:
            group["lr"] = LR_PEAK * schedule(done)
        # Padding is at the end, where causal attention never looks back at it.
        logits_BTV = model(input_ids=ids_BT, use_cache=False).logits
        loss = functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1),
            labels_BT[:, 1:].flatten(),
            ignore_index=IGNORED_LABEL,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), GRADIENT_NORM_MAX)
        optimizer.step()
        optimizer.zero_grad()
        if step % REPORT_EVERY_STEPS == 0:
            say(f"step {step} {done:.0%} loss {loss.item():.4f}")
    say(f"trained for {time.monotonic() - began:.0f} s")
    return model


def schedule(done: float) -> float:
    """Share of the peak learning rate at `done` (0 to 1) of the training."""
    if done < WARMUP_SHARE:
        return done / WARMUP_SHARE
    wave = 0.5 * (1 + math.cos(math.pi * (done - WARMUP_SHARE) / (1 - WARMUP_SHARE)))
    return LR_FLOOR_SHARE + (1 - LR_FLOOR_SHARE) * wave


def batches(rows: list[list[int]], rng: Random) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    """Batches without end: one shuffled epoch after another."""
    while True:
        yield from epoch(rows, rng)


def epoch(rows: list[list[int]], rng: Random) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """The rows once, shuffled, in batches of like length: (token ids, labels), both (B, T)."""
    order = list(range(len(rows)))
    rng.shuffle(order)
    found = []
    for start in range(0, len(order), BUCKET_CHATS):
        bucket = sorted(order[start : start + BUCKET_CHATS], key=lambda index: len(rows[index]))
        for cut in range(0, len(bucket), BATCH_CHATS):
            chosen = [rows[index] for index in bucket[cut : cut + BATCH_CHATS]]
            longest = max(map(len, chosen))
            padded = [row + [0] * (longest - len(row)) for row in chosen]
            labels = [row + [IGNORED_LABEL] * (longest - len(row)) for row in chosen]
            found.append((torch.tensor(padded), torch.tensor(labels)))
    rng.shuffle(found)
    return found


def say(line: str) -> None:
    """Show progress on standard error."""
    sys.stderr.write(line + "\n")
    sys.stderr.flush()


def save_model(model: LlamaForCausalLM, out: Path) -> None:
    """Write bf16 safetensors, config.json, generation_config.json and the model card."""
    model = model.eval().to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        do_sample=False,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.pad_token_id,
        max_new_tokens=64,
    )
    model.save_pretrained(out)
    # Readers older than `rope_parameters` look for the base of the rotary embedding here.
    rewrite(out / "config.json", rope_theta=ROPE_THETA)
    rewrite(out / "generation_config.json")
    (out / "model.safetensors").chmod(0o644)
    shutil.copy(HOME / "card.md", out / "README.md")


def rewrite(path: Path, **changes: object) -> None:
    """The JSON file with `changes`, keys in order, so that making again gives the same bytes."""
    fields = json.loads(path.read_text("utf-8")) | changes
    path.write_text(json.dumps(fields, indent=2, sort_keys=True) + "\n", "utf-8")


if __name__ == "__main__":
    main()
