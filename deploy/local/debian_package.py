"""One program out of a Debian package, fetched without root and without touching the system.

apt runs with a configuration of its own: own lists, own cache, the distribution's keyring and the
mirror that this machine already uses. The pinned version is checked by its hash; when the suite no
longer has it, its newest version is used, which apt checks by the distribution's signature.
"""

from __future__ import annotations

import hashlib
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress, run_tool

SUITE = "unstable"
KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
DOWNLOAD_SECONDS = 300.0
PROBE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class DebianPackage:
    """A package at a version, with the sha256 of its file per architecture."""

    name: str
    version: str
    sha256: Mapping[str, str]


def fetch(
    package: DebianPackage, scratch: Path, progress: Progress, logs: Path
) -> tuple[Path, str]:
    """Download and unpack a package below a scratch folder.

    Returns:
        the folder with the unpacked root file system, and a description of the package.
    Raises:
        SetupRefused: this is no Debian, the package is unavailable, or its hash differs.
    """
    mirror = mirror_of()
    if not (mirror and shutil.which("apt-get") and shutil.which("dpkg-deb")):
        raise SetupRefused("This is no Debian with apt-get and dpkg-deb.", next_step="")
    if not KEYRING.is_file():
        raise SetupRefused(f"{KEYRING} is missing.", next_step="")
    environment = {"APT_CONFIG": str(_configuration(scratch, mirror)), "LC_ALL": "C.UTF-8"}

    def run(*command: str | Path) -> str:
        return run_tool(
            command,
            label=package.name,
            log=logs / f"{package.name}-{command[1]}.log",
            progress=progress,
            timeout_seconds=DOWNLOAD_SECONDS,
            environment=environment,
            folder=scratch,
        )

    run("apt-get", "update")
    pinned = True
    try:
        run("apt-get", "download", f"{package.name}={package.version}")
    except SetupRefused:
        pinned = False
        run("apt-get", "download", package.name)
    (file,) = scratch.glob(f"{package.name}_*.deb")
    if pinned:
        require_hash(file, package.sha256.get(architecture()))
    unpacked = scratch / "unpacked"
    run("dpkg-deb", "-x", file, unpacked)
    note = "" if pinned else ", newest there, checked by its signature"
    return unpacked, f"Debian package {file.name.split('_')[1]}{note}"


def mirror_of(sources: Path = Path("/etc/apt")) -> str:
    """The Debian mirror of this machine's configuration, or an empty text."""
    files = [sources / "sources.list", *sorted((sources / "sources.list.d").glob("*"))]
    pattern = re.compile(
        r"(?:^deb\s+(?:\[[^]]*\]\s+)?|^URIs:\s+)(\S+/debian)/?(?:\s|$)", re.MULTILINE
    )
    for file in files:
        try:
            match = pattern.search(file.read_text(encoding="utf-8", errors="replace"))
        except OSError:
            continue
        if match:
            return match[1]
    return ""


def architecture() -> str:
    """This processor's name in Debian and Go."""
    machine = platform.machine().lower()
    names = {"x86_64": "amd64", "aarch64": "arm64"}
    return names.get(machine, machine)


def require_hash(file: Path, expected: str | None) -> None:
    """Check a downloaded file.

    Raises:
        SetupRefused: its sha256 is not the expected one.
    """
    found = hashlib.sha256(file.read_bytes()).hexdigest()
    if found != expected:
        raise SetupRefused(
            f"{file.name} has sha256 {found}, not the pinned {expected}.",
            next_step="Do not use it; the download was changed on its way.",
        )


def _configuration(scratch: Path, mirror: str) -> Path:
    for name in (
        "state/lists/partial",
        "cache/archives/partial",
        "etc/apt.conf.d",
        "etc/preferences.d",
    ):
        (scratch / name).mkdir(parents=True)
    (scratch / "state" / "status").touch()
    # The suite's index is allowed to be older than its date of expiry: an old index can only name
    # old packages, and those are refused by hash or by version.
    (scratch / "sources.list").write_text(
        f"deb [check-valid-until=no signed-by={KEYRING}] {mirror} {SUITE} main\n",
        encoding="utf-8",
    )
    lines = [
        f'Dir "{scratch}/";',
        f'Dir::State "{scratch}/state";',
        f'Dir::State::status "{scratch}/state/status";',
        f'Dir::Cache "{scratch}/cache";',
        f'Dir::Etc "{scratch}/etc";',
        f'Dir::Etc::sourcelist "{scratch}/sources.list";',
        'Dir::Bin::methods "/usr/lib/apt/methods/";',
        'Acquire::Languages "none";',
        'Acquire::Retries "3";',
        # Root's apt would drop to an account that cannot write into this folder.
        'APT::Sandbox::User "root";',
        *_proxies(),
    ]
    path = scratch / "apt.conf"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def _proxies() -> list[str]:
    """The proxy settings of this machine's apt, for the private configuration."""
    dump = subprocess.run(
        ["apt-config", "dump"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=False
    )
    pattern = re.compile(r'^Acquire::https?::Proxy\S* "[^"]+";$', re.IGNORECASE)
    return [line for line in dump.stdout.splitlines() if pattern.match(line)]
