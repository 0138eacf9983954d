"""The model card that travels with an adapter."""

from collections.abc import Mapping

from trainer.domain.loss_curve import LossCurve
from trainer.domain.plan import TrainPlan


def model_card(
    plan: TrainPlan, *, loss: float | None, losses: LossCurve, versions: Mapping[str, str]
) -> str:
    """README.md of the adapter: what it is, from what, by which numbers, how to use it.

    Args:
        loss: of the last step; None when this attempt took none.
        losses: of the steps of all attempts.
        versions: of the programs that made it, by name.
    """
    run = plan.attempt.run
    rows = _figures(plan, loss=loss, losses=losses)
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    data = "\n".join(
        f"| {dataset.name} | {dataset.digest or 'not known'} |" for dataset in plan.data.datasets
    )
    programs = "\n".join(f"| {name} | {version} |" for name, version in versions.items())
    return f"""---
library_name: peft
base_model: {plan.base.base_model}
pipeline_tag: text-generation
tags:
- lora
- tunesmith
---

# LoRA adapter for {plan.base.base_model}

| | |
|---|---|
{table}

| Dataset | SHA-256 of its file |
|---|---|
{data}

| Made by | Version |
|---|---|
{programs}

## Make it again

`tunesmith run duplicate {run} --submit` submits a run with the same settings, data and seed.
On a processor the same programs give the same weights, bit for bit; on a GPU kernels may round
differently.

## Use

```python
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer

base = AutoModelForCausalLM.from_pretrained("{plan.base.base_model}")
model = PeftModel.from_pretrained(base, "path/to/this/folder")
tokenizer = AutoTokenizer.from_pretrained("path/to/this/folder")
```

## Intended use and limits

Describe here what the adapter is for, and what it was not tested on. It inherits the licence and
the limits of its base model.
"""


def _figures(plan: TrainPlan, *, loss: float | None, losses: LossCurve) -> dict[str, str]:
    """The rows of the card's first table."""
    adapter, batches, optimisation = plan.build.adapter, plan.batches, plan.optimisation
    rows = {
        "Run": plan.attempt.run,
        "Base model": f"{plan.base.base_model} (revision {plan.base.revision or 'not given'})",
        "Datasets": ", ".join(dataset.name for dataset in plan.data.datasets),
        "Method": plan.objective.method.value,
        "Rank, alpha, dropout": f"{adapter.rank}, {adapter.alpha:g}, {adapter.dropout:g}",
        "Target modules": ", ".join(adapter.target_modules),
        "rsLoRA, DoRA": f"{_word(adapter.use_rslora)}, {_word(adapter.use_dora)}",
        "Steps": str(losses.step_count),
        **_multi_run(plan),
        "Batch": f"{batches.micro_batch_size} x {batches.accumulation_steps} examples a step",
        "Learning rate": f"{optimisation.lr_peak:g}, {optimisation.schedule.value}, "
        f"{optimisation.warmup_ratio:.0%} warm-up",
        "Longest example": f"{plan.objective.max_sequence_tokens} tokens",
        "Seed": str(batches.seed),
        "Last training loss": "not measured" if loss is None else f"{loss:.4f}",
        **_loss(losses),
    }
    if plan.compute.load_in_4bit:
        rows["Base while training"] = "4 bits (nf4); the adapter belongs to the unquantised base"
    return rows


def _loss(losses: LossCurve) -> dict[str, str]:
    means = losses.means
    if not means:
        return {}
    return {"Training loss": f"`{losses.drawing()}` from {means[0]:.4f} to {means[-1]:.4f}"}


def _multi_run(plan: TrainPlan) -> dict[str, str]:
    if plan.multi_run is None:
        return {}
    count, samples = plan.multi_run.run_count, plan.multi_run.samples_per_run
    return {"Runs": f"{count} of {samples} samples each, merged by SLAO (arXiv:2512.23017)"}


def _word(flag: bool) -> str:
    return "yes" if flag else "no"
