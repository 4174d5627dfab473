"""Downloads one file of a package registry by name and version, and checks its SHA-256.

The registries' own clients do it, so that a mirror, a proxy or a certificate that pip or npm is set
up with holds here too.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Literal

from traces.file_hash import sha256_of

MAX_WAIT_S = 1800.0
"""The seconds after which a client that has not ended counts as hung."""


class FetchError(ValueError):
    """This error says that a package or file cannot be had, or is not what it must be."""


@dataclass(frozen=True)
class Package:
    """A package is one file of a registry: a wheel or source archive of PyPI, or an npm tarball."""

    registry: Literal["pypi", "npm"]
    name: str
    version: str
    sha256: str

    @property
    def pinned(self) -> str:
        """Return the package as its own client names it."""
        at = "@" if self.registry == "npm" else "=="
        return f"{self.name}{at}{self.version}"

    def download(self, folder: Path) -> Path:
        """Download the package's file into ``folder`` and return its path.

        Nothing of the package is installed or run: of PyPI it must be a wheel, or a source archive
        whose hash is checked before pip looks into it. Raises FetchError where the client is
        missing, cannot reach its registry, or hands over a file of another SHA-256.
        """
        with tempfile.TemporaryDirectory(dir=folder) as scratch:
            command = _command(self, Path(scratch))
            try:
                done = subprocess.run(
                    command, cwd=scratch, capture_output=True, text=True, timeout=MAX_WAIT_S
                )
            except subprocess.TimeoutExpired:
                raise FetchError(
                    f"{self.pinned} must be downloaded within {MAX_WAIT_S:.0f} s, and was not"
                ) from None
            endings = (".whl", ".gz", ".tgz")
            found = [path for path in Path(scratch).iterdir() if path.suffix in endings]
            if done.returncode or len(found) != 1:
                raise FetchError(
                    f"{self.pinned} must come from {self.registry}, but its client said: "
                    f"{_last_line(done.stderr) or _last_line(done.stdout) or 'nothing'}"
                )
            (file,) = found
            given = sha256_of(file)
            if given != self.sha256:
                raise FetchError(
                    f"the file of {self.pinned} must have sha256 {self.sha256}, got {given}"
                )
            where = folder / file.name
            shutil.move(file, where)
        return where


def _command(package: Package, folder: Path) -> list[str]:
    if package.registry == "npm":
        npm = shutil.which("npm")
        if npm is None:
            raise FetchError(f"{package.pinned} comes from npm: install Node.js with npm first")
        return [npm, "pack", "--silent", "--ignore-scripts", package.pinned]
    if find_spec("pip") is None:
        raise FetchError(
            f"{package.pinned} comes from PyPI: install pip beside FedClock first "
            "(python -m ensurepip)"
        )
    needs = folder / "needs.txt"
    needs.write_text(f"{package.pinned} --hash=sha256:{package.sha256}\n", "utf-8")
    arguments = ["download", "--quiet", "--no-deps", "--require-hashes", "--dest", str(folder)]
    return [sys.executable, "-m", "pip", *arguments, "--requirement", str(needs)]


def _last_line(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else ""
