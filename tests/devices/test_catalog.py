import copy
import math
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from devices.fleet.catalog import CATALOG, load_profiles, profile, read_catalog
from devices.fleet.profile import DeviceProfile
from devices.vocabulary.plan import WEIGHT_FORMATS
from tests.torture import SHARE

PARSED = tomllib.loads(CATALOG.read_text(encoding="utf-8"))
PROFILES = load_profiles()
Keys = tuple[Any, ...]
"""Where a value stands in a parsed file: the key of each table, the index in each list."""
every_profile = pytest.mark.parametrize("kind", PROFILES.values(), ids=PROFILES)


def leaves(tree: dict[str, Any] | list[Any], path: Keys = ()) -> Iterator[Keys]:
    """Yield the paths to all values of a parsed TOML file that are no tables."""
    items = tree.items() if isinstance(tree, dict) else enumerate(tree)
    for key, value in items:
        if isinstance(value, dict | list):
            yield from leaves(value, (*path, key))
        else:
            yield (*path, key)


def changed(path: Keys, value: Any) -> dict[str, Any]:
    """Return the catalog with another value at a path; ``...`` takes the key away."""
    catalog = copy.deepcopy(PARSED)
    table = catalog
    for key in path[:-1]:
        table = table[key]
    if value is ...:
        del table[path[-1]]
    else:
        table[path[-1]] = value
    return catalog


def at(path: Keys) -> Any:
    table = PARSED
    for key in path:
        table = table[key]
    return table


OPTIONAL = ("plain", "format_time", *WEIGHT_FORMATS)
"""Keys that a table may leave out."""
STEP = 1 if SHARE else 7
"""One in this many of the catalog's values is changed, since the catalog is read anew for each."""
NUMBERS = [path for path in leaves(PARSED) if not isinstance(at(path), str)][::STEP]
TEXTS = [path for path in leaves(PARSED) if isinstance(at(path), str)][::STEP]


def refusal(catalog: dict[str, Any]) -> str:
    with pytest.raises(ValueError, match=r"^my\.toml") as error:
        read_catalog(catalog, "my.toml")
    return str(error.value)


def owner(path: Keys) -> Any:
    """Return how an error names the table of a path: by the name of its device or class."""
    if path[0] == "device":
        return PARSED["device"][path[1]]["name"]
    return path[1]


def test_catalog_covers_the_boards_phones_and_laptops_that_users_ask_for() -> None:
    assert len(PROFILES) >= 24
    for start in (
        "jetson-nano-", "jetson-tx2-", "jetson-xavier-nx-", "jetson-agx-xavier-",
        "jetson-orin-nano-", "jetson-orin-nx-", "jetson-agx-orin-",
        "raspberry-pi-3", "raspberry-pi-4", "raspberry-pi-5", "laptop-",
    ):  # fmt: skip
        assert any(name.startswith(start) for name in PROFILES), start
    tiers = {kind.tier for kind in PROFILES.values()}
    assert {"phone-low", "phone-mid", "phone-high"} <= tiers


@every_profile
def test_profile_holds_sane_numbers_and_says_where_they_come_from(kind: DeviceProfile) -> None:
    assert set(kind.flops_per_s) == {32, 16}
    slowest = 1e9 if kind.name.endswith(("-plain", "-gpu")) else 1e10
    assert slowest < kind.flops_per_s[32] <= kind.flops_per_s[16] < 1e13
    assert kind.memory_bytes % 2**30 == 0
    assert 1e9 < kind.memory_bytes_per_s < 3e11
    assert 0 < kind.overhead_s < 0.2
    assert kind.power_w["idle"] <= kind.power_w["radio"]
    assert kind.power_w["idle"] <= kind.power_w["compute"]
    for topic in ("peak [", "memory [", "power [", "overhead [", "sustained [assumed]"):
        assert topic in kind.source


def test_rates_are_below_the_peaks_of_the_vendor() -> None:
    for device in PARSED["device"]:
        for mode in device.get("mode", [None]):
            kind = PROFILES[f"{device['name']}-{mode['name']}" if mode else device["name"]]
            most = 0.55 if device["class"] == "cuda" else 0.5  # measured on a TX2
            for bits in (32, 16):
                peak = device["peak_gflops"][str(bits)] * 1e9
                assert kind.flops_per_s[bits] <= most * peak * (1 + 1e-12)
            assert kind.memory_bytes_per_s < device["peak_gb_per_s"] * 1e9


