"""Lists every scheduler, pacing and selection that a config may name, one line each."""

from typing import Any

from algorithms.merging.server_optimizers import (
    FedAdagrad,
    FedAdam,
    FedAvgM,
    FedYogi,
    ServerOptimizer,
)
from algorithms.pacing import FedAsync, FedBuff, OverSelection, Pacing, SemiSynchronous, Synchronous
from algorithms.selection import Selection, Uniform
from algorithms.selections.fair import Fair
from algorithms.selections.fedcs import FedCS
from algorithms.selections.oort import Oort
from algorithms.selections.power_of_choice import PowerOfChoice
from algorithms.strategies.centralized import Centralized
from algorithms.strategies.fah_qlora import FAHQLoRA
from algorithms.strategies.fed_hello import FedHeLLo
from algorithms.strategies.fedex_lora import FedExLoRA
from algorithms.strategies.fedlora import FedLoRA
from algorithms.strategies.fedquad import FedQuad
from algorithms.strategies.fedra import FedRA
from algorithms.strategies.fedsa_lora import FedSALoRA
from algorithms.strategies.ffa_lora import FFALoRA
from algorithms.strategies.flexlora import FlexLoRA
from algorithms.strategies.flora import FLoRA
from algorithms.strategies.haflq import HAFLQ
from algorithms.strategies.hetlora import HetLoRA
from algorithms.strategies.inclusivefl import InclusiveFL
from algorithms.strategies.layersel import LayerSel
from algorithms.strategies.legend import LEGEND
from algorithms.strategies.local_only import LocalOnly
from algorithms.strategies.lora_fair import LoRAFAIR
from algorithms.strategies.rolora import RoLoRA
from algorithms.strategies.scaffold import SCAFFOLD
from algorithms.strategies.zero_padding import ZeroPadding
from algorithms.strategy import Strategy

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
    "fedex-lora": FedExLoRA,
    "lora-fair": LoRAFAIR,
    "rolora": RoLoRA,
    "fedsa-lora": FedSALoRA,
    "fed-hello": FedHeLLo,
    "scaffold": SCAFFOLD,
    "local-only": LocalOnly,
    "centralized": Centralized,
}
PACINGS: dict[str, type[Pacing]] = {
    "synchronous": Synchronous,
    "over_selection": OverSelection,
    "semi_synchronous": SemiSynchronous,
    "fedbuff": FedBuff,
    "fedasync": FedAsync,
}
REFERENCES = tuple(kind for kind, strategy in STRATEGIES.items() if strategy.is_reference)
"""The kinds that a table lists for reference, beside the schedulers that it compares."""
SELECTIONS: dict[str, type[Selection]] = {
    "uniform": Uniform,
    "oort": Oort,
    "power_of_choice": PowerOfChoice,
    "fair": Fair,
    "fedcs": FedCS,
}
SERVER_OPTIMIZERS: dict[str, type[ServerOptimizer]] = {
    "fedavgm": FedAvgM,
    "fedadam": FedAdam,
    "fedyogi": FedYogi,
    "fedadagrad": FedAdagrad,
}
