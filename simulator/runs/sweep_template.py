"""Imports what every job of a sweep needs, whether it trains or not."""

from simulator.workers.template import preparing

with preparing():
    import simulator.runs.sweep_jobs  # noqa: F401
