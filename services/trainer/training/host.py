"""The facts of this machine: `python -m trainer.training.host` prints what goes wrong, as JSON."""

import json
import os
import platform
import sys
from contextlib import suppress
from dataclasses import asdict
from importlib import metadata

import pynvml
import torch

from trainer.cards import first_card
from trainer.domain.host import HostFacts, judge


def read_facts() -> HostFacts:
    """What driver and libraries say of themselves; nothing heavy is imported for it."""
    card, driver_cuda = _gpu()
    return HostFacts(
        system=platform.system(),
        card=card,
        driver_cuda=driver_cuda,
        torch_cuda=torch.version.cuda,
        bitsandbytes=_version_of("bitsandbytes"),
        xformers=_version_of("xformers"),
    )


def _gpu() -> tuple[str | None, str | None]:
    try:
        handle = first_card(os.environ)
        if handle is None:
            return None, None
        name = str(pynvml.nvmlDeviceGetName(handle))
        # 12080 is CUDA 12.8.
        number = int(pynvml.nvmlSystemGetCudaDriverVersion_v2())
    except pynvml.NVMLError:
        return None, None
    return name, f"{number // 1000}.{number % 1000 // 10}"


def _version_of(package: str) -> str | None:
    with suppress(metadata.PackageNotFoundError):
        return metadata.version(package)
    return None


def main() -> None:
    """Print facts and findings as one line of JSON."""
    facts = read_facts()
    findings = [asdict(finding) for finding in judge(facts)]
    sys.stdout.write(json.dumps({"facts": asdict(facts), "findings": findings}) + "\n")


if __name__ == "__main__":
    main()
