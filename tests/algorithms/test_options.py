from dataclasses import dataclass
from typing import Literal

import pytest

from algorithms.options import check_options, rank_list_rule


@dataclass(frozen=True)
class Options:
    ranks: tuple[int, ...] = (1, 2)
    bits: Literal[4, 8] = 8


def test_good_options_pass() -> None:
    check_options(Options(), [rank_list_rule("ranks")])


@pytest.mark.parametrize("ranks", [(), (2, 2), (3, 1), (0, 1)])
def test_a_list_of_ranks_must_rise_from_at_least_1(ranks: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="ranks must be rising numbers of at least 1, got"):
        check_options(Options(ranks), [rank_list_rule("ranks")])


def test_a_choice_that_does_not_exist_is_named_with_those_that_do() -> None:
    with pytest.raises(ValueError, match="bits must be one of 4, 8, got 6"):
        check_options(Options(bits=6), [])  # type: ignore[arg-type]