def test_units_become_si_and_a_mode_scales_by_its_clocks() -> None:
    # TX2 Max-Q: 850 of 1300 MHz GPU, 1331 of 1866 MHz memory, 1200 of 2035 MHz CPU.
    maxq = profile("jetson-tx2-maxq")
    assert maxq.flops_per_s[32] == pytest.approx(666e9 * 0.55 * 850 / 1300)
    assert maxq.flops_per_s[16] == pytest.approx(1331e9 * 0.41 * 850 / 1300)
    assert maxq.memory_bytes == 8 * 2**30
    assert maxq.memory_bytes_per_s == pytest.approx(59.7e9 * 0.75 * 1331 / 1866)
    assert maxq.overhead_s == pytest.approx(0.045 * 2035 / 1200)
    assert maxq.power_w == {"idle": 2.5, "compute": 7.5, "radio": 4.0}
    assert maxq.title == "NVIDIA Jetson TX2 8 GB (2017), mode maxq"


def test_mode_that_switches_half_the_gpu_off_halves_its_rate() -> None:
    # AGX Xavier 10 W: 2 of 4 units at 520 of 1377 MHz.
    low, full = profile("jetson-agx-xavier-10w"), profile("jetson-agx-xavier-maxn")
    assert low.flops_per_s[16] == pytest.approx(full.flops_per_s[16] * 520 / 1377 * 2 / 4)


def test_device_without_modes_runs_at_its_full_clock() -> None:
    pi = profile("raspberry-pi-4-2gb")
    assert pi.flops_per_s == pytest.approx({32: 48e9 * 0.3, 16: 48e9 * 0.3})
    assert pi.memory_bytes_per_s == pytest.approx(12.8e9 * 0.43)
    assert pi.overhead_s == 0.012


def test_confidence_is_the_lowest_of_the_facts() -> None:
    assert profile("jetson-tx2-maxn").confidence == "high"  # of peak, memory and modes
    assert profile("jetson-xavier-nx-15w").confidence == "medium"  # its modes
    assert profile("laptop-apple-m1").confidence == "low"  # its peak


def test_every_source_and_class_is_used_by_a_device() -> None:
    kinds = [(device["class"], device.get("plain")) for device in PARSED["device"]]
    classes = {name for pair in kinds for name in pair if name}
    cited = {name for device in PARSED["device"] for name in device["sources"].values()}
    assert classes == set(PARSED["class"])
    assert cited == set(PARSED["source"])


def test_number_that_is_none_or_not_above_0_is_refused_by_device_and_key() -> None:
    wrong = (0, -1, math.nan, math.inf, "8", True, [8])
    tried: set[str] = set()
    for number, path in enumerate(NUMBERS):
        # Every wrong value is tried at the first place of a key, and one at each other place, since
        # the catalog is read anew for each.
        here = wrong if path[-1] not in tried else wrong[number % len(wrong) :][:1]
        tried.add(str(path[-1]))
        for value in here:
            message = refusal(changed(path, value))
            assert f"{path[-1]} must be a number of at least" in message
            assert f"got {value!r}" in message
            assert owner(path) in message


def test_text_that_is_none_is_refused_by_device_and_key() -> None:
    for path in TEXTS:
        for value in ("", 5):
            message = refusal(changed(path, value))
            assert re.search(rf"{path[-1]} must be (a text|one of .*), got {value!r}", message)


