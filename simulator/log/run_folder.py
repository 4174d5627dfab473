"""Writes the run folder: events while the run goes on, tables and manifest at its end."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError

from simulator.config.plain_yaml import dump_yaml
from simulator.log.block import Block
from simulator.log.cohort_records import concatenated
from simulator.log.disk import flush_to_disk, replace_table, write_atomically
from simulator.log.manifest import (
    FORMAT,
    BusyFolderError,
    FinishedMeanwhileError,
    RunFolderError,
    Status,
    check_same_config,
    file_hashes,
    lost_files,
    read_manifest,
)
from simulator.log.records import (
    ClientRecord,
    ClientTable,
    Columns,
    DeviceRecord,
    Event,
    RoundRecord,
)
from simulator.log.round_table import RoundTable
from simulator.log.tables import TableFile, block_lines, column, event_line, write_columns

CHECKPOINT = "checkpoint"
ROWS_AT_ONCE = 50_000


class RunFolder:
    """A run folder writes one run: events line by line, tables and manifest at the end."""

    def __init__(self, path: Path, config: Mapping[str, Any], manifest: Mapping[str, Any]) -> None:
        """Make the folder, or begin anew in one of the same config.

        Raises RunFolderError where it holds another config or cannot be written, and
        FinishedMeanwhileError where its run is done: whoever looked before did so without the lock.
        """
        self.path = path
        self._manifest = dict(manifest)
        self._rounds: list[RoundTable] = []
        self._clients: list[ClientTable] = []  # rows that are not yet in the file
        check_same_config(path, config)
        try:
            path.mkdir(parents=True, exist_ok=True)
            self._lock = lock_folder(path)
        except OSError as error:
            raise self._unwritable(error) from None
        try:
            refuse_links(path)
            there = read_manifest(path)
            if there.get("status") == "done" and not lost_files(path, there):
                raise FinishedMeanwhileError(f"the run in {path} was finished by another process")
            _clean_up(path)  # removes what a process that was killed has left
            write_atomically(path / "config.yaml", dump_yaml(dict(config)))
            self._write_manifest("running")
            self._events: TextIO = (path / "events.jsonl").open("w", encoding="utf-8")
            self._client_rows = TableFile(path / "clients.parquet", ClientRecord)
        except OSError as error:
            _clean_up(path)
            os.close(self._lock)
            raise self._unwritable(error) from None
        except RunFolderError:
            os.close(self._lock)
            raise

    @property
    def checkpoint(self) -> Path:
        """Return the folder that keeps training results until the run is done."""
        return self.path / CHECKPOINT

    def event(self, event: Event) -> None:
        try:
            self._events.write(event_line(event))
        except OSError as error:
            raise self._unwritable(error) from None

    def block(self, block: Block) -> None:
        with self.writing():
            self._events.writelines(block_lines(block.pieces))
            self._events.flush()
        self._rounds.append(block.rounds)
        self._clients.append(block.clients)
        if sum(map(len, self._clients)) >= ROWS_AT_ONCE:
            self._flush_clients()

    def _flush_clients(self) -> None:
        if self._clients:
            with self.writing():
                self._client_rows.write(concatenated(self._clients).columns)
        self._clients = []

    def fleet(self, columns: Columns) -> None:
        """Write the table of the devices, given as the columns of their records."""
        with self.writing():
            write_columns(self.path / "devices.parquet", DeviceRecord, columns)

    def faults(self, schedules: Mapping[str, Any]) -> None:
        """Write every fault that began while the run lasted, whether or not it met any work."""
        with self.writing():
            write_atomically(self.path / "faults.json", json.dumps(schedules, indent=2) + "\n")

    def of_devices(self, columns: Mapping[str, Sequence[float]]) -> None:
        """Add to each device what the end of the run tells of it, as in ``expected_accuracy``."""
        file = self.path / "devices.parquet"
        with self.writing():
            with pq.ParquetFile(file) as written:  # pq.read_table would import pandas
                table = written.read()
            for name, values in columns.items():
                table = table.append_column(name, column(values, pa.float64()))
            replace_table(file, table)

    def close(self, status: Status, outcome: Mapping[str, Any]) -> None:
        """Write the tables, then the manifest: its status is the last thing to change.

        Raises RunFolderError where they cannot be written; the run is then not done.
        """
        try:
            with self.writing():
                self._finish(status, outcome)
        except RunFolderError:
            self._client_rows.abandon()
            _clean_up(self.path)
            raise
        finally:
            os.close(self._lock)

    def _finish(self, status: Status, outcome: Mapping[str, Any]) -> None:
        self._events.close()
        rounds = RoundTable.joined(self._rounds)
        metrics = list(rounds.metrics)
        columns = {**rounds.columns, **{one.name: rounds.metrics[one] for one in metrics}}
        write_columns(self.path / "rounds.parquet", RoundRecord, columns, metrics)
        self._flush_clients()
        self._client_rows.close()
        self._manifest.update(outcome)
        if status == "done":  # the status must be written only after the files are on the disk
            for file in filter(Path.is_file, self.path.rglob("*")):
                flush_to_disk(file)
            self._manifest["files"] = file_hashes(self.path)
        self._write_manifest(status)
        flush_to_disk(self.path)  # the folder's entries, before the checkpoint is removed
        if status == "done":
            remove_checkpoint(self.path)

    @contextmanager
    def writing(self) -> Iterator[None]:
        """Say in words what it means that a file of the folder cannot be written."""
        try:
            yield
        except (OSError, SafetensorError) as error:
            raise self._unwritable(error) from None

    def _unwritable(self, error: Exception) -> RunFolderError:
        return RunFolderError(
            f"a run folder must be writable, got {self.path}: {error}; once it "
            f"is, the same command goes on from here"
        )

    def _write_manifest(self, status: Status) -> None:
        manifest = {"format": FORMAT, "status": status, **self._manifest}
        write_atomically(self.path / "manifest.json", json.dumps(manifest, indent=2) + "\n")


def lock_folder(path: Path) -> int:
    """Lock the folder and return what closes the lock. Raises BusyFolderError if another has it."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(descriptor)
        raise BusyFolderError(
            f"a run folder must be written by one process at a time, but another one is at work in "
            f"{path}"
        ) from None
    return descriptor


