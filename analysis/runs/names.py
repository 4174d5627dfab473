"""Names the variants for readers: by the config's titles, or by the strategies' own."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from algorithms.registry import STRATEGIES

COLUMNS = ("label", "baseline")
"""Columns of a figure's frame that hold variants."""


def reader_names(variants: Iterable[tuple[str, str, str | None]]) -> dict[str, str]:
    """Return the name of each variant for readers, from its name, its strategy and its title.

    A title is the name, where the config gives one. Without one, a label that is the strategy's
    kind has the strategy's short name, and any other stands as it is. What a variant has beside its
    label (``rank=8``) stays behind it. Names that fall together have the variant in brackets.
    """
    names = {variant: _name(variant, kind, title) for variant, kind, title in variants}
    count = Counter(names.values())
    apart = {
        variant: f"{name} ({variant})" if count[name] > 1 and name != variant else name
        for variant, name in names.items()
    }
    return apart if len(set(apart.values())) == len(names) else {one: one for one in names}


def with_names(frame: pd.DataFrame, names: Mapping[str, str]) -> pd.DataFrame:
    """Return a figure's frame with the names for readers in place of its variants."""
    shown = {
        column: [names.get(str(one), str(one)) for one in frame[column]]
        for column in COLUMNS
        if column in frame
    }
    return frame.assign(**shown)


def _name(variant: str, kind: str, title: str | None) -> str:
    """Return ``FedLoRA rank=8`` of ``fedlora rank=8``, by the start of the strategy's own title."""
    label, space, settings = variant.partition(" ")
    if title is not None:
        return title + space + settings
    if label != kind or kind not in STRATEGIES:
        return variant
    return STRATEGIES[kind].title.partition(":")[0].partition(" (")[0] + space + settings
