"""Imports what every worker that trains needs."""

from simulator.workers.template import preparing

with preparing():
    import devices.training.trainer  # noqa: F401
    import simulator.workers.trainers  # noqa: F401
