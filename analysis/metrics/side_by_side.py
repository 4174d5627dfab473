"""Makes the studies of several blocks of runs, each with a target and a baseline of its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from analysis.metrics.study import Study
from analysis.runs.blocks import Block
from analysis.runs.files import RunError
from analysis.runs.frames import RunSet

Studies = Mapping[Block, Study]
"""The study of each block, in order."""

MakeStudy = Callable[[RunSet, str | None], Study]
"""A function that makes the study of runs, against the named baseline or one that it chooses."""


def studies_of(
    blocks: Mapping[Block, RunSet], make: MakeStudy, baseline: str | None = None
) -> Studies:
    """Return the study of each block; the baseline is that of the blocks that have it.

    Raises RunError where no block has it, or a study cannot be made.
    """
    made: dict[Block, Study] = {}
    refused: list[RunError] = []
    for block, runs in blocks.items():
        try:
            made[block] = make(runs, baseline)
        except RunError as error:
            if baseline is None or len(blocks) == 1:
                raise
            refused.append(error)
            made[block] = make(runs, None)
    if len(refused) == len(blocks):
        raise refused[0]
    return made
