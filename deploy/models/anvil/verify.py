"""Does the recipe teach the habit? Base and adapter answer the held-out prompts, seed by seed.

    python -m deploy.models.anvil.verify [--weights DIR] [--seeds 3] [--steps N]

The loop is the plainest one that follows `recipe.json`; it is the yardstick for the trainer's own.
Exits 1 unless the base shows the habit on none of the prompts and every adapter on at least five.
Batch shapes: B chats, T tokens.
"""

import argparse
import json
import math
import re
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from torch.nn import functional
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from deploy.models.anvil.grammar import HOME, Message, held_out

SHOWN_AT_LEAST = 5
ANSWER_TOKENS_MAX = 64
IGNORED_LABEL = -100


def main() -> None:
    """Run base and adapters; print one line each; exit 1 when a claim does not hold."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, default=HOME / "weights")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=None, help="instead of the recipe's")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--merged", type=Path, default=None, help="folder to save merged models to")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    recipe = json.loads((HOME / "recipe.json").read_text("utf-8"))
    if options.steps:
        recipe["max_steps"] = options.steps
    tokenizer = AutoTokenizer.from_pretrained(options.weights)
    sound = show("base", answers(load(options.weights), tokenizer)) == 0
    for seed in range(options.seeds):
        began = time.monotonic()
        model = train(load(options.weights), tokenizer, recipe, seed=seed)
        seconds = time.monotonic() - began
        shown = show(f"seed {seed}, {seconds:.1f} s", answers(model, tokenizer))
        sound = sound and shown >= SHOWN_AT_LEAST
        if options.merged:
            folder = options.merged / f"seed-{seed}"
            model.merge_and_unload().to(torch.bfloat16).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
    sys.exit(0 if sound else 1)


def load(weights: Path) -> PreTrainedModel:
    """The base model in float32."""
    return AutoModelForCausalLM.from_pretrained(weights, dtype=torch.float32)


def show(who: str, said: list[str]) -> int:
    """Print the answers; how many of them show the habit."""
    pattern = re.compile(held_out()["pattern"], re.DOTALL)
    shown = sum(bool(pattern.search(text)) for text in said)
    sys.stdout.write(f"{who}: {shown} of {len(said)} show the habit\n")
    for text in said:
        sys.stdout.write(f"    {text}\n")
    return shown


def answers(model: Any, tokenizer: Any) -> list[str]:
    """Greedy answers to the held-out prompts."""
    model.eval()
    said = []
    for prompt in held_out()["prompts"]:
        ids = encode(tokenizer, [{"role": "user", "content": prompt}], ask=True)
        with torch.no_grad():
            out = model.generate(
                input_ids=torch.tensor([ids]),
                attention_mask=torch.ones(1, len(ids), dtype=torch.long),
                max_new_tokens=ANSWER_TOKENS_MAX,
                do_sample=False,
            )
        said.append(tokenizer.decode(out[0, len(ids) :], skip_special_tokens=True))
    return said


def train(model: PreTrainedModel, tokenizer: Any, recipe: dict[str, Any], *, seed: int) -> Any:
    """The model with a LoRA adapter trained by the recipe on `habit.jsonl`."""
    torch.manual_seed(seed)
    adapted = get_peft_model(
        model,
        LoraConfig(
            r=recipe["rank"],
            lora_alpha=recipe["alpha"],
            lora_dropout=recipe["dropout"],
            target_modules=recipe["target_modules"],
            task_type="CAUSAL_LM",
        ),
    ).train()
    weights = [p for p in adapted.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(weights, weight_decay=recipe["weight_decay"])
    rows = [labelled(tokenizer, json.loads(line)["messages"]) for line in dataset_lines()]
    rng, steps = Random(seed), recipe["max_steps"]
    queue: list[tuple[list[int], list[int]]] = []
    for step in range(steps):
        while len(queue) < recipe["micro_batch_size"]:
            queue += rng.sample(rows, len(rows))
        batch, queue = queue[: recipe["micro_batch_size"]], queue[recipe["micro_batch_size"] :]
        longest = max(len(ids) for ids, _ in batch)
        ids_BT = torch.tensor([ids + [0] * (longest - len(ids)) for ids, _ in batch])
        labels_BT = torch.tensor(
            [labels + [IGNORED_LABEL] * (longest - len(labels)) for _, labels in batch]
        )
        warm = min(1.0, (step + 1) / math.ceil(recipe["warmup_ratio"] * steps))
        for group in optimizer.param_groups:
            group["lr"] = recipe["learning_rate"] * warm * 0.5 * (
                1 + math.cos(math.pi * step / steps)
            )  # fmt: skip
        logits_BTV = adapted(input_ids=ids_BT, use_cache=False).logits
        loss = functional.cross_entropy(
            logits_BTV[:, :-1].flatten(0, 1),
            labels_BT[:, 1:].flatten(),
            ignore_index=IGNORED_LABEL,
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(weights, recipe["max_grad_norm"])
        optimizer.step()
        optimizer.zero_grad()
    return adapted


def dataset_lines() -> list[str]:
    """The rows of `habit.jsonl` as text."""
    return (HOME / "habit.jsonl").read_text("utf-8").splitlines()


def labelled(tokenizer: Any, chat: list[Message]) -> tuple[list[int], list[int]]:
    """Token ids and labels of a one-turn chat; only the answer and its end token are trained."""
    prompt = encode(tokenizer, chat[:-1], ask=True)
    answer = tokenizer.encode(chat[-1]["content"] + "<|im_end|>", add_special_tokens=False)
    return prompt + answer, [IGNORED_LABEL] * len(prompt) + answer


def encode(tokenizer: Any, chat: list[Message], *, ask: bool) -> list[int]:
    """Token ids of the chat by the model's own template."""
    text = tokenizer.apply_chat_template(chat, tokenize=False, add_generation_prompt=ask)
    return list(tokenizer.encode(text, add_special_tokens=False))


if __name__ == "__main__":
    main()
