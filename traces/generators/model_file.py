"""Reads and writes fitted generators as TOML files, which may be named wherever a trace may be.

``fedclock traces fit`` writes them. ``kind`` is ``link`` or ``availability``, and the other keys
are the fields of ``LinkModel`` or ``DiurnalModel``, with rates in Mbit/s.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from traces.arrays import FloatArray
from traces.generators.diurnal import DiurnalModel
from traces.generators.link_model import LinkModel, RateChain
from traces.text import excerpt, is_number, read_text
from traces.units import BYTES_PER_S_PER_MBPS

LINK_KEYS = ("step_s", "duration_s", "spread", "downlink")
CHAIN_KEYS = ("mean_mbps", "memory", "transition", "rates")
AVAILABILITY_KEYS = ("num_days", "spread", "never", "always", "begins", "online_s", "offline_s")


def read_model(path: str | Path, *, uplink_scale: float | None = None) -> LinkModel | DiurnalModel:
    """Return the generator in a TOML file.

    An uplink that was not measured becomes ``uplink_scale`` times the downlink. Raises ValueError
    that names the file, the key, what was found and what is expected.
    """
    path = Path(path)
    try:
        values = tomllib.loads(read_text(path))
    except (tomllib.TOMLDecodeError, RecursionError) as error:
        raise ValueError(f"{path}: expected TOML, found damage ({error})") from None
    kind = values.pop("kind", None)
    if kind not in ("link", "availability"):
        raise ValueError(f"{path}: kind must be link or availability, found {_found(kind)}")
    try:
        return (
            _availability(values) if kind == "availability" else _link(path, values, uplink_scale)
        )
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def model_text(model: LinkModel | DiurnalModel, sources: Sequence[str]) -> str:
    """Return the TOML of a generator, which ``read_model`` reads back.

    Its comments name the ``sources`` of the fit and say what each key means.
    """
    fitted = f"# Fitted by fedclock traces fit to: {', '.join(sources)}"
    lines = [line if line.isprintable() else ascii(line) for line in fitted.splitlines()]
    if isinstance(model, DiurnalModel):
        return "\n".join([*lines, *_availability_lines(model)]) + "\n"
    lines += [
        'kind = "link"',
        f"step_s = {_number(model.step_s)}",
        f"duration_s = {_number(model.duration_s)}",
        "# log-normal spread of the mean rate between links",
        f"spread = {_number(model.spread)}",
    ]
    for name, chain in (("downlink", model.downlink), ("uplink", model.uplink)):
        if chain is not None:
            lines += ["", f"[{name}]", *_chain_lines(chain, model.step_s)]
    return "\n".join(lines) + "\n"


def _availability_lines(model: DiurnalModel) -> list[str]:
    return [
        'kind = "availability"',
        f"num_days = {model.num_days}",
        "# standard deviation between devices of the log-odds of being online",
        f"spread = {_number(model.spread)}",
        "# shares of devices that are offline or online throughout",
        f"never = {_number(model.never)}",
        f"always = {_number(model.always)}",
        "# how often an online span begins in each part of the day",
        f"begins = [{', '.join(map(_number, model.begins.tolist()))}]",
        f"# equally likely lengths in s; row b: of spans that begin in part b of "
        f"{len(model.online_s)} of the day (online), {len(model.offline_s)} (offline)",
        f"online_s = {_rows(model.online_s)}",
        f"offline_s = {_rows(model.offline_s)}",
    ]


def _chain_lines(chain: RateChain, step_s: float) -> list[str]:
    mean_mbps = chain.mean_bytes_per_s / BYTES_PER_S_PER_MBPS
    lines = [f"mean_mbps = {_number(mean_mbps)}"]
    for state, share in enumerate(chain.shares.tolist()):
        stays = float(chain.transition[state, state])
        dwell = f"{step_s / (1 - stays):.3g} s at a time" if stays < 1 else "for good"
        level = mean_mbps * float(chain.rates[state].mean())
        lines.append(f"# condition {state}: {share:.1%} of the time, {dwell}, {level:.4g} Mbit/s")
    return [
        *lines,
        "# from one step to the next a rate keeps its place within its condition so often",
        f"memory = {_number(chain.memory)}",
        "# row i: how likely each condition is a step after condition i",
        f"transition = {_rows(chain.transition)}",
        "# row i: equally likely rates in condition i, as multiples of the mean",
        f"rates = {_rows(chain.rates)}",
    ]


def _rows(table: FloatArray) -> str:
    rows = ["  [" + ", ".join(map(_number, row)) + "]," for row in table.tolist()]
    return "\n".join(["[", *rows, "]"])


def _number(value: float) -> str:
    text = f"{value:.12g}"
    return text if set(text) & set(".en") else text + ".0"


def _link(path: Path, values: Mapping[str, Any], uplink_scale: float | None) -> LinkModel:
    _check_keys(values, LINK_KEYS, ("uplink",))
    uplink = _chain("uplink", values["uplink"]) if "uplink" in values else None
    if uplink_scale is not None and not 0 < uplink_scale < math.inf:
        raise ValueError(f"uplink_scale must be a number above 0, got {uplink_scale}")
    return LinkModel(
        path.stem,
        _chain("downlink", values["downlink"]),
        uplink,
        step_s=_float(values, "step_s"),
        duration_s=_float(values, "duration_s"),
        spread=_float(values, "spread"),
        uplink_scale=uplink_scale,
    )


def _chain(name: str, values: object) -> RateChain:
    if not isinstance(values, Mapping):
        raise ValueError(f"{name} must be a table, found {_found(values)}")
    try:
        _check_keys(values, CHAIN_KEYS)
        return RateChain(
            _float(values, "mean_mbps") * BYTES_PER_S_PER_MBPS,
            _table(values, "transition"),
            _table(values, "rates"),
            _float(values, "memory"),
        )
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None


def _availability(values: Mapping[str, Any]) -> DiurnalModel:
    _check_keys(values, AVAILABILITY_KEYS)
    num_days = values["num_days"]
    if not isinstance(num_days, int) or isinstance(num_days, bool):
        raise ValueError(f"num_days must be a whole number, found {_found(num_days)}")
    return DiurnalModel(
        _table(values, "online_s"),
        _table(values, "offline_s"),
        _table({"begins": [values["begins"]]}, "begins")[0],
        _float(values, "spread"),
        _float(values, "never"),
        _float(values, "always"),
        num_days,
    )


def _check_keys(
    values: Mapping[str, Any], required: Sequence[str], optional: Sequence[str] = ()
) -> None:
    missing = [key for key in required if key not in values]
    unknown = [key for key in values if key not in (*required, *optional)]
    if missing or unknown:
        found = [f"no {key}" for key in missing] + [excerpt(key) for key in unknown]
        raise ValueError(f"expected the keys {', '.join(required)}, found {', '.join(found)}")


def _float(values: Mapping[str, Any], key: str) -> float:
    value = values[key]
    if not is_number(value):
        raise ValueError(f"{key} must be a finite number, found {_found(value)}")
    return float(value)


def _table(values: Mapping[str, Any], key: str) -> FloatArray:
    rows = values[key]
    is_table = isinstance(rows, list) and rows and all(isinstance(row, list) for row in rows)
    if not is_table or len({len(row) for row in rows}) > 1:
        raise ValueError(f"{key} must be rows of equally many numbers, found {_found(rows)}")
    for value in (value for row in rows for value in row):
        if not is_number(value):
            raise ValueError(f"{key} must hold finite numbers, found {_found(value)}")
    return np.array(rows, dtype=np.float64)


def _found(value: object) -> str:
    return "nothing" if value is None else excerpt(json.dumps(value, default=str))
