"""Texts that are shown or kept say what they must and no more."""

from __future__ import annotations

import pytest

from traces.text import without_folders


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("FileNotFoundError(2, '/home/ada/my data/x.csv')", "FileNotFoundError(2, 'x.csv')"),
        ("cannot read /home/ada/x.csv: no room", "cannot read x.csv: no room"),
        ("x (/a/b/c.yaml, line 3); see https://example.org/a/b", "x (c.yaml, line 3); see https://example.org/a/b"),
        ("data/own/x.csv holds 3 m/s and 1/2 GB/s", "data/own/x.csv holds 3 m/s and 1/2 GB/s"),
    ],
)  # fmt: skip
def test_an_absolute_path_in_a_text_is_cut_to_its_last_part(text: str, kept: str) -> None:
    assert without_folders(text) == kept
