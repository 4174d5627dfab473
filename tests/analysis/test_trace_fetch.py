"""``fedclock traces fetch``, against a server on this machine that does what servers do wrong."""

from __future__ import annotations

import hashlib
import io
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from typer.testing import CliRunner

from analysis.commands.traces import app
from analysis.traces import public
from devices.fetching.archives import unpack
from devices.fetching.packages import FetchError
from devices.fetching.web import WebFile
from simulator.config.problems import UserError
from tests.traces.trace_files import FILES
from traces.formats import read_link
from traces.importers import FORMATS
from traces.public_sets import PUBLIC_SETS, PublicSet

LOG = FILES["ghent"]


class Server(ThreadingHTTPServer):
    """This server has some files; ``asked`` are the paths that it was asked for."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.files: dict[str, bytes] = {}
        self.redirects: dict[str, str] = {}
        # By path: the length that is announced in place of the file's, or None to announce none.
        self.announced: dict[str, int | None] = {}
        self.asked: list[str] = []

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        if self.path in self.server.redirects:
            self.send_response(302)
            self.send_header("Location", self.server.redirects[self.path])
            self.end_headers()
            return
        content = self.server.files.get(self.path)
        self.send_response(404 if content is None else 200)
        content = content or b""
        length = self.server.announced.get(self.path, len(content))
        if length is not None:
            self.send_header("Content-Length", str(length))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        """Log nothing."""


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setenv("COLUMNS", "120")
    for name in ("http_proxy", "https_proxy", "all_proxy"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)
    monkeypatch.chdir(tmp_path)
    with Server() as running:
        threading.Thread(target=running.serve_forever, args=(0.05,), daemon=True).start()
        yield running
        running.shutdown()


def sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def served(server: Server, path: str, content: bytes, *, max_bytes: int = 10_000) -> WebFile:
    server.files[path] = content
    return WebFile(server.address + path, sha256(content), max_bytes)


def zipped(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def tarred(members: dict[str, bytes | tarfile.TarInfo]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as archive:
        for name, content in members.items():
            info = content if isinstance(content, tarfile.TarInfo) else tarfile.TarInfo(name)
            if isinstance(content, bytes):
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))
            else:
                archive.addfile(info)
    return buffer.getvalue()


def link_to(target: str, kind: bytes = tarfile.SYMTYPE) -> tarfile.TarInfo:
    info = tarfile.TarInfo("logs/a.log")
    info.type, info.linkname = kind, target
    return info


def test_a_file_is_downloaded_and_checked(server: Server, tmp_path: Path) -> None:
    file = served(server, "/logs/a.log", LOG).download(tmp_path)
    assert (file.name, file.read_bytes()) == ("a.log", LOG)


def test_a_redirect_is_followed_to_the_web_and_nowhere_else(server: Server, tmp_path: Path) -> None:
    wanted = served(server, "/new", LOG)
    server.redirects["/old"] = server.address + "/new"
    assert replace(wanted, address=server.address + "/old").download(tmp_path).read_bytes() == LOG
    for place in ("file:///etc/hostname", "ftp://127.0.0.1/x"):
        server.redirects["/away"] = place
        with pytest.raises(
            FetchError, match=f"(must lead to an address of https|Redirection to url).*{place}"
        ):
            replace(wanted, address=server.address + "/away").download(tmp_path)
    server.redirects["/round"] = server.address + "/round"
    with pytest.raises(FetchError, match="cannot be downloaded: the server answers 302"):
        replace(wanted, address=server.address + "/round").download(tmp_path)


def test_what_is_not_the_file_is_refused_and_leaves_nothing(server: Server, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    good = served(server, "/good", LOG)
    server.files |= {"/cut": LOG[:10], "/large": LOG * 99, "/endless": LOG * 99}
    server.announced = {"/cut": len(LOG), "/endless": None}
    small = replace(good, max_bytes=len(LOG))
    for file, words in (
        (replace(good, sha256="0" * 64), f"must have sha256 {'0' * 64}, got {good.sha256}"),
        (replace(good, address=f"{server.address}/cut"), "was cut short after 10; try again"),
        (replace(small, address=f"{server.address}/large"), "must be at most .* sends 1"),
        (replace(small, address=f"{server.address}/endless"), "must be at most .* sends more than"),
        (replace(good, address=f"{server.address}/none"), "the server answers 404 Not Found"),
        (replace(good, address="http://127.0.0.1:1/x"), "cannot be downloaded: Connection refused"),
        (replace(good, address="file:///etc/hostname"), "must be one of http or https, got file"),
        (replace(good, address="http://"), "cannot be downloaded: "),
    ):
        with pytest.raises(FetchError, match=words):
            file.download(target)
        assert not list(target.iterdir())


GOOD = {"logs/a.log": LOG, "logs/readme.txt": b"x", "__MACOSX/logs/._a.log": b"y", "b.log": LOG}


@pytest.mark.parametrize("name", ["x.zip", "x.tar.gz"])
def test_the_wanted_files_of_an_archive_are_unpacked(tmp_path: Path, name: str) -> None:
    archive = tmp_path / name
    archive.write_bytes(zipped(GOOD) if name == "x.zip" else tarred(dict(GOOD)))
    files = unpack(archive, tmp_path / "out", "*.log")
    assert [str(f.relative_to(tmp_path / "out")) for f in files] == ["logs/a.log", "b.log"]
    assert {f.read_bytes() for f in files} == {LOG}


EVIL: dict[str, tuple[bytes, str]] = {
    "up.zip": (zipped({"a.log": LOG, "../b.log": LOG}), "inside its folder, found '../b.log'"),
    "root.zip": (zipped({"/tmp/b.log": LOG}), "inside its folder, found '/tmp/b.log'"),
    "drive.zip": (zipped({"C:b.log": LOG}), "inside its folder, found 'C:b.log'"),
    "up.tar.gz": (tarred({"a.log": LOG, "x/../../b.log": LOG}), "inside its folder, found 'x/../"),
    "root.tar.gz": (tarred({"/tmp/b.log": LOG}), "inside its folder, found '/tmp/b.log'"),
    "link.tar.gz": (tarred({"a.log": LOG, "x": link_to("/etc")}), "files alone, .*'logs/a.log'"),
    "hard.tar.gz": (tarred({"x": link_to("../x", tarfile.LNKTYPE)}), "files alone, no link"),
    "device.tar.gz": (tarred({"x": link_to("", tarfile.CHRTYPE)}), "files alone, no link or dev"),
    "bomb.zip": (zipped({"a.log": b"0" * 5_000_000}), "no more than is allowed"),
    "bomb.tar.gz": (tarred({"a.log": b"0" * 5_000_000}), "no more than is allowed"),
    "cut.zip": (zipped(GOOD)[:-30], "be whole, found"),
    "cut.tar.gz": (tarred(dict(GOOD))[:-30], "be whole, found"),
    "no.tar.gz": (b"no archive", "be whole, found"),
    "no.tgz": (b"", "be whole, found"),
}


@pytest.mark.parametrize("name", EVIL)
def test_an_evil_archive_writes_no_file_outside_nor_more_than_allowed(
    tmp_path: Path, name: str
) -> None:
    content, words = EVIL[name]
    inner = tmp_path / "inner"
    inner.mkdir()
    (inner / name).write_bytes(content)
    with pytest.raises(FetchError, match=f"the archive {name} must.* {words}"):
        unpack(inner / name, inner / "out", "*.log", max_bytes=1_000_000)
    assert [path.name for path in tmp_path.iterdir()] == ["inner"]
    written = [path for path in (inner / "out").rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in written) <= 1_000_000


def fetch(*arguments: str) -> str:
    result = CliRunner().invoke(app, ["fetch", *arguments])
    if result.exception is not None:
        raise result.exception
    return result.output


@pytest.fixture
def ghent(server: Server, monkeypatch: pytest.MonkeyPatch) -> PublicSet:
    """Return a public set of two logs in an archive, which the server has."""
    content = zipped({"logs/report_foot_1.log": LOG, "logs/report_bus_1.log": LOG, "x.txt": b"x"})
    server.files["/logs_all.zip"] = content
    one = replace(
        PUBLIC_SETS["ghent-4g"],
        address=f"{server.address}/logs_all.zip",
        sha256=sha256(content),
        max_bytes=len(content),
    )
    monkeypatch.setattr(public, "PUBLIC_SETS", {"ghent-4g": one})
    return one


def test_a_public_set_is_fetched_once_and_imported(server: Server, ghent: PublicSet) -> None:
    output = fetch("ghent-4g")
    assert ghent.address in output
    assert "none stated" in output  # the set states no licence
    link = read_link("imported/report_foot_1.csv", uplink_scale=1)
    assert link.downlink.period_s == pytest.approx(2.999)
    assert sorted(path.name for path in Path("imported").iterdir()) == [
        "report_bus_1.csv",
        "report_foot_1.csv",
    ]
    server.files.clear()
    fetch("ghent-4g", "--output", "again", "--uplink-scale", "0.5")
    assert server.asked == ["/logs_all.zip"]
    assert read_link("again/report_bus_1.csv").uplink.mean_bytes_per_s > 0
    with pytest.raises(UserError, match=r"imported already holds report_bus_1\.csv"):
        fetch("ghent-4g")


def test_a_set_without_a_hash_needs_one_from_the_user(
    ghent: PublicSet, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = ghent.sha256
    assert known is not None
    with pytest.raises(FetchError, match="--sha256 must be left out or be that of ghent-4g"):
        fetch("ghent-4g", "--sha256", "0" * 64)
    monkeypatch.setattr(public, "PUBLIC_SETS", {"ghent-4g": replace(ghent, sha256=None)})
    with pytest.raises(FetchError, match=r"SHA-256 of ghent-4g is not known: .* give --sha256"):
        fetch("ghent-4g")
    with pytest.raises(FetchError, match="--sha256 must be 64 hexadecimal digits, got 'abc'"):
        fetch("ghent-4g", "--sha256", "abc")
    assert not Path("imported").exists()
    fetch("ghent-4g", "--sha256", known.upper())
    assert Path("imported/report_bus_1.csv").is_file()


def test_a_set_that_went_wrong_leaves_nothing(
    server: Server, ghent: PublicSet, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for other in (replace(ghent, pattern="*.csv"), replace(ghent, sha256="1" * 64)):
        monkeypatch.setattr(public, "PUBLIC_SETS", {"ghent-4g": other})
        with pytest.raises(FetchError):
            fetch("ghent-4g")
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]
    assert not Path("imported").exists()
    with pytest.raises(FetchError, match=r"public set must be one of .*; did you mean ghent-4g"):
        fetch("gent-4g")


def test_each_set_has_address_licence_format_and_a_hash_or_none() -> None:
    shown = fetch()
    for name, one in PUBLIC_SETS.items():
        assert name in shown
        assert one.format in FORMATS
        assert one.address.startswith("https://")
        assert one.licence
        assert one.sha256 is None or len(bytes.fromhex(one.sha256)) == 32
        assert one.stated
        assert one.max_bytes <= 100_000_000
    assert shown.count("sha256 unknown") == sum(s.sha256 is None for s in PUBLIC_SETS.values())
