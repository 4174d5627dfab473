"""What every worker imports, for the process that they are copies of."""

import gc

gc.disable()  # a sixth of the time, and what is imported stays

import devices.training.trainer  # noqa: E402, F401
import simulator.workers.trainers  # noqa: E402, F401

gc.freeze()  # to look at an object in vain is to write to memory that workers share
gc.enable()
