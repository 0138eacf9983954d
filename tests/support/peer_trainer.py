"""transformers.Trainer on the same model and rows, for comparison."""

import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

from tests.support.training import a_plan, a_tiny_model, attached, some_rows
from trainer.training.batches import IGNORED_LABEL, padded

ROWS = some_rows(50)
PLAN = a_plan(adapter_dropout=0.1)


@dataclass(slots=True, kw_only=True)
class Figures:
    """What a run of either side measured, step by step."""

    losses: list[float] = field(default_factory=list)
    grad_norms: list[float] = field(default_factory=list)
    real_count: int = 0
    computed_count: int = 0

    @property
    def real_token_ratio(self) -> float:
        """Share of real tokens among all computed."""
        return self.real_count / self.computed_count

    def add(self, *, loss: float, grad_norm: float, real: int, computed: int) -> None:
        """Note a step."""
        self.losses.append(loss)
        self.grad_norms.append(grad_norm)
        self.real_count += real
        self.computed_count += computed

    def callback(self) -> TrainerCallback:
        """A callback that notes every step that is logged."""
        return _Listener(self)


class _Listener(TrainerCallback):
    def __init__(self, figures: Figures) -> None:
        self._figures = figures

    def on_log(self, args: Any, state: Any, control: Any, **named: Any) -> None:
        logs = named.get("logs") or {}
        if "loss" in logs:
            loss, norm = float(logs["loss"]), float(logs.get("grad_norm", 0.0))
            self._figures.add(loss=loss, grad_norm=norm, real=0, computed=0)


def collate(rows: list[Any], figures: Figures) -> dict[str, torch.Tensor]:
    """The rows padded to the longest, with labels and a mask, as their collators make them."""
    batch = padded(rows, torch.device("cpu"))
    labels = torch.full(batch.ids_BT.shape, IGNORED_LABEL)
    mask = torch.zeros(batch.ids_BT.shape, dtype=torch.long)
    for index, row in enumerate(rows):
        labels[index, : len(row.labels)] = torch.from_numpy(row.labels.astype("int64"))
        mask[index, : len(row.ids)] = 1
    figures.real_count += batch.token_count
    figures.computed_count += batch.computed_token_count
    return {"input_ids": batch.ids_BT, "labels": labels, "attention_mask": mask}


def resumed_curve(steps: int) -> dict[str, Any]:
    """How far a resumed run of theirs is from its uninterrupted one."""
    stop_at = steps // 3
    with tempfile.TemporaryDirectory() as folder:
        whole, whole_model = _train(Path(folder) / "whole", steps, save_at=stop_at)
        saved = Path(folder) / "whole" / f"checkpoint-{stop_at}"
        resumed, resumed_model = _train(Path(folder) / "resumed", steps, resume=saved)
    differences = [abs(a - b) for a, b in zip(whole[stop_at:], resumed, strict=True)]
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


def a_trainer(folder: Path, steps: int, figures: Figures, *, save_at: int = 0) -> Trainer:
    """Their trainer over the tiny model with its adapter; `figures` notes its steps."""
    return Trainer(
        model=attached(a_tiny_model(), PLAN),
        args=TrainingArguments(
            output_dir=str(folder),
            max_steps=steps,
            per_device_train_batch_size=PLAN.batches.effective_batch_size,
            learning_rate=PLAN.optimisation.lr_peak,
            warmup_steps=steps // 10,
            lr_scheduler_type="cosine",
            save_strategy="steps" if save_at else "no",
            save_steps=save_at or steps,
            logging_steps=1,
            logging_nan_inf_filter=False,
            report_to=[],
            disable_tqdm=True,
            use_cpu=True,
            seed=PLAN.batches.seed,
        ),
        train_dataset=list(ROWS),
        data_collator=lambda rows: collate(rows, figures),
        callbacks=[figures.callback()],
    )


def _train(
    folder: Path, steps: int, *, save_at: int = 0, resume: Path | None = None
) -> tuple[list[float], Any]:
    figures = Figures()
    trainer = a_trainer(folder, steps, figures, save_at=save_at)
    trainer.train(resume_from_checkpoint=str(resume) if resume else None)
    return figures.losses, trainer.model


def _adapter(model: Any) -> list[torch.Tensor]:
    return [p.detach() for p in model.parameters() if p.requires_grad]
