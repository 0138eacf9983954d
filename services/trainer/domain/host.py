"""Whether a machine's driver and libraries go together, from facts that were read elsewhere."""

import enum
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

# Older ones have no binary for Windows, or one that does not load.
BITSANDBYTES_ON_WINDOWS_MIN = (0, 43)
# Consumer cards of these two generations, on which attention by xformers fails or is slower.
CARDS_WITHOUT_XFORMERS = re.compile(r"\bRTX (?:40|50)[0-9]{2}\b")
# How the names of whole cards begin, and of parts of one.
MIG_PREFIX = "MIG-"
UUID_PREFIXES = ("GPU-", MIG_PREFIX)
INSTALL_TORCH = "uv pip install --torch-backend=auto --reinstall torch"


class Weight(enum.StrEnum):
    """How much a finding matters."""

    NOTE = "note"
    BROKEN = "broken"


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFacts:
    """What was read of a machine; versions as their packages say them, None where there is none.

    Attributes:
        system: `Linux`, `Windows` or `Darwin`.
        card: name of the first NVIDIA GPU.
        driver_cuda: newest CUDA that its driver runs, such as `12.8`.
        torch_cuda: CUDA that torch was built for.
    """

    system: str
    card: str | None
    driver_cuda: str | None
    torch_cuda: str | None
    bitsandbytes: str | None
    xformers: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class HostFinding:
    """A sentence, and what to do about it."""

    weight: Weight
    sentence: str
    next_step: str


def first_visible_card(environment: Mapping[str, str]) -> int | str | None:
    """The card that CUDA calls the first, by its number on the bus or its UUID; None without one.

    A machine of several cards has an agent for each; `CUDA_VISIBLE_DEVICES` distinguishes them.
    Source: CUDA C++ Programming Guide, environment variables.
    """
    listed = environment.get("CUDA_VISIBLE_DEVICES")
    if listed is None:
        return 0
    first = listed.split(",", maxsplit=1)[0].strip()
    if first.startswith(UUID_PREFIXES):
        return first
    return int(first) if first.isdecimal() else None


def judge(facts: HostFacts) -> tuple[HostFinding, ...]:
    """What does not go together, worst first; empty when all does (002-35)."""
    found = [*_torch(facts), *_bitsandbytes(facts), *_xformers(facts)]
    return tuple(sorted(found, key=lambda finding: finding.weight is Weight.NOTE))


def leaves_out_xformers(facts: HostFacts) -> bool:
    """Whether xformers must not be used on this card, although it is installed."""
    return facts.xformers is not None and bool(CARDS_WITHOUT_XFORMERS.search(facts.card or ""))


def _torch(facts: HostFacts) -> Iterator[HostFinding]:
    if facts.card is None:
        return
    if facts.torch_cuda is None:
        yield HostFinding(
            weight=Weight.BROKEN,
            sentence=f"There is a {facts.card}, but torch was built without CUDA.",
            next_step=INSTALL_TORCH,
        )
        return
    if facts.driver_cuda is None:
        return
    built, driver = _version(facts.torch_cuda), _version(facts.driver_cuda)
    if built[:1] > driver[:1]:
        yield HostFinding(
            weight=Weight.BROKEN,
            sentence=f"torch was built for CUDA {facts.torch_cuda}, but the driver of the "
            f"{facts.card} runs CUDA {facts.driver_cuda} at most.",
            next_step=f"Update the driver, or install the torch that fits it: {INSTALL_TORCH}",
        )
    elif built[:2] > driver[:2]:
        yield HostFinding(
            weight=Weight.NOTE,
            sentence=f"torch was built for CUDA {facts.torch_cuda}, newer than the driver's "
            f"{facts.driver_cuda}; kernels that are compiled on the node may fail.",
            next_step=f"Update the driver, or install the torch that fits it: {INSTALL_TORCH}",
        )


def _bitsandbytes(facts: HostFacts) -> Iterator[HostFinding]:
    if facts.system != "Windows" or facts.bitsandbytes is None:
        return
    if _version(facts.bitsandbytes)[:2] < BITSANDBYTES_ON_WINDOWS_MIN:
        yield HostFinding(
            weight=Weight.BROKEN,
            sentence=f"bitsandbytes {facts.bitsandbytes} does not run on Windows.",
            next_step="Install bitsandbytes 0.43 or newer.",
        )


def _xformers(facts: HostFacts) -> Iterator[HostFinding]:
    if leaves_out_xformers(facts):
        yield HostFinding(
            weight=Weight.NOTE,
            sentence=f"xformers {facts.xformers} is left out on the {facts.card}; "
            "attention is torch's own.",
            next_step="Nothing has to be done.",
        )


def _version(text: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"[0-9]+", text.split("+", maxsplit=1)[0]))
