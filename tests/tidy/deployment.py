"""`python -m tests.tidy.deployment`: docker-compose.yml and Dockerfiles, by their own tools.

docker compose is taken from this machine or, on Debian, out of its package; where neither can be
had, the compose file is still held by tests/tidy/test_deployment.py.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from deploy.local import debian_package, places
from deploy.local.debian_package import DebianPackage
from deploy.local.refusal import SetupRefused
from deploy.local.tool import Progress
from tests.tidy import tree

CHECK_SECONDS = 60
COMPOSE = DebianPackage(
    name="docker-compose",
    version="2.40.3-3",
    sha256={"amd64": "e7603d5e6df0f8404f7b03da478022b87d7b50644cffe68884b071e5cfc17fd3"},
)
IN_PACKAGE = "usr/libexec/docker/cli-plugins/docker-compose"


def main() -> int:
    """Check all; the first failing exit code or 0."""
    hadolint = Path(sys.executable).parent / "hadolint"
    for dockerfile in sorted((tree.ROOT / "deploy").rglob("*Dockerfile")):
        code = _run([str(hadolint), str(dockerfile)])
        if code != 0:
            return code
    compose = _compose()
    if compose is None:
        print("docker compose was not found and could not be fetched; its check is left out")
        return 0
    return _run([*compose, "--profile", "otel", "config", "--quiet"])


def _run(command: list[str]) -> int:
    return subprocess.run(command, cwd=tree.ROOT, check=False, timeout=CHECK_SECONDS).returncode


def _compose() -> list[str] | None:
    """How docker compose is called here."""
    for command in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(command[0]):
            probe = subprocess.run(
                [*command, "version"], capture_output=True, check=False, timeout=CHECK_SECONDS
            )
            if probe.returncode == 0:
                return command
    kept = places.cache_folder() / f"docker-compose-{COMPOSE.version}-{places.platform_key()}"
    if not kept.is_file():
        logs = places.cache_folder() / "logs"
        with places.scratch_folder("docker-compose") as scratch:
            try:
                unpacked, _ = debian_package.fetch(COMPOSE, Path(scratch), Progress(), logs)
            except SetupRefused:
                return None
            (unpacked / IN_PACKAGE).replace(kept)
    return [str(kept)]


if __name__ == "__main__":
    sys.exit(main())
