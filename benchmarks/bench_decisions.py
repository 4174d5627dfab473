"""CPU seconds that FedQuad's server takes to decide the depths of a large fleet.

python benchmarks/bench_decisions.py [devices] [blocks]
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from algorithms.fedquad import FedQuad
from algorithms.strategy import LinkRate
from devices.catalog import load_profiles
from devices.cost.closed_form import ClosedFormCost
from devices.cost.model import Cost
from devices.model_spec import ModelSpec
from devices.plan import DeviceId, TrainingPlan
from devices.profile import DeviceProfile
from devices.trainer import SalienceMetric
from traces.bandwidth import FloatArray

ROBERTA = {
    "model_type": "roberta",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_attention_heads": 16,
    "vocab_size": 50265,
    "max_position_embeddings": 514,
}


@dataclass(frozen=True, eq=False)
class RandomFleet:
    """Devices of all catalog profiles, each with a memory budget, shard and link of its own."""

    model: ModelSpec
    costs: ClosedFormCost
    num_devices: int
    batch_size: int = 16

    @cached_property
    def _profiles(self) -> list[DeviceProfile]:
        return list(load_profiles().values())

    @cached_property
    def _draws(self) -> FloatArray:
        return np.random.default_rng(0).random((self.num_devices, 4))

    @property
    def device_ids(self) -> Sequence[DeviceId]:
        return range(self.num_devices)

    def profile(self, device_id: DeviceId) -> DeviceProfile:
        return self._profiles[device_id % len(self._profiles)]

    def memory_budget_bytes(self, device_id: DeviceId) -> int:
        return int(1.5e9 + 6e9 * self._draws[device_id, 0])

    def num_examples(self, device_id: DeviceId) -> int:
        return 50 + int(500 * self._draws[device_id, 1])

    def local_steps(self, device_id: DeviceId) -> int:
        return -(-self.num_examples(device_id) // self.batch_size)

    def link(self, device_id: DeviceId) -> LinkRate:
        return LinkRate(*(1e5 + 4e6 * self._draws[device_id, 2:]))

    def cost(self, plan: TrainingPlan) -> Cost:
        return self.costs.cost(plan, self.profile(plan.device_id))

    def block_salience(self, metric: SalienceMetric) -> FloatArray:
        return np.ones(self.model.num_blocks)


def main(num_devices: int = 1000, num_blocks: int = 24) -> None:
    """The first decision, which has every plan to cost, and one after it."""
    config = {**ROBERTA, "num_hidden_layers": num_blocks}
    model = ModelSpec.from_config("roberta-large", config, ["query", "value"], 4)
    fleet = RandomFleet(model, ClosedFormCost(model, sequence_length=128), num_devices)
    fleet.profile(0)  # reads the catalog, which is no part of a decision
    rng = np.random.default_rng(0)
    strategy = FedQuad()
    state = strategy.init(model.initial_adapter(strategy.rank, strategy.alpha, rng))
    for name in ("first", "later"):
        begun = time.process_time()
        plans = strategy.plan(state, fleet, fleet.device_ids, rng)
        taken_s = time.process_time() - begun
        kinds = {(plan.depth, plan.num_quantized_blocks) for plan in plans}
        print(
            f"{name} decision: {taken_s:.3f} s for {num_devices} devices and {num_blocks} blocks; "
            f"{len(plans)} plans, {len(kinds)} different"
        )


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
