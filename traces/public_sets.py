"""Lists public sets of traces that anybody may download, and that FedClock may not bring along.

A set is known by its address and by the SHA-256 of the file there, each with the place that states
it. Where no hash is known, whoever fetches the set gives one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class PublicSet:
    """A public set is one file of the web that holds traces of one format, perhaps in an archive.

    ``pattern`` says which files of an archive are traces, by the end of their path. ``stated`` says
    who states the hash, or why there is none.
    """

    title: str
    format: str
    address: str
    licence: str
    sha256: str | None
    stated: str
    max_bytes: int
    pattern: str = "*"


_FEDSCALE = (
    "https://raw.githubusercontent.com/SymbioticLab/FedScale/master/benchmark/dataset/data/"
    "device_info/"
)
_MAHIMAHI = (
    "https://raw.githubusercontent.com/ravinet/mahimahi/"
    "ae477d437615b972217498ba52be07db17a15618/traces/"
)
_NYU = (
    "https://raw.githubusercontent.com/NYU-METS/Main/d1ea684df29a4381d34e92e0d8df2d14588bebd0/"
    "Sample_Traces/"
)
_NOBODY = "nobody whom we know of states one"

PUBLIC_SETS: Mapping[str, PublicSet] = MappingProxyType(
    {
        "ucc-5g": PublicSet(
            "UCC 5G: downloads of a phone in Irish 5G and 4G, at rest and driving",
            "ucc",
            "https://raw.githubusercontent.com/uccmisl/5Gdataset/"
            "ba876f77e9330ebd227b2497cf4f90b37d624abc/5G-production-dataset.zip",
            "GPL-3.0",
            "abc729d696b5e0ba34a9c6ed35a851f2868d2b5071be5efb8a49691c23bb1a9b",
            "a public project that checks the archive of release 1.0.0 by it",
            20_000_000,
            "Download/*/*.csv",
        ),
        "mahimahi-tmobile-lte-short": PublicSet(
            "mahimahi: packets that T-Mobile's LTE could deliver in 2016",
            "mahimahi",
            f"{_MAHIMAHI}TMobile-LTE-short.down",
            "GPL-3.0-or-later",
            "4f33dce8dd811b5702272af64aaf64d3913719919abd776edf1e0f7c0965da43",
            "a public project that replays the file",
            20_000_000,
        ),
        "fedscale-capacity": PublicSet(
            "FedScale: inference time and rate of 500,000 phones",
            "fedscale-capacity",
            f"{_FEDSCALE}client_device_capacity",
            "Apache-2.0 (the repository)",
            "477f61049443987318fc5667cafa059b3b420eb0e03ccb5ceb3262d20e059e53",
            "a public project whose script downloads the file",
            39_369_071,
        ),
        "fedscale-behave": PublicSet(
            "FedScale: when 107,749 phones charge, over a week",
            "fedscale-behave",
            f"{_FEDSCALE}client_behave_trace",
            "Apache-2.0 (the repository)",
            "d0b6f81a01f0ea5f7ec432583f5afe93b1e72424db4c1affa88c484f15901662",
            "a public project whose script downloads the file",
            25_640_150,
        ),
        "ghent-4g": PublicSet(
            "Ghent: LTE on foot, by bicycle, bus, tram, train and car",
            "ghent",
            "https://users.ugent.be/~jvdrhoof/dataset-4g/logs/logs_all.zip",
            "none stated",
            None,
            _NOBODY,
            20_000_000,
            "*.log",
        ),
        **{
            name: PublicSet(
                f"NYU-METS: LTE in New York, {where}",
                "rates",
                f"{_NYU}{file}",
                "ODbL 1.0",
                None,
                _NOBODY,
                5_000_000,
            )
            for name, where, file in (
                ("nyu-mets-7-train", "subway line 7", "7Train1.csv"),
                ("nyu-mets-7-train-2", "subway line 7, another ride", "7Train2.csv"),
            )
        },
    }
)
