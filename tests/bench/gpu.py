"""Tokens per second on a GPU: our loop on both rails, against stock HF + PEFT and stock Unsloth.

    python -m tests.bench.gpu [--rows 256] [--rounds 3] [--config FILE]

Same model (by default a Qwen2 shape of half a billion random weights), same adapter, same rows with
an Alpaca-like spread of lengths, bf16, gradient checkpointing, same number of optimizer steps. Each
contender lives in a process of its own, as Unsloth changes the libraries of the one that it is in;
they run in turns, and the others hold memory but compute nothing. The rate counts real tokens.
Proof: losses, gradient norms and peak memory of each.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from tests.bench import frame

OURS, OUR_PEFT = "tunesmith, unsloth", "tunesmith, peft"
STOCK, STOCK_UNSLOTH = "transformers.Trainer + PEFT", "transformers.Trainer + Unsloth"
CONTENDERS = (OURS, OUR_PEFT, STOCK, STOCK_UNSLOTH)
RATIO_GOAL = 1.0
# Losses of the first step, over the same rows: kernels in bf16 differ in the last digits.
LOSS_GOAL = 0.05
READY_SECONDS_MAX = 900


class Contender:
    """A process that trains when it is told to, and tells what it measured."""

    def __init__(self, name: str, folder: Path, rows: int, stack: ExitStack) -> None:
        self.name = name
        command = [sys.executable, "-m", "tests.bench.gpu_contender", name, str(folder), str(rows)]
        self._process = stack.enter_context(
            subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        )
        stack.callback(self._process.kill)
        self.told: dict[str, Any] = {}
        self.said = self._next()
        frame.progress(f"{name}: {self.said}")

    @property
    def can(self) -> bool:
        """Whether it can train here."""
        return "failure" not in self.said

    def run(self) -> None:
        """Train all rows once."""
        assert self._process.stdin is not None
        self._process.stdin.write("go\n")
        self._process.stdin.flush()
        self.told = self._next()

    def _next(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            # Libraries print what they like; ours are the lines that begin as JSON.
            if line.startswith("{"):
                return dict(json.loads(line))
        return {"failure": f"it ended with code {self._process.wait(READY_SECONDS_MAX)}"}


def main() -> None:
    """Measure in turns and print one JSON line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--config", type=Path, help="config.json of another model")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        making = [sys.executable, "-m", "tests.bench.gpu_contender", "make", str(folder)]
        subprocess.run([*making, str(options.config or "")], check=True)
        all_of_them = [Contender(name, folder, options.rows, stack) for name in CONTENDERS]
        able = {contender.name: contender for contender in all_of_them if contender.can}
        if not {OURS, OUR_PEFT} & able.keys() or STOCK not in able:
            frame.progress("nothing to compare: " + json.dumps([c.said for c in all_of_them]))
            sys.exit(1)
        rounds = frame.paired(
            {name: contender.run for name, contender in able.items()}, rounds=options.rounds
        )
        frame.finish(result(able, rounds, [c for c in all_of_them if not c.can]))


def result(
    able: dict[str, Contender], rounds: dict[str, list[float]], failed: list[Contender]
) -> frame.Result:
    """The rates of all, and the ratio of our better rail to the better peer."""
    rates = {
        name: contender.told["tokens"] * len(rounds[name]) / sum(rounds[name])
        for name, contender in able.items()
    }
    ours = max((OURS, OUR_PEFT), key=lambda name: rates.get(name, 0.0))
    peer = max((STOCK, STOCK_UNSLOTH), key=lambda name: rates.get(name, 0.0))
    ratio = frame.median_ratio(rounds, ours=ours, peer=peer)
    first_losses = {name: contender.told["losses"][0] for name, contender in able.items()}
    spread = max(first_losses.values()) - min(first_losses.values())
    whole = not failed and all(contender.told["grad_norms"][0] > 0 for contender in able.values())
    return frame.Result(
        bench="gpu",
        value=round(rates[ours], 1),
        unit="real tokens/s",
        peer={"name": peer, "value": round(rates[peer], 1)},
        ratio=round(ratio, 2),
        goal=f"ratio > {RATIO_GOAL:g}, all four run, first losses within {LOSS_GOAL:g}",
        passed=whole and ratio > RATIO_GOAL and spread <= LOSS_GOAL,
        proof={
            "ours": ours,
            "tokens_per_second": {name: round(rate, 1) for name, rate in rates.items()},
            "peak_mib": {name: able[name].told["peak_mib"] for name in able},
            "losses": {name: able[name].told["losses"][:3] for name in able},
            "gradient_norms": {name: able[name].told["grad_norms"][:3] for name in able},
            "cards": sorted({contender.said["card"] for contender in able.values()}),
            "did_not_run": {contender.name: contender.said["failure"] for contender in failed},
        },
    )


if __name__ == "__main__":
    main()