def is_being_written(path: Path) -> bool:
    """Return whether a process is at work in the folder."""
    try:
        os.close(lock_folder(path))
    except BusyFolderError:
        return True
    return False


def refuse_links(path: Path) -> None:
    """Raise RunFolderError where writing to the folder would write elsewhere, or wait forever."""
    with os.scandir(path) as entries:
        for entry in sorted(entries, key=lambda entry: entry.name):
            if entry.is_dir(follow_symlinks=False):
                refuse_links(Path(entry.path))
            elif not entry.is_file(follow_symlinks=False):
                raise RunFolderError(
                    f"a run folder must hold its files itself, got {entry.path}, which is a link "
                    f"or a special file; remove it or choose another --output"
                )


def refresh(path: Path, read_alone: Mapping[str, Any]) -> None:
    """Write into a finished run's manifest what only its readers use, where that has changed.

    Raises RunFolderError where the folder cannot be written, or another process is at work there.
    """
    if read_manifest(path).get("read_alone") == read_alone:
        return
    try:
        lock = lock_folder(path)
        try:
            manifest = {**read_manifest(path), "read_alone": dict(read_alone)}
            write_atomically(path / "manifest.json", json.dumps(manifest, indent=2) + "\n")
        finally:
            os.close(lock)
    except OSError as error:
        raise RunFolderError(
            f"the titles and targets of the finished run in {path} have changed, so its "
            f"manifest.json must be writable, but: {error}"
        ) from None


def remove_checkpoint(path: Path) -> None:
    """Remove the checkpoint of a finished run, which a killed process may have left."""
    shutil.rmtree(path / CHECKPOINT, ignore_errors=True)


def _clean_up(path: Path) -> None:
    """Keep only whole lines and whole files of what a full disk or a kill has cut off."""
    for partial in path.glob("*.partial"):
        partial.unlink(missing_ok=True)
    events = path / "events.jsonl"
    if events.exists():
        os.truncate(events, events.read_bytes().rfind(b"\n") + 1)
