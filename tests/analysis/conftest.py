"""Run folders written by the schema: a small seeded world with every kind of outcome in it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import yaml

from analysis.runs.load import Run, load_run

NUM_BLOCKS = 6
NUM_TERMS = NUM_BLOCKS * 2 * 8
BLOCK_BYTES, ACTIVATION_BYTES, REST_BYTES = 7.1e6, 12.7e6, 47e6
PROFILES = (  # name, FLOP/s, memory budget in bytes, watt
    ("raspberry-pi-4", 20e9, 99e6, 6.0),
    ("jetson-nano-5w", 40e9, 150e6, 5.0),
    ("jetson-tx2-maxq", 90e9, 168e6, 8.0),
    ("phone-mid", 60e9, 196e6, 4.0),
    ("jetson-xavier-nx-15w", 250e9, 232e6, 15.0),
)
LINKS = (("lte-walk", 0.9e6, 0.30e6), ("wifi-far", 2.5e6, 1.2e6), ("5g-car", 6e6, 2.0e6))


@dataclass
class World:
    """A world writes one strategy's run round by round."""

    strategy: str
    num_devices: int
    rng: np.random.Generator
    now_s: float = 0.0
    rounds: list[dict[str, Any]] = field(default_factory=list)
    clients: list[dict[str, Any]] = field(default_factory=list)
    events: list[dict[str, Any]] = field(default_factory=list)

    def run(self, num_rounds: int) -> None:
        self.rounds.append(round_row(0, 0.0, 0.0, [], 0) | self.evaluation(0))
        for number in range(1, num_rounds + 1):
            self.play(number)
            if number % 2 == 0 or number == num_rounds:
                self.rounds[-1] |= self.evaluation(number)

    def play(self, number: int) -> None:
        opened_s, rows, sat_out = self.now_s, [], 0
        size = self.num_devices if self.num_devices <= 8 else self.num_devices // 2
        for device in sorted(self.rng.choice(self.num_devices, size, replace=False)):
            row = self.work(number, int(device))
            if row is None:
                sat_out += 1
                self.log(opened_s, "sat_out", number, int(device))
            else:
                rows.append(row)
        self.now_s = max(row["finished_s"] for row in rows) + 0.5
        for row in rows:
            row["waiting_s"] = self.now_s - row["finished_s"]
            row["energy_idle_j"] = 1.5 * row["waiting_s"]
            self.log(row["finished_s"], row["outcome"], number, row["device_id"])
        self.log(self.now_s, "aggregated", number, None)
        self.clients += rows
        self.rounds.append(round_row(number, opened_s, self.now_s, rows, sat_out))

    def work(self, number: int, device: int) -> dict[str, Any] | None:
        """Simulate one plan from dispatch to its end; return None where no plan fits the device."""
        profile, rate, _, watt = PROFILES[device % len(PROFILES)]
        budget = budget_bytes(device)
        link, down, up = LINKS[device % len(LINKS)]
        down, up = (r * self.rng.uniform(0.5, 1.5) for r in (down, up))
        plan = decide(self.strategy, budget, up)
        if plan is None:
            return None
        is_oom = plan["peak_memory_bytes"] > budget
        flops = 0.0 if is_oom else 10 * 23e9 * (0.5 + 0.5 * plan["depth"] / NUM_BLOCKS)
        sent = 0 if is_oom else int(plan["num_terms_uploaded"] * 770 * plan["mean_upload_bits"] / 8)
        download_s, train_s, upload_s = 0.32e6 / down, flops / rate, sent / up
        is_late = not is_oom and self.rng.random() < 0.04
        return plan | {
            "round": number, "device_id": device, "profile": profile, "link": link,
            "outcome": "oom" if is_oom else "late" if is_late else "aggregated",
            "started_s": self.now_s, "download_s": download_s, "train_s": train_s,
            "upload_s": upload_s, "finished_s": self.now_s + download_s + train_s + upload_s,
            "download_bytes": 320_000, "upload_bytes": sent, "memory_budget_bytes": int(budget),
            "flops": flops, "energy_compute_j": watt * train_s,
            "energy_radio_j": 1.2 * (download_s + upload_s), "num_examples": 640,
            "staleness": 0, "train_loss": math.nan if is_oom else 2.7 * math.exp(-number / 9),
        }  # fmt: skip

    def evaluation(self, number: int) -> dict[str, float]:
        top, pace = {"fedlora": (0.66, 7.0), "fedquad": (0.71, 6.0)}.get(self.strategy, (0.69, 8.0))
        gained = (top - 0.07) * (1 - math.exp(-number / pace))
        noise = self.rng.normal(0, 0.008) if number else 0.0
        return {"accuracy": round((0.07 + gained + noise) * 400) / 400, "loss": 2.77 - 2 * gained}

    def log(self, at_s: float, event: str, number: int, device: int | None) -> None:
        self.events.append({"at_s": at_s, "event": event, "round": number, "device": device})


