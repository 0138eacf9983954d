"""Sound exports over families, adapters and types: `python -m tests.chaos.sound_exports`.

A gate that refuses a sound export is as bad as one that lets a broken one through. Here a small
model of every family of the catalog, and the trained one of the demo, gets adapters from faint to
strong and goes through the whole export in every mix. Each must come out, proven.
The last line is JSON; exit 0 means that there was no false alarm.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from deploy.local import llama_build
from exporter.domain import gates
from exporter.domain.quantization import Quantization
from exporter.engine.export import Engine
from exporter.engine.kernel.kernel import Kernel
from lexicon.faults import Fault
from tests.integration.exporter.families import ADAPTERS, FAMILIES, make_base
from tests.integration.exporter.making import ANVIL, export_bundle, make_adapter, write_reference

BEGIN = time.monotonic()
TRAINED = "anvil-3m"
# Every family is converted anew, which takes longer than its exports; these adapters tell most.
OF_FAMILIES = ("weak", "strong")


def main() -> int:
    """Export everything; count alarms."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", action="append", choices=[TRAINED, *FAMILIES])
    wanted = parser.parse_args().only or [TRAINED, *FAMILIES]
    exports = 0
    alarms: dict[str, str] = {}
    worst = dict.fromkeys(Quantization, 0.0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        engine = Engine(
            cache=folder / "cache",
            vendor=llama_build.vendor_folder(),
            thread_count=2,
            kernel=Kernel.prepare(folder / "kernels"),
            llama_version="sound",
        )
        for shape in wanted:
            base = ANVIL if shape == TRAINED else folder / shape
            if shape != TRAINED:
                make_base(FAMILIES[shape], base)
            for adapter_name, adapter in _adapters(shape, base, folder):
                for mix in Quantization:
                    exports += 1
                    try:
                        proof = export_bundle(
                            engine, adapter, folder, mix, checkpoint=base, key=shape
                        ).proof
                    except Fault as fault:
                        alarms[f"{shape} {adapter_name} {mix}"] = fault.code
                        continue
                    assert proof.proven
                    worst[mix] = max(worst[mix], proof.adapter_mean_kl)
            print(f"[{time.monotonic() - BEGIN:6.1f} s] {shape}: {exports} exports", flush=True)
    print(
        json.dumps(
            {
                "chaos": "sound-exports",
                "pass": not alarms,
                "exports": exports,
                "models": len(wanted),
                "false_alarms": alarms,
                "largest_divergence_and_bound": {
                    str(mix): [round(found, 4), gates.KL_BOUNDS[mix]]
                    for mix, found in worst.items()
                },
                "seconds": round(time.monotonic() - BEGIN, 1),
            }
        )
    )
    return 1 if alarms else 0


def _adapters(shape: str, base: Path, folder: Path) -> Iterator[tuple[str, Path]]:
    for name, wishes in ADAPTERS.items():
        if shape == TRAINED or name in OF_FAMILIES:
            adapter = folder / f"{shape}-{name}"
            make_adapter(base, adapter, **wishes)
            write_reference(base, adapter)
            yield name, adapter


if __name__ == "__main__":
    sys.exit(main())
