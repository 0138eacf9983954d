"""The frame of every benchmark: paired measurement, progress, and one JSON line at the end.

A benchmark measures its peer in the same run, turn by turn, so that a busy or throttled machine
slows both. Medians are compared; the proof says what real work was done, so that a fast wrong
answer cannot pass.

    def main() -> None:
        rounds = frame.paired({"ours": ours, "peer": peer}, rounds=5)
        frame.finish(frame.Result(bench="name", value=…, …))
"""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NoReturn

CPU_INFO = Path("/proc/cpuinfo")
BEGIN = time.monotonic()


@dataclass(frozen=True, slots=True, kw_only=True)
class Result:
    """What a benchmark found.

    Attributes:
        bench: its name.
        value: our figure, in `unit`.
        peer: what ours is compared with, its figure and name; None without a peer.
        ratio: how many times better ours is; None without a peer.
        goal: what was promised, in words and figures.
        passed: whether the promise is kept.
        proof: figures that show that the work was real and right.
    """

    bench: str
    value: float
    unit: str
    goal: str
    passed: bool
    peer: Mapping[str, Any] | None = None
    ratio: float | None = None
    proof: Mapping[str, Any] = field(default_factory=dict)


def progress(text: str) -> None:
    """Prints a line with the seconds since the start."""
    print(f"[{time.monotonic() - BEGIN:7.1f} s] {text}", flush=True)


def paired(
    contenders: Mapping[str, Callable[[], object]], *, rounds: int, warm_up: bool = True
) -> dict[str, list[float]]:
    """Seconds of each contender in each round.

    Within a round all contenders run one after another, and the order turns from round to round, so
    that neither always runs on the warmer machine.

    Args:
        warm_up: run each once before, uncounted.
    """
    assert rounds > 0
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    if warm_up:
        for name, run in contenders.items():
            progress(f"warm-up: {name}")
            run()
    names = list(contenders)
    for number in range(rounds):
        turned = names[number % len(names) :] + names[: number % len(names)]
        for name in turned:
            begin = time.perf_counter()
            contenders[name]()
            seconds[name].append(time.perf_counter() - begin)
        shown = ", ".join(f"{name} {seconds[name][-1]:.3f} s" for name in names)
        progress(f"round {number + 1}/{rounds}: {shown}")
    return seconds


def median_ratio(seconds: Mapping[str, list[float]], *, ours: str, peer: str) -> float:
    """How many times faster ours is: the median over the rounds of the ratio within a round."""
    pairs = zip(seconds[peer], seconds[ours], strict=True)
    return statistics.median(theirs / mine for theirs, mine in pairs)


def machine() -> dict[str, Any]:
    """The machine in words and figures."""
    return {
        "cpu": _processor(),
        "cores": _cores(),
        "memory_gib": round(_memory_bytes() / 2**30, 1),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }


def finish(result: Result) -> NoReturn:
    """Prints the result as the last line and exits, 0 when the goal is reached."""
    print(
        json.dumps(
            {
                "bench": result.bench,
                "value": round(result.value, 4),
                "unit": result.unit,
                "peer": result.peer,
                "ratio": None if result.ratio is None else round(result.ratio, 3),
                "goal": result.goal,
                "pass": result.passed,
                "proof": result.proof,
                "machine": machine(),
            },
            ensure_ascii=False,
        ),
        flush=True,
    )
    sys.exit(0 if result.passed else 1)


def _processor() -> str:
    if CPU_INFO.exists():
        for line in CPU_INFO.read_text("utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory_bytes() -> int:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 0
