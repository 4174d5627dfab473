"""Prepares the template of workers that train: importing this module imports all they need."""

from simulator.workers.template import preparing

with preparing():
    import devices.training.trainer  # noqa: F401
    import simulator.workers.trainers  # noqa: F401
