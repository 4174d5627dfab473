"""Every scheduler, pacing and selection that a config may name: one file and one line each."""

from typing import Any

from algorithms.fah_qlora import FAHQLoRA
from algorithms.fair import Fair
from algorithms.fedcs import FedCS
from algorithms.fedlora import FedLoRA
from algorithms.fedquad import FedQuad
from algorithms.fedra import FedRA
from algorithms.ffa_lora import FFALoRA
from algorithms.flexlora import FlexLoRA
from algorithms.flora import FLoRA
from algorithms.haflq import HAFLQ
from algorithms.hetlora import HetLoRA
from algorithms.inclusivefl import InclusiveFL
from algorithms.layersel import LayerSel
from algorithms.legend import LEGEND
from algorithms.oort import Oort
from algorithms.pacing import (
    FedAsync,
    FedBuff,
    OverSelection,
    Pacing,
    SemiSynchronous,
    Synchronous,
)
from algorithms.power_of_choice import PowerOfChoice
from algorithms.selection import Selection, Uniform
from algorithms.strategy import Strategy
from algorithms.zero_padding import ZeroPadding

STRATEGIES: dict[str, type[Strategy[Any]]] = {
    "fedlora": FedLoRA,
    "fedquad": FedQuad,
    "haflq": HAFLQ,
    "zeropad": ZeroPadding,
    "hetlora": HetLoRA,
    "flexlora": FlexLoRA,
    "ffa-lora": FFALoRA,
    "flora": FLoRA,
    "legend": LEGEND,
    "layersel": LayerSel,
    "fah-qlora": FAHQLoRA,
    "fedra": FedRA,
    "inclusivefl": InclusiveFL,
}
PACINGS: dict[str, type[Pacing]] = {
    "synchronous": Synchronous,
    "over_selection": OverSelection,
    "semi_synchronous": SemiSynchronous,
    "fedbuff": FedBuff,
    "fedasync": FedAsync,
}
SELECTIONS: dict[str, type[Selection]] = {
    "uniform": Uniform,
    "oort": Oort,
    "power_of_choice": PowerOfChoice,
    "fair": Fair,
    "fedcs": FedCS,
}
