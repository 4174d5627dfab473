"""Turns plain data into one canonical text, to be hashed or compared."""

import json

_ENCODER = json.JSONEncoder(sort_keys=True)


def canonical(content: object) -> str:
    """Return plain data as JSON with sorted keys: equal content gives equal text.

    Hashes of run folders, conditions and caches are taken of it, so its bytes must never change.
    """
    return _ENCODER.encode(content)
