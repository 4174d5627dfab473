"""Finds links and availability by name: bundled ones, files, and draws of fitted generators."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from traces.availability import AvailabilityTrace, read_availability
from traces.bandwidth import Link
from traces.formats import read_link
from traces.generators.diurnal import DiurnalModel
from traces.generators.link_model import LinkModel
from traces.generators.model_file import read_model
from traces.located import located, not_there
from traces.text import did_you_mean

DATA = Path(__file__).parent / "data"
NUM_LINKS = 16
"""Links that are drawn where a config names a fitted generator as a pool."""
NUM_DEVICES = 64
"""Devices that are drawn where a config names a fitted generator of availability."""


def links() -> tuple[str, ...]:
    """Return the names of the bundled links, pool by pool."""
    names = [path.stem for path in DATA.glob("*.csv")]
    return tuple(sorted(names, key=lambda name: (_pool_of(name), name)))


def pools() -> tuple[str, ...]:
    """Return the names of the bundled pools; ``lte-driving`` holds ``lte-driving-1`` and so on."""
    return tuple(dict.fromkeys(_pool_of(name) for name in links()))


def load_link(name_or_path: str | Path, *, uplink_scale: float | None = None) -> Link:
    """Return a bundled link, the link of a CSV file, or the first that a TOML file draws.

    ``uplink_scale`` serves files without a measured uplink, as in ``read_link``. Raises ValueError
    that lists the valid names, or says what is wrong in the file.
    """
    name = str(name_or_path)
    if name in links():
        return _bundled(name)
    path = located(name_or_path)
    if os.path.isfile(path):  # Path.is_file would raise for a name that is too long
        if path.suffix == ".toml":
            return drawn_links(link_model(path, uplink_scale=uplink_scale), 1)[0]
        return read_link(path, uplink_scale=uplink_scale)
    raise ValueError(
        f"a link must be a CSV or TOML file, or {_none_of_ours(name_or_path, links())}"
    )


@cache  # the runs of a sweep ask for the same few links
def _bundled(name: str) -> Link:
    return read_link(DATA / f"{name}.csv")


def pool(name_or_path: str | Path, *, uplink_scale: float | None = None) -> tuple[Link, ...]:
    """Return the links of a bundled pool or of a folder of CSV files, or 16 that a TOML file draws.

    The name or file of one link gives a pool of one. ``uplink_scale`` is as in ``load_link``.

    Raises ValueError that lists the valid names, or says which file is wrong.
    """
    name = str(name_or_path)
    if name in pools():
        members = [link for link in links() if _pool_of(link) == name]
        return tuple(load_link(link) for link in members)
    path = located(name_or_path)
    if os.path.isdir(path):
        files = sorted(path.glob("*.csv"))
        if not files:
            raise ValueError(f"a folder of links must hold CSV files, got none in {path}")
        return tuple(read_link(file, uplink_scale=uplink_scale) for file in files)
    if path.suffix == ".toml" and os.path.isfile(path):
        return drawn_links(link_model(path, uplink_scale=uplink_scale), NUM_LINKS)
    if name in links() or os.path.isfile(path):
        return (load_link(name_or_path, uplink_scale=uplink_scale),)
    ours = _none_of_ours(name_or_path, (*pools(), *links()))
    raise ValueError(
        f"links must be a CSV or TOML file, a folder of them, a bundled pool, or {ours}"
    )


def availability(path: str | Path) -> Mapping[str, AvailabilityTrace]:
    """Return the trace of each device in a CSV file, or of 64 devices that a TOML file draws.

    Raises ValueError that says what is wrong in the file.
    """
    path = located(path)
    if path.suffix == ".toml":
        return drawn_devices(availability_model(path), NUM_DEVICES)
    return read_availability(path)


def link_model(path: str | Path, *, uplink_scale: float | None = None) -> LinkModel:
    """Return the generator of links in a TOML file. Raises ValueError that says what is wrong."""
    model = read_model(path, uplink_scale=uplink_scale)
    if not isinstance(model, LinkModel):
        raise ValueError(f"{path}: kind must be link here, found availability")
    if model.uplink is None and uplink_scale is None:
        raise ValueError(
            f"{path}: the uplink was not measured; give uplink_scale to use that multiple of the "
            f"downlink instead"
        )
    return model


def availability_model(path: str | Path) -> DiurnalModel:
    """Return the generator of availability in a TOML file.

    Raises ValueError that says what is wrong in it.
    """
    model = read_model(path)
    if not isinstance(model, DiurnalModel):
        raise ValueError(f"{path}: kind must be availability here, found link")
    return model


def drawn_links(model: LinkModel, count: int, *, seed: int = 0) -> tuple[Link, ...]:
    """Return the links NAME-1 to NAME-count; a larger count adds links and changes none."""
    drawn = (model.link(np.random.default_rng([seed, k])) for k in range(1, count + 1))
    return tuple(
        Link(f"{link.name}-{k}", link.downlink, link.uplink)
        for k, link in enumerate(drawn, start=1)
    )


def drawn_devices(
    model: DiurnalModel, count: int, *, seed: int = 0
) -> Mapping[str, AvailabilityTrace]:
    """Return the traces of devices 1 to count; a larger count adds devices and changes none."""
    return {
        str(k): model.availability(np.random.default_rng([seed, k])) for k in range(1, count + 1)
    }


def _none_of_ours(named: str | Path, known: Sequence[str]) -> str:
    """Return the end of the message for a name that is neither a file nor a bundled link."""
    name = str(named)
    said = f"a link of a pool such as lte-1 (pools: {', '.join(pools())}), got {name!r}"
    is_path = os.sep in name or Path(name).suffix != ""
    return said + (not_there(named, known) if is_path else did_you_mean(name, known))


def _pool_of(link: str) -> str:
    return re.sub(r"-\d+$", "", link)
