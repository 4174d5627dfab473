"""This module holds a small file of each format, made by hand, and how tests read it."""

from __future__ import annotations

import json
import pickle
from collections.abc import Sequence
from pathlib import Path

from traces.bandwidth import Link
from traces.formats import read_link
from traces.importers import Imported, Recording, import_files

UCC_HEADER = (
    "Timestamp,Longitude,Latitude,Speed,Operatorname,CellID,NetworkMode,RSRP,RSRQ,SNR,CQI,RSSI,"
    "DL_bitrate,UL_bitrate,State,PINGAVG,PINGMIN,PINGMAX,PINGSTDEV,PINGLOSS,CELLHEX,NODEHEX,LACHEX,"
    "RAWCELLID,NRxRSRP,NRxRSRQ\n"
)


def ucc_row(stamp: str, down_kbps: object, state: str = "D") -> str:
    """Return a row of a 5G log; the rest of its 26 columns is what a phone at rest shows."""
    return (
        f"{stamp},-8.5,51.9,0,B,1,5G,-89,-12,1.0,10,-89,{down_kbps},77,{state},"
        "-,-,-,-,-,1,53B22,9CBA,87761409,-89.0,-13.0\n"
    )


DAY_MS = 86_400_000
FLASH = {
    "0": {
        "guid": "g0",
        "model": "CPH1801",
        "messages": (
            "2020-01-29 22:10:03\tbattery_charged_on\n2020-01-29 22:10:05\tWIFI\n"
            "2020-01-29 22:11:41\tscreen_lock\n2020-01-29 23:00:00\t85.0%\n"
            "2020-01-30 07:02:12\tscreen_unlock\n"
        ),
    }
}
CAPACITY = {432802: {"computation": 162.0, "communication": 5648.5}}
BEHAVE = {
    7: {
        "duration": 30,
        "inactive": [20, 100, 110],
        "finish_time": 86400,
        "active": [0, 90, 100],
        "model": "SM-J730GM",
    }
}

FILES: dict[str, bytes] = {
    "mahimahi": b"0\n0\n1\n999\n1000\n3000\n",
    "pensieve": b"2.0\t0.8\n7.0\t1.6\n9.5\t0\n",
    "lumos5g": b"0 812.5\n1 0\n2 95\n",
    "puffer": b"0.0 0.5\n2.0 1.0\n",
    "rates": b"0.57,Mbits/sec\n0.00,Mbits/sec\n12.4,Mbits/sec\n980,Kbits/sec\n",
    "ghent": (
        b"1453121790686 39287 51.0 3.73 2493100 1000\n1453121791686 40287 51.0 3.73 250000 1000\n"
        b"1453121792686 41287 51.0 3.73 0 0999\n"
    ),
    "hsdpa": (
        b"1289406399 549692 59.85 10.78 248069 1008\n1289406400 550772 59.85 10.78 191698 1080\n"
    ),
    "ucc": (
        UCC_HEADER
        + ucc_row("2020.02.14_09.38.22", 8000)
        + ucc_row("2020.02.14_09.38.23", 4000)
        + ucc_row("2020.02.14_09.38.24", 0)
    ).encode(),
    "csv": b"downlink_mbps,time_s\n8,100\n16,102\n",
    "fedscale-capacity": pickle.dumps(CAPACITY),
    "fedscale-behave": pickle.dumps(BEHAVE),
    "flash": json.dumps(FLASH).encode(),
    "stunner": f"u1 1 1402358400000 2 3600000 {DAY_MS - 3_600_000}\n".encode(),
    "ai-benchmark": (
        b"device,soc,year,memory_gb,cpu_float_score,ai_score\n"
        b"Phone A,Chip 1,2019,8,3744,76206\nPhone B,Chip 2,2018,6,,1200\n"
    ),
}
NAMES = {"mahimahi": "drive.down"}


def write(folder: Path, name: str, content: bytes | str) -> Path:
    path = folder / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def sample(folder: Path, format_name: str) -> Path:
    """Return the hand-made file of a format."""
    return write(folder, NAMES.get(format_name, "sample.dat"), FILES[format_name])


def load(folder: Path, format_name: str, content: bytes | str) -> Sequence[Imported]:
    """Return what a file with this content gives."""
    return import_files(format_name, [write(folder, NAMES.get(format_name, "mine.dat"), content)])


def back(folder: Path, recording: Imported) -> Link:
    """Return a recording read back from the file that it is written to."""
    assert isinstance(recording, Recording)
    path = write(folder, f"{recording.name}.csv", recording.text)
    return read_link(path, uplink_scale=1.0)
