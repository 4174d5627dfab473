"""A real server and real clients on this machine end where the simulation of them ends."""

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from algorithms.registry import STRATEGIES as STRATEGY_KINDS
from benchmarks.emulation.calibration import transfers
from benchmarks.emulation.server import Server
from benchmarks.emulation.workbench import Workbench
from devices.cost.closed_form import ClosedFormCost
from devices.vocabulary.trainer import NullTrainer
from simulator.config.experiment import read_experiment
from simulator.config.schema import RunConfig
from simulator.runs.run import federation_of
from simulator.world.build import build_world
from tests.devices.training.tiny_task import make_dataset
from tests.torture import long

# With these options no plan depends on measured seconds, which a real federation has of its own.
STRATEGIES = {
    "fedlora": {"kind": "fedlora", "rank": 2},
    "fedquad": {"kind": "fedquad", "rank": 2, "choose": "common_depth"},
    "haflq": {"kind": "haflq", "rank": 2, "upload_s": 1000.0},
    "scaffold": {"kind": "scaffold", "rank": 2},
}
PLAIN_SGD = {"optimizer": "sgd", "momentum": 0.0, "dtype": "fp32", "learning_rate": 0.1}


@pytest.fixture(scope="module")
def workbench() -> Iterator[Workbench]:
    with Workbench(2) as workbench:
        yield workbench


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("words")
    words = make_dataset(num_train=64, num_test=8)
    splits = {
        "train": (words.data.train["text"], words.labels["train"]),
        "test": (words.data.test["text"], words.labels["test"]),
    }
    for split, (texts, labels) in splits.items():
        rows = zip(texts, labels.tolist(), strict=True)
        lines = [json.dumps({"text": text, "label": label}) for text, label in rows]
        (folder / f"{split}.jsonl").write_text("\n".join(lines), "utf-8")
    return folder


LINKS = [
    {"profile": "jetson-nano-maxn", "link": {"mbps": [80.0, 40.0]}, "latency": 0.01},
    {"profile": "raspberry-pi-4-2gb", "link": {"mbps": [40.0, 20.0]}},
]


def config_of(data: Path, strategy: str, **changed: Any) -> RunConfig:
    content = {
        "name": "emulated",
        "task": {"model": "tiny", "data": str(data), "max_length": 16},
        "shards": {"kind": "iid"},
        "local": {"batch_size": 4, "steps": 2},
        "training": {"dtype": "fp32", "learning_rate": 0.01},
        "fleet": {"devices": LINKS},
        "pacing": {"kind": "synchronous", "cohort": 2},
        "evaluation": {"every": 1000, "examples": 8},
        "stop": {"rounds": 2},
        "strategy": STRATEGIES[strategy],
    }
    return read_experiment(content | changed, (), Path("emulated.yaml"))[0]


@long
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_real_clients_end_with_the_simulated_adapter_bit_for_bit(
    workbench: Workbench, data: Path, strategy: str
) -> None:
    training = {"training": PLAIN_SGD} if STRATEGY_KINDS[strategy].needs_plain_sgd else {}
    config = config_of(data, strategy, **training)
    real, simulated = workbench.emulate(config, [1.0, 1.0]), workbench.simulate(config)
    assert real.adapter_sha256 == simulated.adapter_sha256
    sent = {
        (r.round, r.device_id): (r.download_bytes, r.upload_bytes)
        for r in (served.record for served in real.served)
    }
    charged = {
        (r.round, r.device_id): (r.download_bytes, r.upload_bytes) for r in simulated.clients
    }
    assert sent == charged
    assert len(sent) == 4


@pytest.mark.parametrize("kind", ["fedsa-lora", "local-only", "centralized"])
def test_what_stays_on_a_device_is_refused_in_words(data: Path, kind: str) -> None:
    share = {"every": 1000, "examples": 8, "own_share": 0.2}
    config = config_of(data, "fedlora", evaluation=share)
    config = replace(config, strategy=STRATEGY_KINDS[kind](rank=4))
    world = build_world(config, "test")
    federation = federation_of(config, world, NullTrainer(world.model.num_blocks))
    with pytest.raises(ValueError, match=f"devices send all that they train, got {kind}"):
        Server(federation, [], multiprocessing.Value("d", 0.0))


@long
def test_no_device_is_done_before_its_link_and_its_profile_let_it(
    workbench: Workbench, data: Path
) -> None:
    config = config_of(data, "fedlora", stop={"rounds": 1})
    fleet = build_world(config, "test").fleet
    found = workbench.emulate(config, [6.0, None]).served
    for served in found:
        plan, record, report = served
        device = fleet[plan.device_id]
        cost = ClosedFormCost(build_world(config, "test").model, 16).cost(plan, device.profile)
        due_s = cost.train_s if plan.device_id == 1 else 6.0 * report.compute_s
        assert record.train_s >= due_s
        assert report.compute_s > 0
    # A packet is sent once its tokens have come, and no sooner but for rounding.
    assert all(one.measured_s > one.link_s - 1e-6 for one in transfers(config, found))


@long
def test_an_asynchronous_federation_merges_whatever_comes_first(
    workbench: Workbench, data: Path
) -> None:
    pacing = {"kind": "fedbuff", "concurrency": 2, "size": 1}
    config = config_of(data, "fedlora", pacing=pacing, stop={"rounds": 5})
    found = workbench.emulate(config, [1.0, 1.0])
    assert [served.record.finished_s for served in found.served] == sorted(
        served.record.finished_s for served in found.served
    )
    assert len(found.served) == len(found.rounds) == 5
    assert all(a.closed_s <= b.opened_s for a, b in pairwise(found.rounds))
