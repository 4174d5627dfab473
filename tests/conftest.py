"""What all tests share."""

import pytest
from hypothesis import settings

# Shared machines stall: how long an example takes says nothing. The same examples on every run.
settings.register_profile("fedclock", deadline=None, derandomize=True)
settings.load_profile("fedclock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="accept the event logs as they are"
    )
