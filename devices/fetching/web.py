"""Downloads one file of the web by its address, and checks its SHA-256."""

from __future__ import annotations

import http.client
import time
import urllib.error
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any
from urllib.parse import urlsplit
from urllib.request import (
    HTTPDefaultErrorHandler,
    HTTPErrorProcessor,
    HTTPHandler,
    HTTPRedirectHandler,
    HTTPSHandler,
    OpenerDirector,
    ProxyHandler,
    Request,
)

from devices.fetching.packages import MAX_WAIT_S, FetchError
from traces.file_hash import sha256_of

SILENCE_S = 60.0
"""The seconds without data after which a download is given up."""
CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class WebFile:
    """A web file has an address over http or https, a SHA-256, and a largest size in bytes."""

    address: str
    sha256: str
    max_bytes: int

    @property
    def pinned(self) -> str:
        """Return the address of the file."""
        return self.address

    def download(self, folder: Path) -> Path:
        """Download the file into ``folder`` under its own name, and return its path.

        Raises FetchError where it cannot be had, is larger than ``max_bytes``, is cut short, or has
        another SHA-256; then nothing is left of it.
        """
        file = folder / (PurePosixPath(urlsplit(self.address).path).name or "download")
        try:
            with _opener().open(_request(self.address), timeout=SILENCE_S) as response:
                self._copy(response, file)
            given = sha256_of(file)
            if given != self.sha256:
                raise FetchError(f"{self.address} must have sha256 {self.sha256}, got {given}")
        except BaseException as error:
            file.unlink(missing_ok=True)
            if isinstance(error, FetchError) or not isinstance(error, _UNREACHABLE):
                raise
            raise FetchError(f"{self.address} cannot be downloaded: {_reason(error)}") from None
        return file

    def _copy(self, response: http.client.HTTPResponse, file: Path) -> None:
        announced = response.length  # None if the server does not state the length
        if announced is not None and announced > self.max_bytes:
            raise self._too_large(f"{announced:,}")
        ends_s, size = time.monotonic() + MAX_WAIT_S, 0
        with file.open("wb") as out:
            while chunk := response.read(CHUNK_BYTES):
                size += len(chunk)
                if size > self.max_bytes:
                    raise self._too_large(f"more than {self.max_bytes:,}")
                if time.monotonic() > ends_s:
                    raise FetchError(
                        f"{self.address} must be downloaded within {MAX_WAIT_S:.0f} s, and was not"
                    )
                out.write(chunk)
        if announced is not None and size < announced:
            raise FetchError(
                f"{self.address} must be {announced:,} bytes as its server says, but the download "
                f"was cut short after {size:,}; try again"
            )

    def _too_large(self, found: str) -> FetchError:
        return FetchError(
            f"{self.address} must be at most {self.max_bytes:,} bytes, but its server sends {found}"
        )


_UNREACHABLE = (OSError, http.client.HTTPException, ValueError)
"""The errors that urllib raises where a file cannot be had; its own URLError is an OSError."""


class _Redirects(HTTPRedirectHandler):
    """This handler follows redirects to http or https, but none from https to http."""

    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Any, newurl: str
    ) -> Request | None:
        before, after = urlsplit(req.full_url).scheme, urlsplit(newurl).scheme
        if after != "https" and (before, after) != ("http", "http"):
            raise FetchError(
                f"{req.full_url} must lead to an address of https, but redirects to {newurl}"
            )
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def _opener() -> OpenerDirector:
    """Return what opens http and https, by way of the user's proxy, and nothing else."""
    opener = OpenerDirector()
    for handler in (
        ProxyHandler(),
        HTTPHandler(),
        HTTPSHandler(),
        _Redirects(),
        HTTPDefaultErrorHandler(),
        HTTPErrorProcessor(),
    ):
        opener.add_handler(handler)
    return opener


def _request(address: str) -> Request:
    scheme = urlsplit(address).scheme
    if scheme not in ("http", "https"):
        raise FetchError(f"an address must be one of http or https, got {address}")
    return Request(address, headers={"User-Agent": "fedclock", "Accept-Encoding": "identity"})


def _reason(error: BaseException) -> str:
    inner = getattr(error, "reason", None)
    if isinstance(error, urllib.error.HTTPError):
        return f"the server answers {error.code} {error.reason}"
    return str(getattr(inner, "strerror", None) or inner or error or type(error).__name__)