def test_missing_key_is_refused_by_name() -> None:
    for path in [*NUMBERS, *TEXTS]:
        if path[-1] in OPTIONAL:
            continue
        message = refusal(changed(path, ...))
        assert "must have the keys" in message
        assert f"no {path[-1]}" in message


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("class", "cuda", "sustained_memory"), 1.2, "at most 1, got 1.2"),
        (("class", "cuda", "training_efficiency", "32"), 40, "32 must be .* at most 1, got 40"),
        (("class", "board", "training_efficiency", "16"), 0.1, "no less at 16 bits than at 32"),
        (("device", 1, "idle_w"), 9, "radio_w must be no less than idle_w, got 4 and 9"),
        (("device", 1, "mode", 2, "compute_w"), 1, r"compute_w must be no less .* got 1 and 2\.5"),
        (("device", 1, "radio_w"), 1, r"radio_w must be no less than idle_w, got 1 and 2\.5"),
        (("device", 1, "class"), "gpu", "class must be one of cuda, cuda-maxwell, .*, got 'gpu'"),
        (("device", 1, "sources", "peak"), "me", "peak must be one of jetson-datasheet.*got 'me'"),
        (("device", 1, "full", "gpu_mhz"), 1000, "at most 1000, got 1300"),
        (("device", 1, "mode", 0, "name"), "maxq", "must differ, got jetson-tx2-maxq twice"),
        (("device", 1, "name"), "jetson-nano", "must differ, got jetson-nano-maxn twice"),
        (("device", 1, "colour"), "green", "device jetson-tx2 must have the keys .*, got colour"),
        (("device", 1, "mode"), [], r"mode must be a list of tables, got \[\]"),
        (("device", 1, "mode"), 3, "mode must be a list of tables, got 3"),
        (("device", 1, "full"), 3, "full must be a table, got 3"),
        (("device",), [], r"device must be a list of tables, got \[\]"),
        (("source", "jetson-idle", "confidence"), "sure", "one of high, medium, low, got 'sure'"),
        (("class",), "all", "class must be a table, got 'all'"),
        (("extra",), 1, r"my\.toml must have the keys source, class, device, got extra"),
    ],
)
def test_catalog_that_contradicts_itself_is_refused(path: Keys, value: Any, message: str) -> None:
    assert re.search(message, refusal(changed(path, value)))


def test_unknown_device_lists_near_and_valid_names() -> None:
    with pytest.raises(ValueError, match="a device must be one of") as error:
        profile("jetson-tx-maxn")
    assert re.search(r"got 'jetson-tx-maxn'; did you mean jetson-tx2-max", str(error.value))
    assert all(name in str(error.value) for name in PROFILES)


def test_device_like_no_other_lists_the_valid_names() -> None:
    with pytest.raises(ValueError, match=r"laptop-apple-m3-pro-gpu, got 'zzz'$"):
        profile("zzz")


def test_catalog_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"none\.toml: the file cannot be read: No such file"):
        load_profiles(tmp_path / "none.toml")
    (tmp_path / "bad.toml").write_text("[device\n")
    with pytest.raises(ValueError, match=r"bad\.toml: the catalog cannot be read as TOML: .*line"):
        load_profiles(tmp_path / "bad.toml")


def test_a_device_may_say_what_its_framework_takes_of_the_memory() -> None:
    plain = read_catalog(changed(("device", 1, "idle_w"), 2.0), "my.toml")
    found = read_catalog(changed(("device", 1, "runtime_mib"), 600), "my.toml")
    tx2 = [name for name in found if name.startswith("jetson-tx2")]
    assert tx2
    assert {found[name].runtime_bytes for name in tx2} == {600 * 2**20}
    assert {plain[name].runtime_bytes for name in plain} == {0}
    assert "runtime_mib must be a number of at least 0" in refusal(
        changed(("device", 1, "runtime_mib"), -1)
    )
    # The hash of conditions is made of this text and of the budgets, which allow for the runtime.
    assert "runtime" not in repr(found[tx2[0]])


def test_plain_stack_is_a_profile_beside_the_tuned_one() -> None:
    tuned, plain = profile("phone-snapdragon-778g"), profile("phone-snapdragon-778g-plain")
    assert plain.flops_per_s[32] < 0.2 * tuned.flops_per_s[32]
    assert (plain.memory_bytes, plain.power_w) == (tuned.memory_bytes, tuned.power_w)
    assert "plain C++ or Java" in plain.title


def test_class_says_how_much_longer_a_format_takes() -> None:
    assert profile("phone-mali-g715-gpu").format_time["int4"] > 2
    assert profile("jetson-tx2-maxn").format_time == {}
    path = ("class", "phone-gpu", "format_time")
    assert "format_time must be a table" in refusal(changed(path, 3))
    assert "got int3" in refusal(changed((*path, "int3"), 3))
