"""Asks pip-audit, whose path is given, for known holes in what is installed beside this Python.

Exit code 1 where there is one. What could not be looked up is said, with the reason: pip-audit
itself says "No known vulnerabilities found" and exits with 0 where it could look up nothing at all.
"""

import json
import os
import subprocess
import sys


def verdict(report: str, error: str) -> tuple[str, int]:
    """What to say of pip-audit's JSON, or of its error where it wrote none, and the exit code."""
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


def main() -> int:
    command = [sys.argv[1], "--skip-editable", "--progress-spinner", "off", "--format", "json"]
    where = {**os.environ, "PIPAPI_PYTHON_LOCATION": sys.executable}
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=600, env=where)
        said, code = verdict(done.stdout, done.stderr)
    except (OSError, subprocess.TimeoutExpired) as error:
        said, code = f"not audited: {error}", 0
    print(said)
    return code


if __name__ == "__main__":
    sys.exit(main())
