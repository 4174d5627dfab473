"""Asks pip-audit, whose path is given, for known holes in what is installed beside this Python.

Exit code 1 where there is one. Before that it is shown that one would be found: pip-audit must find
a hole that a small advisory service on this machine invents for an installed package, and the
database that it reaches must name one that has been known for years. What could not be looked up is
said, with the reason: pip-audit itself says "No known vulnerabilities found" and exits with 0 where
it could look up nothing at all.
"""

import json
import os
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

INVENTED = "FEDCLOCK-0-0"
"""The advisory of the service on this machine."""
INSTALLED = "numpy"
"""A package that is installed beside this Python, whichever its version."""
KNOWN_PACKAGE = "pyyaml==5.3"
"""A release with a hole that each database has known since 2020 (CVE-2020-1747)."""


class _Advisories(BaseHTTPRequestHandler):
    """Answers the query of the OSV API: one hole, in one package, in all of its versions."""

    def do_POST(self) -> None:
        query = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        package = query["package"]
        hole = {
            "id": INVENTED,
            "summary": "invented, to see that it is found",
            "affected": [
                {
                    "package": package,
                    "ranges": [
                        {"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "9999"}]}
                    ],
                }
            ],
        }
        answer = json.dumps({"vulns": [hole]} if package["name"] == INSTALLED else {}).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    def log_message(self, *_: object) -> None:
        """Say nothing on the terminal."""


@contextmanager
def advisory_service() -> Iterator[str]:
    """Answer on loopback while the block runs; hand out the address."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Advisories)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_port}/v1/query"
    finally:
        server.shutdown()
        server.server_close()


def ask(pip_audit: str, *options: str) -> tuple[str, str]:
    """Run pip-audit; return its JSON and what it said on standard error.

    Raises OSError where it cannot be run, and subprocess.TimeoutExpired.
    """
    command = [pip_audit, "--progress-spinner", "off", "--format", "json", *options]
    where = {**os.environ, "PIPAPI_PYTHON_LOCATION": sys.executable, "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=where)
    return done.stdout, done.stderr


def finds_invented(pip_audit: str) -> bool:
    """Return whether pip-audit finds the hole that the service on this machine names."""
    with advisory_service() as url, tempfile.TemporaryDirectory() as cache:
        service = ("--vulnerability-service", "osv", "--osv-url", url, "--cache-dir", cache)
        report, error = ask(pip_audit, "--skip-editable", *service)
    said, code = verdict(report, error)
    return bool(code) and said.startswith("audited") and f": {INVENTED}, mended in 9999" in said


def why_blind(pip_audit: str) -> str:
    """Return why the database that is reached shows no holes; empty where it shows a known one."""
    with tempfile.TemporaryDirectory() as folder:
        wanted = Path(folder) / "requirements.txt"
        wanted.write_text(KNOWN_PACKAGE)
        report, error = ask(pip_audit, "--requirement", str(wanted), "--no-deps", "--disable-pip")
    said, code = verdict(report, error)
    if code:
        return ""
    if said.startswith("not audited"):
        return said.removeprefix("not audited: ")
    return f"the database that was reached names no hole in {KNOWN_PACKAGE}, which has one"


def verdict(report: str, error: str) -> tuple[str, int]:
    """Say what pip-audit's JSON means, or its error where it wrote none; return the exit code too.

    The code is 1 where a hole is known.
    """
    try:
        packages = json.loads(report)["dependencies"]
    except ValueError:
        reason = error.strip().splitlines()[-1:] or ["pip-audit said nothing"]
        return f"not audited: {reason[0]}", 0
    skipped = [package["name"] for package in packages if "skip_reason" in package]
    holes = [
        f"{package['name']} {package['version']}: {hole['id']}, mended in "
        f"{', '.join(hole['fix_versions']) or 'no version yet'}"
        for package in packages
        for hole in package.get("vulns", ())
    ]
    looked_up = len(packages) - len(skipped)
    if not looked_up:
        return f"not audited: none of {len(skipped)} packages is in the database it reached", 0
    lines = [f"audited: {looked_up} packages, {len(holes)} known holes", *holes]
    if skipped:
        lines.append(f"not audited: not in the database: {', '.join(skipped)}")
    return "\n".join(lines), int(bool(holes))


def audit(pip_audit: str) -> tuple[str, int]:
    """Audit what is installed, once it is shown that a hole would be found."""
    try:
        if not finds_invented(pip_audit):
            return f"broken: pip-audit did not find {INVENTED}, an invented hole in {INSTALLED}", 1
        found = f"a hole would be found: pip-audit finds {INVENTED}, invented for {INSTALLED}"
        if reason := why_blind(pip_audit):
            return f"{found}\nnot audited: {reason}", 0
        said, code = verdict(*ask(pip_audit, "--skip-editable"))
        return f"{found}, and the database knows the one in {KNOWN_PACKAGE}\n{said}", code
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"not audited: {error}", 0


if __name__ == "__main__":
    said, code = audit(sys.argv[1])
    print(said)
    sys.exit(code)
