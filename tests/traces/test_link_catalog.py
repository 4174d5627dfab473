from pathlib import Path

import pytest

from traces.catalog import DATA, links, load_link, pool, pools

ROWS = "time_s,downlink_mbps,uplink_mbps\n0,8,\n1,16,\n"


def test_links_are_listed_by_pool_and_number() -> None:
    names = links()
    assert len(names) == len(list(DATA.glob("*.csv"))) == 50
    assert names[:4] == ("3g-1", "3g-2", "3g-3", "3g-4")
    assert [name for name in names if name.startswith("lte")] == [
        *(f"lte-{number}" for number in range(1, 5)),
        *(f"lte-driving-{number}" for number in range(1, 5)),
        *(f"lte-walking-{number}" for number in range(1, 5)),
    ]
    assert names.index("shannon-1100") < names.index("shannon-2000")


def test_pools_are_the_names_without_the_number() -> None:
    assert pools() == (
        *("3g", "5g", "fixed", "lte", "lte-driving", "lte-walking", "shannon"),
        *("wifi", "wifi4", "wifi5", "wifi6"),
    )


@pytest.mark.parametrize("name", links())
def test_every_bundled_link_loads_with_both_directions(name: str) -> None:
    link = load_link(name)
    assert link.name == name
    assert link.downlink.mean_bytes_per_s > 0
    assert link.uplink.mean_bytes_per_s > 0


def test_pool_holds_all_of_its_links_and_no_other() -> None:
    assert [link.name for link in pool("lte")] == ["lte-1", "lte-2", "lte-3", "lte-4"]
    assert [link.name for link in pool("shannon")] == [
        f"shannon-{d}" for d in range(1100, 2001, 100)
    ]


def test_readme_of_the_data_names_every_pool_and_its_size() -> None:
    readme = (DATA / "README.md").read_text()
    for name in pools():
        assert f"| `{name}` | {len(pool(name))} |" in readme


def test_folder_of_files_is_a_pool_in_order_of_names(tmp_path: Path) -> None:
    for name in ("b.csv", "a.csv"):
        (tmp_path / name).write_text(ROWS)
    (tmp_path / "notes.txt").write_text("not a link")
    members = pool(tmp_path, uplink_scale=0.5)
    assert [link.name for link in members] == ["a", "b"]
    assert members[0].uplink.rate_bytes_per_s.tolist() == [0.5e6, 1e6]


def test_one_file_or_one_bundled_link_is_a_pool_of_one(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(ROWS)
    (mine,) = pool(str(tmp_path / "mine.csv"), uplink_scale=2.0)
    (wifi,) = pool("wifi-2")
    assert mine.uplink.rate_bytes_per_s.tolist() == [2e6, 4e6]
    assert wifi.name == "wifi-2"


def test_link_can_be_a_file(tmp_path: Path) -> None:
    (tmp_path / "mine.csv").write_text(ROWS)
    assert load_link(tmp_path / "mine.csv", uplink_scale=1.0).name == "mine"
    with pytest.raises(ValueError, match=r"mine\.csv, lines 2 to 3: uplink_mbps is empty"):
        load_link(tmp_path / "mine.csv")


def test_unknown_link_lists_the_pools_and_names_the_nearest() -> None:
    message = (
        r"CSV or TOML file, or a link .* \(pools: 3g, .*, wifi6\), got 'wifi'; did you mean wif"
    )
    with pytest.raises(ValueError, match=message):
        load_link("wifi")


@pytest.mark.parametrize("name", ["lte-drivin", "lte-driving-9"])
def test_a_misspelt_pool_is_told_the_nearest(name: str) -> None:
    with pytest.raises(ValueError, match=r"pools: 3g, .*, got 'lte.*; did you mean lte-driving"):
        pool(name)


def test_a_file_of_links_that_is_missing_is_said_to_be() -> None:
    message = r"bundled pool, or .*, got 'traces/6g\.csv'; nothing is at /.*/traces/6g\.csv$"
    with pytest.raises(ValueError, match=message):
        pool("traces/6g.csv")


def test_folder_without_links_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="a folder of links must hold CSV files, got none in"):
        pool(tmp_path)


def test_broken_file_of_a_folder_is_named(tmp_path: Path) -> None:
    (tmp_path / "good.csv").write_text(ROWS)
    (tmp_path / "bad.csv").write_text("0,1,1\n")
    with pytest.raises(ValueError, match=r"bad\.csv, line 1: expected the header"):
        pool(tmp_path, uplink_scale=1.0)
