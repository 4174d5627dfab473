"""Every scheduler, pacing and selection that a config may name: one file and one line each."""

from typing import Any

from algorithms.fedlora import FedLoRA
from algorithms.fedquad import FedQuad
from algorithms.haflq import HAFLQ
from algorithms.pacing import Pacing, Synchronous
from algorithms.selection import Selection, Uniform
from algorithms.strategy import Strategy

STRATEGIES: dict[str, type[Strategy[Any]]] = {
    "fedlora": FedLoRA,
    "fedquad": FedQuad,
    "haflq": HAFLQ,
}
PACINGS: dict[str, type[Pacing]] = {
    "synchronous": Synchronous,
}
SELECTIONS: dict[str, type[Selection]] = {
    "uniform": Uniform,
}