def decide(strategy: str, budget: float, up: float) -> dict[str, Any] | None:
    """Return a strategy's plan for a device of this budget and uplink rate, as columns."""
    if strategy == "fedquad":
        fits = [(d, a) for d in range(6, 0, -1) for a in range(d + 1) if held(d, a, 32) <= budget]
        return plan_row(*fits[0]) if fits else None
    if strategy == "haflq":
        bits = [(b, d) for b in (32, 16, 8, 4) for d in (6, 4) if held(d, 0, b) <= budget]
        if not bits:
            return None
        upload = max(2, min(16, 2 ** int(math.log2(up / 6e4))))
        return plan_row(bits[0][1], 0, bits[0][0], (32 if bits[0][0] < 32 else 64, upload))
    return plan_row(6, 0)


def held(depth: int, quantized: int, bits: float) -> float:
    """Return the bytes at the peak of a step."""
    row = plan_row(depth, quantized, bits)
    return float(row["peak_memory_bytes"])


def budget_bytes(device: int) -> float:
    """Return a memory budget; each further device of a profile has a little less, to the fourth."""
    return PROFILES[device % len(PROFILES)][2] * (1 - 0.06 * (device // len(PROFILES) % 3))


def device_row(device: int) -> dict[str, Any]:
    return {
        "device_id": device, "profile": PROFILES[device % len(PROFILES)][0],
        "link": LINKS[device % len(LINKS)][0], "memory_budget_bytes": int(budget_bytes(device)),
        "num_examples": 640, "own_accuracy": 0.4 + 0.05 * device,
    }  # fmt: skip


def plan_row(
    depth: int, quantized: int, bits: float = 32, upload: tuple[int, int] | None = None
) -> dict[str, Any]:
    terms, upload_bits = upload or (NUM_TERMS * depth // NUM_BLOCKS, 32)
    parts = {
        "weights": REST_BYTES + NUM_BLOCKS * BLOCK_BYTES * bits / 32,
        "adapters": 0.9e6,
        "gradients": 0.9e6 * depth / NUM_BLOCKS,
        "optimizer": 1.8e6 * depth / NUM_BLOCKS,
        "activations": ACTIVATION_BYTES * (depth - 0.73 * quantized),
        "transient": ACTIVATION_BYTES * (1.0 if quantized else 0.6),
        "head": 1.1e6,
    }
    memory = {f"memory_{part}_bytes": int(size) for part, size in parts.items()}
    return memory | {
        "peak_memory_bytes": sum(memory.values()), "depth": depth,
        "num_quantized_blocks": quantized, "mean_weight_bits": float(bits),
        "weight_formats": ",".join([f"int{bits}" if bits < 16 else f"fp{bits}"] * NUM_BLOCKS),
        "num_terms_held": NUM_TERMS, "num_terms_trained": terms, "num_terms_uploaded": terms,
        "mean_upload_bits": float(upload_bits),
    }  # fmt: skip


def round_row(
    number: int, opened_s: float, closed_s: float, rows: list[dict[str, Any]], sat_out: int
) -> dict[str, Any]:
    done = [row for row in rows if row["outcome"] == "aggregated"]
    energies = ("energy_compute_j", "energy_radio_j", "energy_idle_j")
    return {
        "round": number, "version": number, "opened_s": opened_s, "closed_s": closed_s,
        "duration_s": closed_s - opened_s, "accuracy": math.nan, "loss": math.nan,
        "train_loss": float(np.mean([r["train_loss"] for r in done])) if done else math.nan,
        "num_cohort": len(rows) + sat_out, "num_planned": len(rows), "num_sat_out": sat_out,
        "num_aggregated": len(done), "num_oom": sum(r["outcome"] == "oom" for r in rows),
        "num_late": sum(r["outcome"] == "late" for r in rows),
        "waiting_s": float(np.mean([r["waiting_s"] for r in done])) if done else 0.0,
        "download_bytes": sum(r["download_bytes"] for r in rows),
        "upload_bytes": sum(r["upload_bytes"] for r in rows),
        "flops": sum(r["flops"] for r in rows),
        "energy_j": sum(r[name] for r in rows for name in energies),
    }  # fmt: skip


def write_run(
    root: Path, strategy: str, *, num_devices: int = 6, num_rounds: int = 12, **manifest: Any
) -> Path:
    """Write a finished run folder below ``root``; ``manifest`` overrides entries of its
    manifest."""
    world = World(strategy, num_devices, np.random.default_rng(len(strategy)))
    world.run(num_rounds)
    label = manifest.get("label", strategy)
    config_hash = f"{sum(map(ord, label)):08x}"
    entries = {
        "format": 1, "status": "done", "label": label, "strategy": strategy, "seed": 0,
        "experiment": "demo", "conditions_hash": "c0ffee", "config_hash": config_hash,
        "git_sha": "0123abc", "git_dirty": False, "versions": {"python": "3.11", "torch": "2.13"},
        "host": {"cores": 2}, "wall_s": 61.5, "model": {"name": "minilm-l6", "sha256": "53aa"},
        "data": {"name": "wordnet-16", "sha256": "77bb", "num_train": 12800, "num_test": 1600,
                 "num_classes": 16, "majority_share": 0.0625},
        "training_dtype": "bfloat16", "adapter_sha256": "ad", "num_rounds": num_rounds,
        "simulated_s": world.now_s, "final_accuracy": world.rounds[-1]["accuracy"],
    } | manifest  # fmt: skip
    config = {
        "strategy": {"kind": strategy, "rank": 8},
        "fleet": {"devices": num_devices, "memory_share": 0.02},
        "training": {"batch_size": 16},
    }
    path = root / f"{label}-{config_hash}-s{entries['seed']}"
    path.mkdir(parents=True)
    (path / "manifest.json").write_text(json.dumps(entries))
    (path / "config.yaml").write_text(yaml.safe_dump(config))
    (path / "events.jsonl").write_text("".join(json.dumps(e) + "\n" for e in world.events))
    fleet = [device_row(device) for device in range(num_devices)]
    pd.DataFrame(fleet).to_parquet(path / "devices.parquet")
    pd.DataFrame(world.rounds).to_parquet(path / "rounds.parquet")
    pd.DataFrame(world.clients).to_parquet(path / "clients.parquet")
    return path


@pytest.fixture(name="write_run", scope="session")
def write_run_fixture() -> Callable[..., Path]:
    return write_run


@pytest.fixture(scope="session")
def folders(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Return the folders of three runs (one a strategy) of 6 devices and 12 rounds. Read only."""
    root = tmp_path_factory.mktemp("runs")
    return [write_run(root, strategy) for strategy in ("fedlora", "fedquad", "haflq")]


@pytest.fixture(scope="session")
def runs(folders: list[Path]) -> list[Run]:
    return [load_run(folder) for folder in folders]
