"""Hugging Face Trainer on the same model and rows, stopped and resumed, for comparison."""

import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.support.training import a_plan, a_tiny_model, some_rows
from trainer.training import rails
from trainer.training.batches import IGNORED_LABEL, padded

ROWS = some_rows(50)
PLAN = a_plan(adapter_dropout=0.1)


class _Losses(TrainerCallback):
    """Keeps the loss of every step."""

    def __init__(self) -> None:
        self.by_step: dict[int, float] = {}

    def on_log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        logs = named.get("logs") or {}
        if "loss" in logs:
            self.by_step[state.global_step] = float(logs["loss"])


def resumed_curve(steps: int) -> dict[str, Any]:
    """How far a resumed run of theirs is from its uninterrupted one."""
    stop_at = steps // 3
    with tempfile.TemporaryDirectory() as folder:
        whole, whole_model = _train(Path(folder) / "whole", steps, save_at=stop_at)
        saved = Path(folder) / "whole" / f"checkpoint-{stop_at}"
        resumed, resumed_model = _train(Path(folder) / "resumed", steps, resume=saved)
    differences = [abs(whole[step] - resumed[step]) for step in resumed if step > stop_at]
    return {
        "name": "transformers.Trainer",
        "resumed_at_step": stop_at,
        "steps_that_differ": sum(difference > 0 for difference in differences),
        "largest_loss_difference": max(differences),
        "adapter_equal": all(
            torch.equal(left, right)
            for left, right in zip(_adapter(whole_model), _adapter(resumed_model), strict=True)
        ),
    }


def _train(
    folder: Path, steps: int, *, save_at: int = 0, resume: Path | None = None
) -> tuple[dict[int, float], Any]:
    losses = _Losses()
    model = rails.attach(a_tiny_model(), PLAN)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=PLAN.effective_batch_size,
            learning_rate=PLAN.lr_peak,
            warmup_steps=steps // 10,
            lr_scheduler_type="cosine",
            save_strategy="steps" if save_at else "no",
            save_steps=save_at or steps,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=PLAN.seed,
        ),
        train_dataset=list(ROWS),
        data_collator=_collate,
        callbacks=[losses],
    )
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return losses.by_step, model


def _collate(rows: list[Any]) -> dict[str, torch.Tensor]:
    batch = padded(rows, torch.device("cpu"))
    labels = torch.full(batch.ids_BT.shape, IGNORED_LABEL)
    for index, row in enumerate(rows):
        labels[index, : len(row.labels)] = torch.from_numpy(row.labels.astype("int64"))
    return {"input_ids": batch.ids_BT, "labels": labels}


def _adapter(model: Any) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters() if p.requires_grad]
