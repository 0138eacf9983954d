"""Sound and unsound exports: `python -m tests.chaos.sound_exports [--kernel LEVEL]`.

A gate that refuses a sound export is as bad as one that lets a broken one through. Here a small
model of every family of the catalog, and the trained one of the demo, gets adapters from faint to
strong and goes through the whole export in every mix; each must come out, proven. And adapters that
the merge does not do as trained, or that were trained on another base, go through every mix; none
may come out. `OPENBLAS_CORETYPE` and `--kernel` say which processor numpy and the kernel see.
The last line is JSON; exit 0 means that every verdict was right.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from deploy.local import llama_build
from exporter.domain import gates
from exporter.domain.quantization import Quantization
from exporter.engine.export import Engine
from lexicon.faults import Fault, FaultCode
from tests.integration.exporter.families import ADAPTERS, FAMILIES, make_base
from tests.integration.exporter.golden_exports import LEVELS, kernel_of
from tests.integration.exporter.making import ANVIL, export_bundle, make_adapter, write_reference
from tests.integration.exporter.test_verdicts import CASES, change, make_bases

BEGIN = time.monotonic()
TRAINED = "anvil-3m"
# Every family is converted anew, which takes longer than its exports; these adapters tell most.
OF_FAMILIES = ("weak", "strong")


# Verdicts of the proof, which no setting gives away.
BY_PROOF = {
    FaultCode.EXPORT_WRONG_BASE, FaultCode.EXPORT_MERGE_MISMATCH, FaultCode.EXPORT_NOOP_MERGE,
    FaultCode.EXPORT_TEMPLATE_MISMATCH,
}  # fmt: skip


@dataclass(slots=True)
class Found:
    """What came out, and what did not."""

    sound: int = 0
    unsound: int = 0
    false_alarms: dict[str, str] = field(default_factory=dict)
    let_through: list[str] = field(default_factory=list)
    wrong_codes: dict[str, str] = field(default_factory=dict)
    worst: dict[Quantization, float] = field(
        default_factory=lambda: dict.fromkeys(Quantization, 0.0)
    )


def main() -> int:
    """Export everything; count what was judged wrongly."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[TRAINED, *FAMILIES])
    parser.add_argument("--kernel", choices=(*LEVELS, "native", "none"), default="native")
    arguments = parser.parse_args()
    wanted = arguments.only or [TRAINED, *FAMILIES]
    found = Found()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = Engine(
            cache=folder / "cache",
            vendor=llama_build.vendor_folder(),
            thread_count=2,
            kernel=kernel_of(folder, arguments.kernel),
            llama_version="sound",
        )
        for shape in wanted:
            _sound(engine, shape, folder, found)
            _tell(f"{shape}: {found.sound} sound exports")
        if TRAINED in wanted:
            _unsound(engine, folder, found)
            _tell(f"{found.unsound} unsound exports")
    passed = not (found.false_alarms or found.let_through or found.wrong_codes)
    print(
        json.dumps(
            {
                "chaos": "sound-exports",
                "pass": passed,
                "kernel": arguments.kernel,
                "blas": os.environ.get("OPENBLAS_CORETYPE", "as detected"),
                "sound": found.sound,
                "models": len(wanted),
                "false_alarms": found.false_alarms,
                "unsound": found.unsound,
                "let_through": found.let_through,
                "wrong_codes": found.wrong_codes,
                "largest_divergence_and_bound": {
                    str(mix): [round(worst, 4), gates.KL_BOUNDS[mix]]
                    for mix, worst in found.worst.items()
                },
                "seconds": round(time.monotonic() - BEGIN, 1),
            }
        )
    )
    return 0 if passed else 1


def _sound(engine: Engine, shape: str, folder: Path, found: Found) -> None:
    base = ANVIL if shape == TRAINED else folder / shape
    if shape != TRAINED:
        make_base(FAMILIES[shape], base)
    for adapter_name, adapter in _adapters(shape, base, folder):
        for mix in Quantization:
            found.sound += 1
            try:
                proof = export_bundle(
                    engine, adapter, folder, mix, checkpoint=base, key=shape
                ).proof
            except Fault as fault:
                found.false_alarms[f"{shape} {adapter_name} {mix}"] = fault.message
                continue
            assert proof.proven
            found.worst[mix] = max(found.worst[mix], proof.adapter_mean_kl)


def _unsound(engine: Engine, folder: Path, found: Found) -> None:
    bases = make_bases(folder / "bases")
    for name, case in CASES.items():
        if case.verdict not in BY_PROOF:
            continue
        adapter = folder / "unsound" / name
        make_adapter(ANVIL, adapter, b_std=0.3, saved_std=0.1, **case.lora)
        write_reference(ANVIL, adapter)
        change(adapter, case)
        for mix in Quantization:
            found.unsound += 1
            try:
                export_bundle(
                    engine, adapter, folder, mix, checkpoint=bases[case.base],
                    key=f"unsound-{case.base}",
                )  # fmt: skip
            except Fault as fault:
                if fault.code is not case.verdict:
                    found.wrong_codes[f"{name} {mix}"] = fault.code
            else:
                found.let_through.append(f"{name} {mix}")


def _tell(text: str) -> None:
    print(f"[{time.monotonic() - BEGIN:6.1f} s] {text}", flush=True)


def _adapters(shape: str, base: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    for name, wishes in ADAPTERS.items():
        if shape == TRAINED or name in OF_FAMILIES:
            adapter = folder / f"{shape}-{name}"
            make_adapter(base, adapter, **wishes)
            write_reference(base, adapter)
            yield name, adapter


if __name__ == "__main__":
    sys.exit(main())
