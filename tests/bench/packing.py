"""Tokens per second of packed training against the padded training of transformers + PEFT.

    python -m tests.bench.packing [--rows 96] [--rounds 3] [--threads 1]

Same model (a Qwen2 shape of 35 million parameters, random weights), same adapter, same rows with
an Alpaca-like spread of lengths, same number of optimizer steps, float32, in turns in one process.
The rate counts real tokens only. One thread by default: several that wait for each other on a busy
machine measure the machine; processor time stands beside the clock for the same reason. TRL's
SFTTrainer runs beside them, padded, where it is installed and can; else the result says why not.
Proof: the loss of every example inside a packed row against its loss alone, and the gradient norms
of all.
"""

import argparse
import importlib
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from peft.tuners.lora import Linear
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from torch.nn import functional
from transformers import (
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Trainer,
    TrainingArguments,
)

from tests.bench import frame
from tests.support.peer_trainer import Figures, collate
from tests.support.training import a_plan, a_state, attached
from trainer.training import loop
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
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    rows = alpaca_like(options.rows)
    tokens = sum(len(row.ids) for row in rows)
    ours, theirs, trl = Figures(), Figures(), Figures()
    contenders = {
        "packed": lambda: train_ours(rows, ours),
        "padded": lambda: train_theirs(rows, theirs),
    }
    trl_says = why_not_trl(rows)
    if trl_says is None:
        contenders["trl"] = lambda: train_trl(rows, trl)
    processor: dict[str, list[float]] = {name: [] for name in contenders}
    rounds = frame.paired(
        {name: processor_timed(run, processor[name]) for name, run in contenders.items()},
        rounds=options.rounds,
        warm_up=False,
    )
    seconds = {name: statistics.median(times) for name, times in rounds.items()}
    ratios = {
        name: {
            "by_the_clock": round(frame.median_ratio(rounds, ours="packed", peer=name), 2),
            "by_processor_time": round(frame.median_ratio(processor, ours="packed", peer=name), 2),
        }
        for name in contenders
        if name != "packed"
    }
    ratio = min(each["by_the_clock"] for each in ratios.values())
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
                "trl_sft_trainer": trl_says or round(tokens / seconds["trl"], 1),
            },
            ratio=ratio,
            goal=f"ratio >= {RATIO_GOAL}, real tokens >= {REAL_TOKENS_GOAL:.0%}, "
            f"loss of every example within {LOSS_GOAL:g}",
            passed=ratio >= RATIO_GOAL
            and ours.real_token_ratio >= REAL_TOKENS_GOAL
            and difference <= LOSS_GOAL,
            proof={
                "rows": len(rows),
                "tokens": tokens,
                "ratios": ratios,
                "real_token_ratio": ours.real_token_ratio,
                "largest_loss_difference_of_an_example": difference,
                "gradient_norms": ours.grad_norms[:3],
                "peer_gradient_norms": theirs.grad_norms[:3],
                "trl_gradient_norms": trl.grad_norms[:3],
                "losses": ours.losses[:3],
                "peer_losses": theirs.losses[:3],
                "load_average": os.getloadavg()[0],
            },
        )
    )


def processor_timed(run: Callable[[], None], seconds: list[float]) -> Callable[[], None]:
    """`run`, noting the processor seconds of all threads."""

    def timed() -> None:
        began = time.process_time()
        run()
        seconds.append(time.process_time() - began)

    return timed


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
    return attached(model.requires_grad_(False), PLAN).train()


def a_stock_model() -> Any:
    """The same as a user of PEFT has it: our computation is taken off PEFT's layers again."""
    model = a_model("sdpa")
    for layer in model.modules():
        if isinstance(layer, Linear):
            vars(layer).pop("forward", None)
    return model


def train_ours(rows: tuple[Row, ...], figures: Figures) -> None:
    """One epoch of our loop."""
    state = a_state(a_model(SEGMENTED), PLAN)
    steps = -(-len(rows) // BATCH)
    for _ in range(steps):
        taken = loop.take_step(state, rows, steps=steps, healed=lambda _: None)
        figures.add(
            loss=taken.loss,
            grad_norm=taken.grad_norm,
            real=taken.token_count,
            computed=taken.computed_token_count,
        )


def train_theirs(rows: tuple[Row, ...], figures: Figures) -> None:
    """One epoch of transformers.Trainer on the same model with PEFT."""
    model = a_stock_model()
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            model=model,
            args=TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                learning_rate=PLAN.optimisation.lr_peak,
                lr_scheduler_type="cosine",
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                seed=PLAN.batches.seed,
            ),
            train_dataset=list(rows),
            data_collator=lambda chosen: collate(chosen, figures),
            callbacks=[figures.callback()],
        )
        trainer.train()


def why_not_trl(rows: tuple[Row, ...]) -> str | None:
    """Why TRL's SFTTrainer does not run here; None when it has taken a step."""
    try:
        train_trl(rows[:BATCH], Figures())
    except (AttributeError, ImportError, RuntimeError, TypeError, ValueError) as error:
        return f"does not run here: {type(error).__name__}: {str(error).strip().splitlines()[-1]}"
    return None


def train_trl(rows: tuple[Row, ...], figures: Figures) -> None:
    """One epoch of TRL's SFTTrainer on the same model with PEFT, with the same padding."""
    # Neither is a dependency of ours: who wants the comparison installs them.
    datasets, trl = importlib.import_module("datasets"), importlib.import_module("trl")
    words = {str(number): number for number in range(VOCABULARY)}
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(WordLevel(words, unk_token="0")), pad_token="0", eos_token="1"
    )
    listed = [{"input_ids": row.ids.tolist(), "labels": row.labels.tolist()} for row in rows]

    def collated(chosen: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        again = [
            Row(ids=np.asarray(one["input_ids"]), labels=np.asarray(one["labels"]))
            for one in chosen
        ]
        return collate(again, figures)

    with tempfile.TemporaryDirectory() as folder:
        trainer = trl.SFTTrainer(
            model=a_stock_model(),
            args=trl.SFTConfig(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=BATCH,
                learning_rate=PLAN.optimisation.lr_peak,
                lr_scheduler_type="cosine",
                save_strategy="no",
                logging_steps=1,
                report_to=[],
                disable_tqdm=True,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                packing=False,
                max_length=None,
                remove_unused_columns=False,
                dataset_kwargs={"skip_prepare_dataset": True},
                seed=PLAN.batches.seed,
            ),
            train_dataset=datasets.Dataset.from_list(listed),
            data_collator=collated,
            processing_class=tokenizer,
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
