"""Hashes the content of files."""

import hashlib
from pathlib import Path


def sha256_of(*files: Path) -> str:
    """Return the SHA-256 of these files' bytes, one file after the other, in hexadecimal digits."""
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
