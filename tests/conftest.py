"""Fixtures and hooks that all tests share are defined here."""

from collections.abc import Iterator

import pytest
from hypothesis import settings

from tests.torture import SHARE

# There is no deadline, since shared machines stall. Derandomized, every run has the same examples.
settings.register_profile(
    "fedclock", deadline=None, derandomize=True, max_examples=100 if SHARE else 30
)
settings.load_profile("fedclock")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--update-golden", action="store_true", help="accept the event logs as they are"
    )


@pytest.fixture(autouse=True, scope="session")
def no_cache_of_the_users(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep tests from reading or filling the user's own cache of training results."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield
