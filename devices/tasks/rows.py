"""Holds rows of unequal lengths, such as the tokens of texts, in two arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import numpy as np

from devices.tasks.task import Encoded, Offer
from traces.arrays import IntArray

Array = np.ndarray[Any, Any]


class Rows(Sequence[IntArray]):
    """Rows hold whole numbers in two arrays; row k is ``values[offsets[k]:offsets[k + 1]]``."""

    def __init__(self, values: IntArray, offsets: IntArray) -> None:
        self.values, self.offsets = values, offsets

    @classmethod
    def of(cls, rows: Sequence[IntArray], dtype: type[np.integer[Any]]) -> Rows:
        """Join rows of numbers that ``dtype`` can hold."""
        offsets = np.zeros(len(rows) + 1, dtype=np.int64)
        np.cumsum([len(row) for row in rows], out=offsets[1:])
        values = np.concatenate([np.zeros(0, dtype), *rows], dtype=dtype, casting="same_kind")
        return cls(values, offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @overload
    def __getitem__(self, index: int) -> IntArray: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[IntArray]: ...
    def __getitem__(self, index: int | slice) -> IntArray | Sequence[IntArray]:
        if isinstance(index, slice):
            return [self[k] for k in range(*index.indices(len(self)))]
        place = range(len(self))[index]
        return self.values[self.offsets[place] : self.offsets[place + 1]]

    @property
    def lengths(self) -> IntArray:
        """Return the length of each row, (n,)."""
        return np.diff(self.offsets)


def to_arrays(encoded: Encoded) -> dict[str, Array]:
    """Return encoded examples as named arrays, which ``from_arrays`` turns back."""
    ids = Rows.of(encoded.ids, np.int32)
    arrays: dict[str, Array] = {"ids": ids.values, "offsets": ids.offsets}
    if isinstance(encoded.targets, np.ndarray):
        arrays["targets"] = encoded.targets
    else:
        arrays["token_targets"] = Rows.of(encoded.targets, np.int32).values
    if encoded.row_length:
        arrays["row_length"] = np.array(encoded.row_length)
    if encoded.token_types is not None:
        arrays["token_types"] = Rows.of(encoded.token_types, np.int8).values
    if encoded.offers:
        answers = [answer for offer in encoded.offers for answer in offer.answers]
        offered = Rows.of([ids for ids, _ in answers], np.int32)
        arrays |= {
            "offers": np.cumsum([0, *(len(offer.answers) for offer in encoded.offers)]),
            "right": np.array([offer.right for offer in encoded.offers], dtype=np.int64),
            "offered_ids": offered.values,
            "offered_offsets": offered.offsets,
            "offered_targets": Rows.of([targets for _, targets in answers], np.int32).values,
        }
    return arrays


def from_arrays(arrays: dict[str, Array]) -> Encoded:
    """Return the examples in these arrays. Raises KeyError or ValueError on any others."""
    offsets = arrays["offsets"]
    ids = _rows(arrays["ids"], offsets)
    one_each = arrays.get("targets")
    if one_each is not None and len(one_each) != len(ids):
        raise ValueError(f"{len(ids)} targets are expected, found {len(one_each)}")
    types, offers = arrays.get("token_types"), arrays.get("offers")
    return Encoded(
        ids,
        _rows(arrays["token_targets"], offsets) if one_each is None else one_each,
        None if types is None else _rows(types, offsets),
        () if offers is None else _offers(arrays, offers.tolist()),
        int(arrays.get("row_length", 0)),
    )


def _offers(arrays: dict[str, Array], ends: Sequence[int]) -> tuple[Offer, ...]:
    offsets = arrays["offered_offsets"]
    ids, targets = (_rows(arrays[f"offered_{name}"], offsets) for name in ("ids", "targets"))
    answers = list(zip(ids, targets, strict=True))
    groups = zip(ends[:-1], ends[1:], arrays["right"].tolist(), strict=True)
    return tuple(Offer(tuple(answers[first:end]), right) for first, end, right in groups)


def _rows(values: Array, offsets: Array) -> Rows:
    if offsets[0] != 0 or offsets[-1] != len(values) or (np.diff(offsets) < 0).any():
        raise ValueError("offsets are expected that rise from 0 to the number of values")
    return Rows(values, offsets)
