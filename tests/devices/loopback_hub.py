"""This module serves a small Hugging Face hub on loopback, which the real client talks to."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote

NAME = "someone/small"


class Hub:
    """A hub serves one repository with its commits; ``branches`` say which commit a name means.

    A model and a data set have the same files, by the paths of either.
    """

    def __init__(self) -> None:
        self.commits: dict[str, dict[str, bytes]] = {}
        self.branches: dict[str, str] = {}
        self.asked: list[str] = []  # paths, in the order of the requests

    def commit(self, files: Mapping[str, bytes], *branches: str) -> str:
        """Add a commit, move the branches to it, and return its hash."""
        sha = hashlib.sha1(repr(sorted(files.items())).encode()).hexdigest()
        self.commits[sha] = dict(files)
        self.branches |= dict.fromkeys(branches, sha)
        return sha

    def answer(self, path: str) -> tuple[int, dict[str, str], bytes]:
        """Return status, headers and body for a request, as the hub's API has them."""
        self.asked.append(path)
        plain, mark, file = path.partition("?")[0].strip("/").partition("/resolve/")
        revision, _, inside = file.partition("/")
        parts = [*plain.split("/"), *(("resolve", revision, inside) if mark else ())]
        if parts[0] == "datasets":  # the path of a file; paths of the API begin with "api"
            parts = parts[1:]
        match parts:
            case ["api", "models" | "datasets", *name] if "/".join(name[:2]) == NAME:
                sha = self._sha(name[3]) if len(name) > 3 else self.branches["main"]
                if sha is None:
                    return 404, {"X-Error-Code": "RevisionNotFound"}, b"{}"
                if len(name) > 2 and name[2] == "tree":
                    return 200, {}, json.dumps([*self._tree(sha)]).encode()
                return 200, {}, json.dumps({"id": NAME, "sha": sha, "siblings": []}).encode()
            case [*name, "resolve", revision, file]:
                if "/".join(name) == NAME:
                    return self._file(revision, unquote(file))
        return 404, {"X-Error-Code": "RepoNotFound"}, b"{}"

    def _file(self, revision: str, file: str) -> tuple[int, dict[str, str], bytes]:
        sha = self._sha(revision)
        if sha is None or file not in self.commits[sha]:
            return 404, {"X-Error-Code": "EntryNotFound"}, b""
        body = self.commits[sha][file]
        return 200, {"ETag": f'"{hashlib.sha1(body).hexdigest()}"', "X-Repo-Commit": sha}, body

    def _sha(self, revision: str) -> str | None:
        found = self.branches.get(revision, revision)
        return found if found in self.commits else None

    def _tree(self, sha: str) -> Iterator[dict[str, object]]:
        for name, content in self.commits[sha].items():
            oid = hashlib.sha1(content).hexdigest()
            yield {"type": "file", "path": name, "size": len(content), "oid": oid}


@contextmanager
def serving(hub: Hub) -> Iterator[str]:
    """Serve the hub while the context is open; gives the address for HF_ENDPOINT."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:  # the name that http.server calls
            status, headers, body = hub.answer(self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET  # noqa: N815

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def printed_by(code: str, home: Path, environment: Mapping[str, str]) -> str:
    """Return what a process of its own prints, whose client keeps its files in ``home``."""
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, "HF_HOME": str(home), **environment},
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
