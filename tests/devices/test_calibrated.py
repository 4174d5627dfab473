"""Profiles that were calibrated: files of their own, which a config may name."""

from dataclasses import replace
from pathlib import Path

import pytest

from devices.fleet.calibrated import calibrated_text
from devices.fleet.catalog import profile
from devices.fleet.profile import DeviceProfile, StepRates

RATES = StepRates(1e11, 1.5e10, 3e10, 7e9, 2.5e9, 0.011)
MINE = DeviceProfile(
    name="mine",
    title='A "quoted" box',
    tier="calibrated",
    flops_per_s={32: 1e11, 16: 4e11},
    memory_bytes=2**34,
    memory_bytes_per_s=2e10,
    overhead_s=0.009,
    power_w={"idle": 2.0, "compute": 20.0, "radio": 3.0},
    confidence="high",
    source="made for this test",
    measured={32: RATES, 16: RATES._replace(flops_per_s=4e11)},
)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "mine.toml"
    path.write_text(calibrated_text(MINE), "utf-8")
    return path


def test_calibrated_profile_reads_back_as_it_was_written(file: Path) -> None:
    found = profile(str(file))
    assert found.measured is not None
    for bits, rates in found.measured.items():
        assert rates == pytest.approx(MINE.measured[bits], rel=1e-15)
    plain = {"measured": None, "memory_bytes_per_s": 1.0, "overhead_s": 1.0, "flops_per_s": {}}
    assert replace(found, **plain) == replace(MINE, **plain)
    assert found.flops_per_s == pytest.approx(MINE.flops_per_s)


def test_one_of_several_profiles_in_a_file_is_named_after_a_colon(file: Path) -> None:
    other = calibrated_text(replace(MINE, name="other"))
    file.write_text(file.read_text("utf-8") + "\n" + other, "utf-8")
    assert profile(f"{file}:other").name == "other"
    with pytest.raises(ValueError, match=r"must be named, as .*:NAME with one of mine, other, got"):
        profile(str(file))


@pytest.mark.parametrize(
    ("found", "damaged", "message"),
    [
        ("overhead_s = 0.011", "", "calibrated mine: measured: 32 must have .*, got no overhead_s"),
        (
            "overhead_s = 0.011",
            "overhead_s = -1",
            "overhead_s must be .* at least 1e-09 .*, got -1",
        ),
        ("gflops = 100.0", "gflops = 1e9", "gflops must be .* at most 1e.07, got 1000000000"),
        ("memory_gib = ", "memory_gib = 9e99 #", "memory_gib must be .* at most 100000, got 9e.99"),
        ("gflops = 100.0", "gflops = inf", "32: gflops must be a number of at least .*, got inf"),
        ("gflops = 100.0", 'gflops = "x"', "gflops must be a number of at least .* got 'x'"),
        ("compute_w = 20.0", "compute_w = 1", "compute_w must be no less than idle_w, got 1 and 2"),
        ("measured.16", "measured.8", "measured: must have at least one of the keys 32, 16"),
        ('confidence = "high"', 'confidence = "sure"', "confidence must be one of high, medium"),
        ("memory_gib", "memory_gb", "got no memory_gib, memory_gb"),
        ("[[calibrated]]", "[[calibrated", "the catalog cannot be read as TOML"),
    ],
)
def test_missing_or_impossible_number_is_named_with_its_file(
    file: Path, found: str, damaged: str, message: str
) -> None:
    text = file.read_text("utf-8")
    assert found in text
    file.write_text(text.replace(found, damaged, 1), "utf-8")
    with pytest.raises(ValueError, match=message) as caught:
        profile(str(file))
    assert str(file) in str(caught.value)


def test_power_mode_that_does_not_exist_is_refused_with_those_that_do() -> None:
    message = "a power mode of jetson-tx2 must be one of maxn, maxp, maxq, got 'turbo'"
    with pytest.raises(ValueError, match=message):
        profile("jetson-tx2-turbo")


def test_what_the_framework_takes_reads_back_as_it_was_written(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(calibrated_text(replace(MINE, runtime_bytes=700 * 2**20)), "utf-8")
    assert profile(str(path)).runtime_bytes == 700 * 2**20
