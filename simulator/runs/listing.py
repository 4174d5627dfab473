"""Makes the tables of ``fedclock list``: everything that a config may name."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from functools import partial

from rich import box
from rich.console import Console
from rich.table import Table

from algorithms.registry import PACINGS, SELECTIONS, STRATEGIES
from devices.datasets.dataset import DATASETS
from devices.datasets.fetched import FETCHED_DATA
from devices.fleet.catalog import load_profiles
from devices.fleet.mixes import MIXES
from devices.fleet.speed import SPEEDS
from devices.models.catalog import MODELS
from simulator.config.problems import UserError
from traces.catalog import pool, pools
from traces.generators.registry import AVAILABILITIES, LINKS
from traces.text import unknown

TOPICS = (
    "strategies",
    "pacing",
    "selection",
    "devices",
    "models",
    "data",
    "traces",
    "generators",
    "speeds",
    "mixes",
)

HASH_DIGITS = 8
"""The number of digits of a SHA-256 in a table; a manifest has all of them."""


def show(console: Console, topic: str | None) -> None:
    """Print the table of one topic, or of all; raises UserError where there is no such topic."""
    chosen = ALSO.get(topic or "", topic)
    if chosen is not None and chosen not in TOPICS:
        raise UserError(unknown("the topic of a list", topic, TOPICS))
    for name in TOPICS if chosen is None else (chosen,):
        console.print(_table(name))


ALSO = {"links": "traces", "profiles": "devices", "pacings": "pacing", "selections": "selection"}
"""Other names of topics: the config's own keys, and other forms of the word."""


def _table(topic: str) -> Table:
    columns, rows = _ROWS[topic]
    table = Table(
        title=topic,
        title_justify="left",
        title_style="bold",
        box=box.SIMPLE_HEAD,
        padding=(0, 1, 0, 0),
        show_edge=False,  # so that the widest table fits 80 columns
    )
    for column in columns:
        is_number = "\n" in column  # titles of numbers have the unit on a second line
        is_name = column == columns[0]  # names are copied by users, so they are not wrapped
        table.add_column(column, justify="right" if is_number else "left", no_wrap=is_name)
    for row in rows():
        table.add_row(*row)
    return table


def _strategies() -> Iterator[tuple[str, ...]]:
    for kind, strategy in STRATEGIES.items():
        yield kind, strategy.title
    yield "a_file.py:AClass", "your own (docs/own-scheduler.md)"


def _kinds(types: Mapping[str, type]) -> Iterator[tuple[str, ...]]:
    for kind, one in types.items():
        yield kind, _first_line(one)


def _first_line(cls: type) -> str:
    return (cls.__doc__ or "").splitlines()[0].replace("``", "")


def _devices() -> Iterator[tuple[str, ...]]:
    for profile in load_profiles().values():
        yield (
            profile.name,
            f"{profile.flops_per_s[32] / 1e9:,.0f}",
            f"{profile.flops_per_s[16] / 1e9:,.0f}",
            f"{profile.memory_bytes / 2**30:.0f}",
            f"{profile.memory_bytes_per_s / 1e9:.0f}",
            f"{profile.power_w['compute']:.1f}",
            profile.confidence,
        )


def _models() -> Iterator[tuple[str, ...]]:
    for name, model in MODELS.items():
        yield name, model.title, model.licence, getattr(model, "sha256", "")[:HASH_DIGITS]
    yield "a directory or hub name", "loaded by transformers from safetensors", "", ""


def _data() -> Iterator[tuple[str, ...]]:
    for name, data in DATASETS.items():
        yield name, data.title, data.licence, data.sha256[:HASH_DIGITS]
    for name, fetched in FETCHED_DATA.items():
        title = f"{fetched.title}; by fedclock fetch"
        yield name, title, fetched.licence, fetched.sha256[:HASH_DIGITS]
    files = "train and test as .csv, .tsv, .jsonl or .parquet with the task's columns"
    yield "a directory or hub name", files, "", ""


def _traces() -> Iterator[tuple[str, ...]]:
    for name in pools():
        links = pool(name)
        down = sum(link.downlink.mean_bytes_per_s for link in links) / len(links)
        up = sum(link.uplink.mean_bytes_per_s for link in links) / len(links)
        yield name, str(len(links)), f"{down * 8e-6:.1f}", f"{up * 8e-6:.1f}"
    yield "a .csv file or a folder of them", "", "", ""
    yield "{ mbps: [8, 2] }: down and up, always", "", "", ""
    yield "public sets: fedclock traces fetch", "", "", ""


def _generators() -> Iterator[tuple[str, ...]]:
    for what, kinds in (("link", LINKS), ("availability", AVAILABILITIES)):
        for kind, generator in kinds.items():
            yield kind, what, _first_line(generator)


def _mixes() -> Iterator[tuple[str, ...]]:
    for name, one in MIXES.items():
        yield name, ", ".join(one.profiles)


_ROWS: dict[str, tuple[tuple[str, ...], Callable[[], Iterator[tuple[str, ...]]]]] = {
    "strategies": (("kind", "what it is"), _strategies),
    "pacing": (("kind", "what it is"), partial(_kinds, PACINGS)),
    "selection": (("kind", "what it is"), partial(_kinds, SELECTIONS)),
    "devices": (
        (
            "profile",
            "fp32\nGFLOP/s",
            "fp16\nGFLOP/s",
            "RAM\nGiB",
            "RAM\nGB/s",
            "power\nW",
            "confidence",
        ),
        _devices,
    ),
    "models": (("model", "what it is", "licence", "sha256"), _models),
    "data": (("data", "what it is", "licence", "sha256"), _data),
    "traces": (("link", "traces\nnumber", "mean down\nMbit/s", "mean up\nMbit/s"), _traces),
    "generators": (("generator", "of", "what it is"), _generators),
    "speeds": (("speed_spread", "what it is"), partial(_kinds, SPEEDS)),
    "mixes": (("mix", "profiles"), _mixes),
}
