import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from devices.datasets.dataset import load_dataset
from devices.tasks.classification import Classification
from devices.training.adapters import load_adapter
from devices.training.export import save_peft
from devices.training.trainer import TorchTrainer
from devices.vocabulary.plan import TermGrid
from devices.vocabulary.trainer import TrainingJob
from tests.beginning import beginning
from tests.devices.training.tiny_task import (
    make_config,
    make_job,
    make_trainer,
    needs_minilm,
    random_adapter,
)
from tests.torture import long

FOREIGN = """
import json, sys
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification, AutoTokenizer
torch.set_num_threads(1)
base, adapter, texts = sys.argv[1:]
rows = json.load(open(texts))
tokenizer = AutoTokenizer.from_pretrained(base)
model = AutoModelForSequenceClassification.from_pretrained(base, num_labels=16)
model = PeftModel.from_pretrained(model, adapter).eval()
right = 0
for first in range(0, len(rows), 40):
    part = rows[first : first + 40]
    inputs = tokenizer([text for text, _ in part], truncation=True, max_length=32, padding=True,
                       return_tensors="pt")
    with torch.no_grad():
        answers = model(**inputs).logits.argmax(dim=1)
    right += sum(int(answer) == label for answer, (_, label) in zip(answers, part))
ours = ("devices", "algorithms", "simulator", "traces", "analysis")
print(right, any(name.split(".")[0] in ours for name in sys.modules))
"""


@long
@needs_minilm
def test_plain_peft_gets_the_accuracy_that_we_report(tmp_path: Path) -> None:
    data = beginning(
        Classification.of(load_dataset("wordnet-16", Classification.columns)),
        num_train=320,
        num_test=128,
    )
    settings = {"learning_rate": 2e-3, "eval_examples": 128}
    trained_in = make_trainer(make_config("minilm-l6", dtype="auto", **settings), data)
    start = trained_in.spec.initial_adapter(8, 16.0, np.random.default_rng(0))
    job = make_job(trained_in, adapter=start, steps=24)
    everything = TrainingJob(job.plan, job.broadcast, np.arange(320), seed=0)
    adapter = trained_in.train([everything])[0].adapter
    reported = make_trainer(make_config("minilm-l6", **settings), data).evaluate(adapter)
    assert reported.values["accuracy"] > 0.15  # guessing gets 6 %

    save_peft(adapter, tmp_path / "adapter", source=trained_in.source, spec=trained_in.spec)
    rows = list(zip(data.data.test["text"], data.labels["test"].tolist(), strict=True))
    (tmp_path / "texts.json").write_text(json.dumps(rows))
    base = str(trained_in.source.directory)
    done = subprocess.run(
        [sys.executable, "-c", FOREIGN, base, str(tmp_path / "adapter"), tmp_path / "texts.json"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.split() == [str(round(reported.values["accuracy"] * 128)), "False"]


@pytest.mark.filterwarnings("error:fan_in_fan_out")  # peft's warning on a wrong config
def test_every_family_loads_in_plain_peft(family_trainer: TorchTrainer, tmp_path: Path) -> None:
    trainer, adapter = family_trainer, random_adapter(family_trainer)
    directory = str(trainer.source.directory)
    save_peft(adapter, tmp_path, source=trainer.source, spec=trainer.spec)
    base = AutoModelForSequenceClassification.from_pretrained(directory, num_labels=4)
    plain = PeftModel.from_pretrained(base, str(tmp_path)).eval()
    batch = trainer._train_texts.batch(np.arange(12), torch.device("cpu"))
    load_adapter(trainer._model, adapter, TermGrid.top_blocks((2, 2, 4), 2))
    trainer._model.weights.use_fp32()
    with torch.no_grad():
        got = plain(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        assert torch.allclose(got, trainer._model.logits(batch), atol=1e-4)


def test_the_same_adapter_gives_the_same_files(tiny: TorchTrainer, tmp_path: Path) -> None:
    adapter = random_adapter(tiny)
    for name in ("one", "two"):
        save_peft(adapter, tmp_path / name, source=tiny.source, spec=tiny.spec)
    for file in ("adapter_config.json", "adapter_model.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()
