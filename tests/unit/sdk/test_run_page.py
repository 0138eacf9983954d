"""A run on the screen: its samples beside the base's, and the figures of preferences."""

import io

from rich.console import Console

from tunesmith.api.run.v1 import run_pb2
from tunesmith.cli.output import preference_text
from tunesmith.cli.run_page import show_run

RUN = run_pb2.Run(name="projects/local/runs/r-1", state=run_pb2.RUN_STATE_TRAINING)


def page(run: run_pb2.Run) -> str:
    screen = Console(file=io.StringIO(), width=120)
    show_run(run, screen)
    assert isinstance(screen.file, io.StringIO)
    return screen.file.getvalue()


def test_a_sample_shows_both_answers_its_flags_and_the_step() -> None:
    """001-18, 001-19"""
    run = run_pb2.Run()
    run.CopyFrom(RUN)
    run.samples.add(
        prompt="Who are you?",
        completion="A smith <|im_end|>",
        base_completion="A model",
        flags=["raw template token <|im_end|>"],
        step=40,
    )
    text = page(run)
    for words in ("samples after step 40", "Who are you?", "A smith", "base: A model", "! raw"):
        assert words in text


def test_margin_and_accuracy_are_shown_where_a_method_has_them() -> None:
    run = run_pb2.Run()
    run.CopyFrom(RUN)
    run.metrics.loss = 0.5
    assert "preference" not in page(run)
    assert preference_text(run.metrics) == ""
    run.metrics.preference_margin, run.metrics.preference_accuracy = 0.25, 0.75
    assert "margin 0.2500, 75% right" in page(run)


def test_the_proof_of_each_gguf_is_a_line() -> None:
    """001-28: how near to the adapter, how far from the base, at what cost."""
    run = run_pb2.Run()
    run.CopyFrom(RUN)
    assert "AGREES" not in page(run)
    run.export_proofs.add(
        quantization="Q4_K_M",
        adapter_top1_agreement=0.982,
        base_top1_agreement=0.61,
        adapter_mean_kl=0.0123,
        base_mean_kl=0.8344,
        loss_delta=0.004,
        token_count=512,
        proven=True,
    )
    run.export_proofs.add(quantization="Q8_0")
    lines = page(run).splitlines()
    (row,) = (line.split() for line in lines if line.startswith("Q4_K_M"))
    assert row == ["Q4_K_M", "98.2%", "61.0%", "0.0123", "0.8344", "+0.0040", "512"]
    assert any("Q8_0: not proven" in line for line in lines)
    assert max(map(len, lines)) <= 80
