"""Runs on the terminal: one in full, or many with a line or two each."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime

from rich.console import Console
from rich.measure import Measurement
from rich.text import Text

from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli import output

# The most important settings of the snapshot, in this order.
_TRAINING = ("max_steps", "epochs", "micro_batch_size", "learning_rate", "max_sequence_tokens")
# Wider than any table could be.
LONGEST_LINE = 1000
_LORA = ("rank", "alpha", "dropout", "target_modules")


def show_run(run: run_pb2.Run, screen: Console, *, is_brief: bool = False) -> None:
    """Print a run; the brief form leaves out what a watch has shown already.

    A failed run shows its message and next step right below its state.
    """
    screen.print(output.pill(run.state), output.last_part(run.name))
    if run.HasField("fault"):
        screen.print(Text.assemble((run.fault.code, "bold red1"), f"  {run.fault.message}"))
        screen.print(Text.assemble(("→ ", "cyan"), run.fault.remedy))
    rows = list(_figures(run))
    if not is_brief:
        rows += list(_configuration(run))
        rows += [("warning", f"{w.code}: {w.message}") for w in run.warnings]
        rows += [("attempt", text) for text in _attempts(run)]
    screen.print(output.facts(rows))
    _show_proofs(run.export_proofs, screen)
    _show_samples(run.samples, screen)


def show_list(runs: Sequence[run_pb2.Run], screen: Console, *, now: datetime) -> None:
    """Print runs as a table; on a narrow terminal two lines a run, so that no id is cut."""
    rows = [_row(run, now=now) for run in runs]
    table = output.table("RUN", "STATE", "STEP", "LOSS", "COST", "MODEL", "WHEN")
    for row in rows:
        table.add_row(row.run, row.pill, row.step, row.loss, row.cost, row.model, row.when)
    unbounded = screen.options.update(max_width=LONGEST_LINE)
    if Measurement.get(screen, unbounded, table).maximum <= screen.width:
        screen.print(table)
        return
    for row in rows:
        first = [row.run, row.step, row.when]
        head = Text.assemble(first[0], "  ", row.pill, *(f"  {text}" for text in first[1:] if text))
        rest = [row.model, f"loss {row.loss}" if row.loss else "", f"{row.cost} credits"]
        screen.print(head, soft_wrap=True)
        screen.print(Text("  " + " · ".join(filter(None, rest)), style="dim"), soft_wrap=True)


def _show_proofs(proofs: Sequence[run_pb2.ExportProof], screen: Console) -> None:
    """Print the proof of each GGUF: it should be near the adapter and far from the base.

    Agreement compares the most likely next token; divergences and the loss of the quantisation are
    in nats per token.
    """
    proven = [proof for proof in proofs if proof.proven]
    if proven:
        long = ("AGREES WITH ADAPTER", "KL TO ADAPTER")
        heads = ("GGUF", long[0], "WITH BASE", long[1], "TO BASE", "LOSS", "TOKENS")
        table = output.table(*heads, folding=long)
        for proof in proven:
            table.add_row(
                proof.quantization,
                f"{proof.adapter_top1_agreement:.1%}",
                f"{proof.base_top1_agreement:.1%}",
                f"{proof.adapter_mean_kl:.4f}",
                f"{proof.base_mean_kl:.4f}",
                f"{proof.loss_delta:+.4f}",
                str(proof.token_count),
            )
        screen.print(table)
    for proof in proofs:
        if not proof.proven:
            words = f"{proof.quantization}: not proven, the adapter came without a reference."
            screen.print(Text(words, style="gold3"))


def _show_samples(samples: Sequence[run_pb2.Sample], screen: Console) -> None:
    """Print each answer below its prompt, and the base model's below that."""
    for step in {sample.step for sample in samples if sample.step}:
        screen.print(Text(f"samples after step {step}", style="bold"))
    for sample in samples:
        screen.print(Text.assemble(("▸ ", "cyan"), (sample.prompt, "dim")))
        screen.print(Text(f"  {sample.completion}"))
        if sample.base_completion:
            screen.print(Text(f"  base: {sample.base_completion}", style="dim"))
        for flag in sample.flags:
            screen.print(Text(f"  ! {flag}", style="gold3"))


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """A run in a list."""

    run: str
    pill: Text
    step: str
    loss: str
    cost: str
    model: str
    when: str


def _row(run: run_pb2.Run, *, now: datetime) -> _Row:
    has_metrics = run.HasField("metrics")
    return _Row(
        run=output.last_part(run.name),
        pill=output.pill(run.state),
        step=f"{run.metrics.step}/{run.metrics.total_steps}" if has_metrics else "",
        loss=f"{run.metrics.loss:.4f}" if has_metrics else "",
        cost=output.credits_text(run.cost),
        model=run.spec.base_model,
        when=output.age_text(run.submit_time, now=now),
    )


def _figures(run: run_pb2.Run) -> Iterator[tuple[str, str]]:
    metrics, clocks = run.metrics, run.clocks
    yield "stage", output.stage_words(run.stage)
    if run.HasField("activity"):
        yield "activity", output.activity_text(run.activity)
    if run.HasField("metrics"):
        yield "epoch", f"{metrics.epoch}/{metrics.total_epochs}"
        yield "step", f"{metrics.step}/{metrics.total_steps}"
        yield "loss", f"{metrics.loss:.4f}"
        if preference := output.preference_text(metrics):
            yield "preference", preference
    spans = {
        "wall": clocks.wall,
        "active": clocks.active,
        "billable": clocks.billable,
        "wasted": clocks.wasted,
    }
    yield "clocks", " · ".join(f"{name} {output.span_text(span)}" for name, span in spans.items())
    yield "cost", f"{output.credits_text(run.cost)} credits"
    if run.artifact:
        yield "artifact", run.artifact
    for merge in run.merges:
        yield f"run {merge.number}", output.merge_text(merge)
    if run.tags:
        yield "tags", ", ".join(run.tags)


def _configuration(run: run_pb2.Run) -> Iterator[tuple[str, str]]:
    snapshot = run.snapshot
    vouched = "verified" if snapshot.verified else "not verified"
    yield "name", run.display_name or output.last_part(run.name)
    yield "submitted", output.time_text(run.submit_time)
    yield "base model", f"{snapshot.model_id or run.spec.base_model} ({vouched})"
    for dataset in snapshot.dataset_versions or run.spec.datasets:
        yield "dataset", dataset
    yield "tier", run.spec.gpu_tier
    yield "training", _settings(output.as_dict(snapshot.training), _TRAINING)
    if snapshot.training.HasField("multi_run"):
        multi_run = snapshot.training.multi_run
        yield "multi-run", f"{multi_run.run_count} runs of {multi_run.samples_per_run} samples"
    yield "adapter", _settings(output.as_dict(snapshot.lora), _LORA)
    yield "export", ", ".join(snapshot.export.quantizations) or "no GGUF"


def _settings(values: dict[str, object], names: tuple[str, ...]) -> str:
    found = [(name, values[name]) for name in names if name in values]
    return " · ".join(f"{name} {_value_text(value)}" for name, value in found)


def _value_text(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(item) for item in value)
    return str(value)


def _attempts(run: run_pb2.Run) -> Iterator[str]:
    for attempt in run.attempts:
        end = f": {attempt.fault.message}" if attempt.HasField("fault") else ""
        yield f"{attempt.attempt} on {attempt.node} from step {attempt.resumed_from_step}{end}"
