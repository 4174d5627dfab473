"""Makes examples of sentiment from the movie reviews that VADER was rated on.

People rated each snippet from -4 (extremely negative) to 4 (Hutto and Gilbert, ICWSM 2014).
Those whose mean rating is within half a point of neutral are left out.
"""

from __future__ import annotations

import hashlib
import tempfile
from pathlib import Path

from devices.datasets.corpora import write_splits
from devices.fetching.archives import unpack

NUM_TESTED = 2_000
NEUTRAL = 0.5
"""The largest distance from 0 of a mean rating that counts as neither."""


def write_movies(package: Path, folder: Path) -> None:
    """Write the rated snippets of the package's source archive as training and test examples.

    Held out for testing are those whose texts have the lowest SHA-256. Columns: text, label, and
    score, the mean rating.
    """
    with tempfile.TemporaryDirectory() as scratch:
        (inner,) = unpack(package, Path(scratch), "hutto_ICWSM_2014.tar.gz")
        (file,) = unpack(inner, Path(scratch), "movieReviewSnippets_GroundTruth.txt")
        lines = file.read_text("latin-1").splitlines()
    rated: dict[str, float] = {}  # a snippet that occurs twice counts once
    for line in lines:
        _, rating, text = line.split("\t")
        rated.setdefault(" ".join(text.split()), float(rating))
    kept = [text for text, rating in rated.items() if abs(rating) > NEUTRAL]
    by_hash = sorted(kept, key=lambda text: hashlib.sha256(text.encode()).digest())
    tested = set(by_hash[:NUM_TESTED])
    examples = [_example(text, rated[text]) for text in kept]
    write_splits(folder, examples, [text in tested for text in kept])


def _example(text: str, rating: float) -> dict[str, str]:
    label = "positive" if rating > 0 else "negative"
    return {"text": text, "label": label, "score": f"{rating:.2f}"}
