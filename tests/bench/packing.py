"""Tokens per second of packed training against the padded training of transformers + PEFT.

    python -m tests.bench.packing [--rows 96] [--rounds 3]

Same model (a Qwen2 shape of 35 million parameters, random weights), same adapter, same rows with
an Alpaca-like spread of lengths, same number of optimizer steps, float32, in turns in one process.
The rate counts real tokens only. Proof: the loss of every example inside a packed row against its
loss alone, and the gradient norms of both.
"""

import argparse
import statistics
import tempfile
from typing import Any

import numpy as np
import torch
from torch.nn import functional
from transformers import Qwen2Config, Qwen2ForCausalLM, Trainer, TrainingArguments

from tests.bench import frame
from tests.support.peer_trainer import Figures, collate
from tests.support.training import FP32, a_plan
from trainer.training import loop, peft_rail
from trainer.training.attention import SEGMENTED
from trainer.training.batches import IGNORED_LABEL, Row, packed

VOCABULARY = 16_384
MEDIAN_TOKENS, SPREAD, SHORTEST, LONGEST = 90.0, 0.75, 16, 512
# Alpaca's answers are a little more than half of its tokens.
ANSWER_SHARE = 0.55
BATCH = 8
CHECKED_EXAMPLES = 16
RATIO_GOAL, REAL_TOKENS_GOAL, LOSS_GOAL = 2.5, 0.98, 1e-6
PLAN = a_plan(
    micro_batch_size=BATCH, accumulation_steps=1, lr_peak=2e-4, warmup_ratio=0.0, adapter_rank=16,
    adapter_alpha=32.0,
)  # fmt: skip


def main() -> None:
    """Measure in turns and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=96)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = alpaca_like(options.rows)
    tokens = sum(len(row.ids) for row in rows)
    ours, theirs = Figures(), Figures()
    rounds = frame.paired(
        {"packed": lambda: train_ours(rows, ours), "padded": lambda: train_theirs(rows, theirs)},
        rounds=options.rounds,
        warm_up=False,
    )
    seconds = {name: statistics.median(times) for name, times in rounds.items()}
    ratio = frame.median_ratio(rounds, ours="packed", peer="padded")
    difference = largest_difference(rows[:CHECKED_EXAMPLES])
    frame.finish(
        frame.Result(
            bench="packing",
            value=round(tokens / seconds["packed"], 1),
            unit="real tokens/s",
            peer={
                "name": "transformers.Trainer + PEFT, padded",
                "value": round(tokens / seconds["padded"], 1),
                "real_token_ratio": round(theirs.real_token_ratio, 4),
            },
            ratio=round(ratio, 2),
            goal=f"ratio >= {RATIO_GOAL}, real tokens >= {REAL_TOKENS_GOAL:.0%}, "
            f"loss of every example within {LOSS_GOAL:g}",
            passed=ratio >= RATIO_GOAL
            and ours.real_token_ratio >= REAL_TOKENS_GOAL
            and difference <= LOSS_GOAL,
            proof={
                "rows": len(rows),
                "tokens": tokens,
                "real_token_ratio": ours.real_token_ratio,
                "largest_loss_difference_of_an_example": difference,
                "gradient_norms": ours.grad_norms[:3],
                "peer_gradient_norms": theirs.grad_norms[:3],
                "losses": ours.losses[:3],
                "peer_losses": theirs.losses[:3],
            },
        )
    )


def alpaca_like(count: int) -> tuple[Row, ...]:
    """Rows of random tokens whose lengths are spread as Alpaca's."""
    rng = np.random.default_rng(0)
    lengths = np.exp(rng.normal(np.log(MEDIAN_TOKENS), SPREAD, count)).astype(int)
    rows = []
    for length in np.clip(lengths, SHORTEST, LONGEST):
        ids = rng.integers(0, VOCABULARY, length).astype(np.int32)
        labels = ids.copy()
        labels[: round(length * (1 - ANSWER_SHARE))] = IGNORED_LABEL
        rows.append(Row(ids=ids, labels=labels))
    return tuple(rows)


def a_model(attention: str) -> Any:
    """A Qwen2 shape of 35 million parameters."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=VOCABULARY,
        hidden_size=512,
        intermediate_size=1408,
        num_hidden_layers=9,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
    )
    model: Any = Qwen2ForCausalLM(config)
    model.set_attn_implementation(attention)
    return peft_rail.attach(model.requires_grad_(False), PLAN).train()


def train_ours(rows: tuple[Row, ...], figures: Figures) -> None:
    """One epoch of our loop."""
    state = loop.begin(a_model(SEGMENTED), PLAN)
    steps = -(-len(rows) // BATCH)
    for _ in range(steps):
        taken = loop.take_step(state, rows, PLAN, FP32, steps=steps, healed=lambda _: None)
        figures.add(
            loss=taken.loss,
            grad_norm=taken.grad_norm,
            real=taken.token_count,
            computed=taken.computed_token_count,
        )


def train_theirs(rows: tuple[Row, ...], figures: Figures) -> None:
    """One epoch of transformers.Trainer on the same model with PEFT."""
    model = a_model("sdpa")
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                learning_rate=PLAN.lr_peak,
                lr_scheduler_type="cosine",
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                seed=PLAN.seed,
            ),
            train_dataset=list(rows),
            data_collator=lambda chosen: collate(chosen, figures),
            callbacks=[figures.callback()],
        )
        trainer.train()


def largest_difference(rows: tuple[Row, ...]) -> float:
    """Largest difference of an example's mean loss, inside a packed row against alone."""
    model = a_model(SEGMENTED).eval()
    together = losses(model, rows)
    alone = [losses(model, (row,))[0] for row in rows]
    return max(abs(a - b) for a, b in zip(together, alone, strict=True))


def losses(model: Any, rows: tuple[Row, ...]) -> list[float]:
    """Mean loss of each example of one packed row."""
    batch = packed(rows, torch.device("cpu"))
    with torch.no_grad():
        logits_TV = model(
            input_ids=batch.ids_BT,
            position_ids=batch.positions_BT,
            segment_lengths=batch.segment_lengths,
            use_cache=False,
        ).logits[0]
        each_N = functional.cross_entropy(
            logits_TV[batch.at_N].double(), batch.targets_N, reduction="none"
        )
    return [part.mean().item() for part in each_N.split([row.trained_count for row in rows])]


if __name__ == "__main__":
    main()
