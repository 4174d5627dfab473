"""Tests each adapter on all test texts: ``python -m peers.score JOB ADAPTER...``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file

from peers.job import Job, assign, tokens, trained

BATCH = 50


@torch.no_grad()
def accuracies(folder: Path, adapters: list[Path]) -> list[float]:
    """Return the share of the test texts that each adapter classifies rightly, in fp32."""
    job, labels = Job.load(folder), np.load(folder / "arrays.npz")["test_labels"]
    ids = tokens(job.settings, json.loads((folder / "test.json").read_text()))
    tested = Job(job.settings, ids, labels, [], {}, job.batches)
    by_length = np.argsort(tested.lengths, kind="stable")
    network = job.network()
    shares = []
    for adapter in adapters:
        assign(trained(network), load_file(adapter))
        right = 0
        for first in range(0, len(by_length), BATCH):
            batch = tested.batch(by_length[first : first + BATCH])
            logits = network(input_ids=batch.ids, attention_mask=batch.mask).logits
            right += int((logits.argmax(dim=1) == batch.labels).sum())
        shares.append(right / len(by_length))
    return shares


if __name__ == "__main__":
    print(json.dumps(accuracies(Path(sys.argv[1]), [Path(file) for file in sys.argv[2:]])))
