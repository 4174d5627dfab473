"""A fleet is read from a CSV with one row a device."""

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from devices.fleet.table import read_device_columns
from tests.traces.trace_files import CAPACITY, FILES, write
from traces.importers import import_files

NAN = float("nan")
FULL = (
    "device_id,profile,link,availability,speed,memory_bytes,memory_share,uplink_scale,"
    "downlink_mbps,uplink_mbps,colour\n"
    "a,jetson-nano-maxn,lte,diurnal,2,8e9,0.5,,,,red\n"
    "b,,,,,,,0.3,8,0.8,\n"
)


def same(found: Any, expected: Any) -> None:
    np.testing.assert_array_equal(found, np.array(expected))


def test_columns_are_in_si_units_and_what_is_not_known_is_nan(tmp_path: Path) -> None:
    devices = read_device_columns(write(tmp_path, "fleet.csv", FULL))
    assert len(devices) == 2
    assert devices.device_id == ("a", "b")
    assert devices.profile == ("jetson-nano-maxn", "")
    assert devices.link == ("lte", "")
    assert devices.availability == ("diurnal", "")
    same(devices.speed, [2, NAN])
    same(devices.memory_bytes, [8e9, NAN])
    same(devices.memory_share, [0.5, NAN])
    same(devices.uplink_scale, [NAN, 0.3])
    same(devices.downlink_bytes_per_s, [NAN, 1e6])
    same(devices.uplink_bytes_per_s, [NAN, 1e5])


def test_a_column_that_is_missing_is_not_known(tmp_path: Path) -> None:
    devices = read_device_columns(write(tmp_path, "fleet.csv", "speed,device_id\n1.5,x\n"))
    assert devices.profile == ("",)
    same(devices.speed, [1.5])
    same(devices.memory_bytes, [NAN])


def test_fedscale_capacities_become_speeds_and_rates(tmp_path: Path) -> None:
    clients = {
        1: {"computation": 100.0, "communication": 8000.0},
        2: {"computation": 50.0, "communication": 16000.0},
        3: {"computation": 400.0, "communication": 800.0},
    }
    (table,) = import_files(
        "fedscale-capacity", [write(tmp_path, "capacity", pickle.dumps(clients))]
    )
    devices = read_device_columns(write(tmp_path, "fleet.csv", table.text))
    same(devices.speed, [1, 2, 0.25])  # the median takes 100 ms
    same(devices.downlink_bytes_per_s, [1e6, 2e6, 1e5])
    same(devices.uplink_bytes_per_s, devices.downlink_bytes_per_s)
    assert "speed: inference_s_per_sample against the median of the table" in table.notes


def test_one_client_is_its_own_median(tmp_path: Path) -> None:
    (table,) = import_files(
        "fedscale-capacity", [write(tmp_path, "capacity", pickle.dumps(CAPACITY))]
    )
    assert dict(zip(table.columns, table.rows[0], strict=True))["speed"] == "1"


def test_speeds_too_far_apart_to_be_measured_are_not_reckoned(tmp_path: Path) -> None:
    content = "device,ai_score\na,1e-300\nb,1\n"
    (table,) = import_files("ai-benchmark", [write(tmp_path, "phones", content)])
    assert "speed" not in table.columns


def test_speed_of_phones_is_from_the_first_score_that_all_have(tmp_path: Path) -> None:
    (table,) = import_files("ai-benchmark", [write(tmp_path, "phones", FILES["ai-benchmark"])])
    devices = read_device_columns(write(tmp_path, "fleet.csv", table.text))
    # Phone B has no cpu_float_score; the AI scores are 76206 and 1200, their median 38703.
    assert devices.speed == pytest.approx([76206 / 38703, 1200 / 38703], rel=1e-5)
    same(devices.memory_bytes, [8e9, 6e9])
    assert "speed: ai_score against the median of the table" in table.notes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", r"fleet\.csv, line 1: expected a header with the columns device_id, found nothing"),
        ("device_id,speed\n", "line 1: expected at least one device below, found none"),
        ("profile\nx\n", "expected a header with the columns device_id, found 'profile'"),
        ("device_id,colour\na,red\n", "expected at least one column of profile, link, .*, found"),
        ("device_id,speed\na,1\na,2\n", r"line 3: device_id must differ .* after .*line 2"),
        ("device_id,speed\n ,1\n", "line 2: device_id must be printable text, found ''"),
        ("device_id,speed\na,fast\n", r"line 2: speed must be a number in \[0, .*found 'fast'"),
        ("device_id,speed\na,0\n", "line 2: speed must be above 0, found 0"),
        ("device_id,speed\na,nan\n", "line 2: speed must be a number"),
        ("device_id,memory_share\na,1.5\n", r"memory_share must be a number in \[0, 1\], found"),
        ("device_id,uplink_mbps\na,-3\n", r"line 2: uplink_mbps must be a number in \[0, 1e\+06\]"),
        ("device_id,speed\na,1\nb\n", r"line 3: expected 2 fields \('device_id,speed'\), found 1"),
        ("device_id,speed,speed\na,1,1\n", "line 1: expected each column once"),
    ],
)
def test_what_is_wrong_is_said_with_its_line(tmp_path: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_device_columns(write(tmp_path, "fleet.csv", text))
