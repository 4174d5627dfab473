"""Gives the sizes of units, and the largest plausible values of a file in each unit."""

from __future__ import annotations

HOUR_S = 3600.0
DAY_S = 86400.0
BYTES_PER_S_PER_MBPS = 1e6 / 8
BYTES_PER_GB = 1e9
BYTES_PER_MIB = 2**20
BYTES_PER_GIB = 2**30

MAX_TIME_S = 1e9
"""Largest instant of a trace: about 32 years from its start."""
MAX_MBPS = 1e6
"""Largest rate of a link in Mbit/s, far above any link that exists."""
