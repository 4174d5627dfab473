"""Makes a virtual environment for each framework, which can import torch, transformers and peft.

Their requirements contradict ours and one another, so each has its own, below .bench/, and torch
is never installed in it: FedClock's own packages come after the framework's on its path.
"""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2] / ".bench"


@dataclass(frozen=True)
class Framework:
    """A framework has packages for pip; ``alone`` installs ``needs`` in place of its own list."""

    package: str
    alone: bool = False
    needs: Sequence[str] = ()


FRAMEWORKS = {
    "pfl": Framework("pfl==0.6.0"),
    "Flower": Framework("flwr[simulation]==1.41.0"),
    # FLGo's own requirements include torchvision, which a run does not import.
    "FLGo": Framework(
        "flgo==0.4.4",
        alone=True,
        needs=("scipy", "matplotlib", "prettytable", "ujson", "pynvml", "pyyaml", "networkx",
               "toolz", "tqdm", "requests"),
    ),
}  # fmt: skip


class InstallError(Exception):
    """This error says why a framework cannot be installed."""


def python_of(name: str, framework: Framework, root: Path = ROOT) -> Path:
    """Return the interpreter of a framework's environment, which is made if it is not there yet.

    Raises InstallError with pip's last line.
    """
    folder = root / name.lower()
    python = folder / "bin" / "python"
    ready = folder / "ready.json"
    wanted = json.dumps([framework.package, *framework.needs, sys.version])
    if ready.exists() and ready.read_text() == wanted:
        return python
    print(f"installing {framework.package} into {folder}", file=sys.stderr)
    _call([sys.executable, "-m", "venv", "--clear", str(folder)])
    install = [str(python), "-m", "pip", "install", "--quiet"]
    numpy = (
        f"numpy=={importlib.metadata.version('numpy')}"  # the version that torch here is used with
    )
    _call([*install, framework.package, *(["--no-deps"] if framework.alone else [numpy])])
    if framework.needs:
        _call([*install, numpy, *framework.needs])
    _share(python)
    ready.write_text(wanted)
    return python


def _share(python: Path) -> None:
    """Let the environment see this one's packages, after its own."""
    ours = sysconfig.get_path("purelib")
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    theirs = Path(_call([str(python), "-c", ask]).strip())
    line = f"import site; site.addsitedir({ours!r})\n"  # addsitedir reads the .pth files there too
    (theirs / "zz_shared.pth").write_text(line)


def _call(command: Sequence[str]) -> str:
    ended = subprocess.run(command, capture_output=True, text=True)
    if ended.returncode:
        errors = [line for line in ended.stderr.splitlines() if line.startswith("ERROR")]
        last = (ended.stderr.strip().splitlines() or [f"exit code {ended.returncode}"])[-1]
        raise InstallError((errors or [last])[-1])
    return ended.stdout
