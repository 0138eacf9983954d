"""Find a nats-server that is new enough.

The order: NATS_SERVER_BIN, PATH, the cache, the project's own release archive, and on Debian its
package. Without a server from one of these the stack reports it and does not start.
"""

from __future__ import annotations

import os
import platform
import re
import shutil
import subprocess
import tarfile
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

from deploy.local import debian_package, places
from deploy.local.debian_package import DebianPackage
from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress

RELEASE = "2.14.5"
RELEASE_URL = "https://github.com/nats-io/nats-server/releases/download/v{0}/{1}.tar.gz"
# From the release's own SHA256SUMS, as its container images check them too.
RELEASE_SHA256 = {
    "amd64": "5e3b603d47c447bda1f77f9ac16dbf91c90aac4ff3681f8fbbc7201e4ed99355",
    "arm64": "673a98d3faa79dde3f9ebf16d6dfac36a5f694e7ad2015e4954dd7939c85cd4c",
}
PACKAGE = DebianPackage(
    name="nats-server",
    version="2.15.1-1",
    sha256={
        "amd64": "31ef4ceaa84e8248d449e508472e3770c17c3695cb5cb0ee96e03912724ea884",
        "arm64": "68923b614b6b5594bbd63ffdce7258c2155ec448fb4cb7efd099bf9273eca128",
    },
)
# First safe version of each maintained release line: it fixes the route authentication bypass and
# the pre-authentication crash.
FLOORS = {(2, 11): (2, 11, 16), (2, 12): (2, 12, 7)}
FLOOR_NEWEST = (2, 14, 0)
FLOOR_TEXT = "2.11.16, 2.12.7 or 2.14.0"
CONNECT_SECONDS = 6.0
PROBE_SECONDS = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class NatsBinary:
    """A server binary, its version as it reports it, and how it was found."""

    path: Path
    version: str
    source: str


def find(progress: Progress, logs: Path) -> NatsBinary:
    """The first nats-server in the order above.

    Raises:
        SetupRefused: NATS_SERVER_BIN is unfit, or none was found.
    """
    given = os.environ.get("NATS_SERVER_BIN")
    if given:
        return _given(Path(given))
    return on_path() or in_cache() or _fetched(progress, logs)


def on_path() -> NatsBinary | None:
    """The server on PATH, when it is new enough."""
    found = shutil.which("nats-server")
    version = version_of(Path(found)) if found else None
    if found is None or version is None or not is_new_enough(version):
        return None
    return NatsBinary(path=Path(found).resolve(), version=version, source="PATH")


def in_cache() -> NatsBinary | None:
    """The server that an earlier bootstrap fetched."""
    path = _cache_folder() / "nats-server"
    version = version_of(path) if path.is_file() else None
    if version is None or not is_new_enough(version):
        return None
    try:
        source = (_cache_folder() / "source.txt").read_text(encoding="utf-8").strip()
    except OSError:
        source = "an earlier setup"
    return NatsBinary(path=path, version=version, source=source)


def version_of(path: Path) -> str | None:
    """The version of `nats-server --version`, as digits, or None when it does not run."""
    try:
        said = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=PROBE_SECONDS, check=True
        )
    except (OSError, subprocess.SubprocessError):
        return None
    match = re.search(r"v?(\d+\.\d+\.\d+)", said.stdout)
    return match[1] if match else None


def is_new_enough(version: str) -> bool:
    """Whether the known vulnerabilities are fixed in this version."""
    major, minor, patch = (int(part) for part in version.split(".")[:3])
    floor = FLOORS.get((major, minor), FLOOR_NEWEST)
    return (major, minor, patch) >= floor


def _given(path: Path) -> NatsBinary:
    version = version_of(path)
    if version is None:
        raise SetupRefused(
            f"NATS_SERVER_BIN names {path}, which does not run.",
            next_step="Point it at a nats-server, or unset it.",
        )
    if not is_new_enough(version):
        raise SetupRefused(
            f"NATS_SERVER_BIN names a nats-server {version}, which has known security holes.",
            next_step=f"Use at least {FLOOR_TEXT}, or unset the variable.",
        )
    return NatsBinary(path=path.resolve(), version=version, source="NATS_SERVER_BIN")


def _cache_folder() -> Path:
    return places.cache_folder() / f"nats-server-{places.platform_key()}"


def _fetched(progress: Progress, logs: Path) -> NatsBinary:
    reasons = []
    with places.scratch_folder("nats-server") as scratch:
        for way in (_from_release, _from_debian):
            try:
                binary, source = way(Path(scratch), progress, logs)
                version = version_of(binary)
                if version is None or not is_new_enough(version):
                    raise SetupRefused(f"{source} is too old or does not run here.", next_step="")
            except SetupRefused as refused:
                reasons.append(refused.sentence)
                continue
            folder = _cache_folder()
            folder.mkdir(parents=True, exist_ok=True)
            binary.chmod(0o755)
            binary.replace(folder / "nats-server")
            places.write_whole(folder / "source.txt", source + "\n")
            path = folder / "nats-server"
            return NatsBinary(path=path, version=version, source=source)
    raise SetupRefused(
        "No nats-server was found and none could be fetched (" + " ".join(reasons) + ")",
        next_step=f"Install one (at least {FLOOR_TEXT}; macOS: brew install nats-server) or set "
        "NATS_SERVER_BIN to its path.",
    )


def _from_release(scratch: Path, progress: Progress, logs: Path) -> tuple[Path, str]:
    """Download the pinned release archive of the project and check its hash."""
    del progress, logs
    expected = RELEASE_SHA256.get(debian_package.architecture())
    if platform.system() != "Linux" or expected is None:
        raise SetupRefused("No release archive is pinned for this platform.", next_step="")
    name = f"nats-server-v{RELEASE}-linux-{debian_package.architecture()}"
    url = RELEASE_URL.format(RELEASE, name)
    archive = scratch / "release.tar.gz"
    try:
        with (
            urllib.request.urlopen(url, timeout=CONNECT_SECONDS) as reply,  # noqa: S310 (https)
            archive.open("wb") as file,
        ):
            shutil.copyfileobj(reply, file)
    except (OSError, urllib.error.URLError) as error:
        raise SetupRefused(
            "The release archive could not be downloaded.", next_step="", detail=str(error)
        ) from error
    debian_package.require_hash(archive, expected)
    with tarfile.open(archive) as packed:
        member = packed.extractfile(f"{name}/nats-server")
        assert member is not None
        binary = scratch / "from-release"
        with binary.open("wb") as file:
            shutil.copyfileobj(member, file)
    binary.chmod(0o755)
    return binary, f"release {RELEASE}"


def _from_debian(scratch: Path, progress: Progress, logs: Path) -> tuple[Path, str]:
    """Extract the server from Debian's package."""
    unpacked, taken = debian_package.fetch(PACKAGE, scratch, progress, logs)
    return unpacked / "usr" / "sbin" / "nats-server", taken
