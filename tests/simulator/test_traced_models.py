"""Whole runs of a model whose costs are traced, and models that no run can have."""

from __future__ import annotations

from pathlib import Path

from tests.devices.training.tiny_task import save_model
from tests.simulator.test_command import REAL, SMALL, fedclock, write
from tests.torture import long


@long
def test_gpt2_runs_under_strategies_that_plan_by_cost(tmp_path: Path) -> None:
    model = str(save_model(tmp_path / "gpt2", "gpt2", num_classes=16))
    task = {"model": model, "max_length": 16, "targets": ["c_attn", "mlp.c_proj"]}
    config = write(tmp_path, {**REAL, "task": task, "stop": {"rounds": 2}})
    ran = fedclock("run", config, "--output", tmp_path / "out", cwd=tmp_path)
    assert ran.returncode == 0, ran.stderr
    assert all(f"{label}: done" in ran.stdout for label in REAL["strategies"])


def test_flash_attention_of_an_mpnet_is_refused_before_anything_runs(tmp_path: Path) -> None:
    task = {"model": str(save_model(tmp_path / "mpnet", "mpnet")), "targets": ["q", "v"]}
    config = {**SMALL, "task": {**task, "max_length": 16}}
    for changes in ({"cost": {"attention": "sdpa"}}, {"training": {"attention": "sdpa"}}):
        file = write(tmp_path, {**config, **changes})
        refused = fedclock("run", file, "--output", tmp_path / "out", cwd=tmp_path)
        assert refused.returncode == 2
        said = " ".join(refused.stderr.split())
        assert "cost.attention and training.attention must be eager for a mpnet" in said
        assert not (tmp_path / "out").exists()


def test_a_model_of_another_make_is_refused_with_its_name(tmp_path: Path) -> None:
    directory = save_model(tmp_path / "model", "bert")
    text = (directory / "config.json").read_text("utf-8")
    (directory / "config.json").write_text(text.replace('"bert"', '"albert"'), "utf-8")
    task = {"model": str(directory), "max_length": 16}
    refused = fedclock("validate", write(tmp_path, {**SMALL, "task": task}), cwd=tmp_path)
    assert refused.returncode == 2
    said = " ".join(refused.stderr.split())
    assert "must be a list of equal transformer blocks" in said
    assert "of albert, it has 0 lists of 2 blocks, and must have one" in said
