"""What all tests share."""

from hypothesis import settings

# Shared machines stall: how long an example takes says nothing. The same examples on every run.
settings.register_profile("fedclock", deadline=None, derandomize=True)
settings.load_profile("fedclock")
