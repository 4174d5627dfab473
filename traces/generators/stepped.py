"""Makes traces of equally long steps, as the generators of links draw them."""

from __future__ import annotations

import numpy as np

from traces.arrays import FloatArray
from traces.bandwidth import BandwidthTrace

MAX_STEPS = 1_000_000
"""Most steps of a drawn trace, so that the draw of one link takes seconds and some megabytes."""


def stepped(rate_bytes_per_s: FloatArray, step_s: float) -> BandwidthTrace:
    """Return the trace of rates (n,) in bytes per second that hold for ``step_s`` each."""
    num_steps = len(rate_bytes_per_s)
    return BandwidthTrace(
        step_s * np.arange(num_steps, dtype=np.float64), rate_bytes_per_s, num_steps * step_s
    )


def check_num_steps(duration_s: float, step_s: float) -> None:
    """Check that a trace has not too many steps. Raises ValueError otherwise."""
    if duration_s / step_s > MAX_STEPS:
        raise ValueError(
            f"a drawn link must have at most {MAX_STEPS:,} steps, "
            f"got {duration_s:g} s in steps of {step_s:g} s"
        )
