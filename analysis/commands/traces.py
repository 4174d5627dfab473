"""Defines the commands ``fedclock traces``: import, fetch, fit, show and plot."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from analysis.commands.options import say
from analysis.commands.voice import chatter, results
from simulator.config.problems import UserError
from simulator.log.disk import writing_into

app = typer.Typer(
    no_args_is_help=True,
    help="Traces: import other formats, fetch public sets, fit generators, show and plot them.",
)

Names = Annotated[
    list[str],
    typer.Argument(
        metavar="FILE|NAME...", help="CSV and TOML files, folders of CSV, bundled names"
    ),
]
Seed = Annotated[int, typer.Option(min=0, help="seed of what a generator in a TOML file draws")]
Force = Annotated[bool, typer.Option("--force", help="overwrite files that are there")]
Output = Annotated[Path, typer.Option("--output", "-o", help="folder for the CSV files")]
UplinkScale = Annotated[
    float | None,
    typer.Option(help="uplink as a multiple of the downlink, where it was not measured"),
]


@app.command("import")
def import_command(
    format_name: Annotated[
        str, typer.Argument(metavar="FORMAT", help="a name from the table of formats below")
    ],
    files: Annotated[list[Path], typer.Argument(metavar="FILE...", help="files of that format")],
    output: Output = Path("imported"),
    uplink_scale: UplinkScale = None,
    force: Force = False,
) -> None:
    """Turn traces of other formats into CSV files of ours, all of them or none.

    FORMAT: mahimahi, pensieve, lumos5g, puffer, rates, ghent, hsdpa, ucc, csv, parquet (links);
    fedscale-behave, flash, stunner (availability); fedscale-capacity, ai-benchmark (devices).
    """
    from analysis.traces import files as trace_files
    from analysis.traces import tables as trace_tables
    from traces.importers import import_files

    with _user_errors():
        if uplink_scale is not None and not 0 < uplink_scale < 1e6:
            raise ValueError(f"--uplink-scale must be a number above 0, got {uplink_scale:g}")
        imported = import_files(format_name, files, formats=trace_files.IMPORTS)
        if uplink_scale is not None:
            imported = trace_files.with_uplinks(imported, uplink_scale)
        texts = {f"{one.name}.csv": one.text.encode() for one in imported}
        written = {(output / name).resolve() for name in texts}
        own = [path for path in files if path.resolve() in written]
        if own:
            raise ValueError(
                f"an import must not overwrite what it reads, got {own[0]}; "
                f"name another folder with --output"
            )
        publish(texts, output, force=force)
    console = results()
    for line in trace_tables.import_report(imported, output):
        say(console, line)


@app.command("fetch")
def fetch_command(
    name: Annotated[
        str | None, typer.Argument(help="name of a public set; without one, all sets are listed")
    ] = None,
    sha256: Annotated[
        str | None, typer.Option(help="SHA-256 of the file, for a set whose hash is not known")
    ] = None,
    output: Output = Path("imported"),
    uplink_scale: UplinkScale = None,
    force: Force = False,
) -> None:
    """Download a public set of traces by name, check its SHA-256, and import it.

    The file is kept in your cache. Each set has a licence of its own, which the table names.
    """
    from analysis.traces import public as public_traces

    console = results()
    if name is None:
        console.print(public_traces.public_table())
        return
    public = public_traces.public_set(name)
    with chatter().status(name) as status:
        files = public_traces.fetch_public(name, public, sha256, status.update)
    say(console, f"{public.title} ({public.licence}): {public.address}")
    import_command(public.format, files, output, uplink_scale, force)


@app.command("fit")
def fit_command(
    names: Names,
    output: Annotated[Path, typer.Option("--output", "-o", help="TOML file to write")] = Path(
        "fitted.toml"
    ),
    force: Force = False,
) -> None:
    """Fit a generator to links or availability and write it as TOML, to be named like a trace."""
    from analysis.traces import files as trace_files
    from analysis.traces import fit as trace_fit
    from traces.generators.model_file import model_text

    with _user_errors():
        if output.suffix != ".toml":
            raise ValueError(f"--output must be a TOML file, got {output}")
        loaded = trace_files.load(names)
        model = trace_fit.fit(loaded, output.stem)
        table = trace_fit.comparison(loaded, model)
        publish({output.name: model_text(model, names).encode()}, output.parent, force=force)
    console = results()
    console.print(table)
    say(console, f"Generator: {output}")


@app.command("show")
def show_command(names: Names, seed: Seed = 0) -> None:
    """Show statistics of traces: rates, outages, availability."""
    from analysis.traces import files as trace_files
    from analysis.traces import tables as trace_tables

    with _user_errors():
        loaded = trace_files.load(names, seed=seed)
        tables = trace_tables.statistics(loaded)
    console = results()
    for table in tables:
        console.print(table)
    for line in trace_tables.doubts(loaded):
        say(console, line)


@app.command("plot")
def plot_command(
    names: Names,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder for the figures")] = Path(
        "trace-figures"
    ),
    seed: Seed = 0,
    force: Force = False,
) -> None:
    """Draw rates, their distributions, availability by hour and devices: PNG, PDF, SVG and CSV."""
    from analysis.figures import traces
    from analysis.traces import files as trace_files

    with _user_errors():
        loaded = trace_files.load(names, seed=seed)
        if len(loaded.links) > traces.MAX_LINKS:
            raise ValueError(
                f"a figure holds at most {traces.MAX_LINKS} links, got {len(loaded.links)}; "
                f"name fewer"
            )
        files = traces.render_all(loaded.links, loaded.availability, loaded.tables)
        if not files:
            raise ValueError("a figure needs a link, availability or numbers of devices, got none")
        publish(files, output, force=force)
    say(results(), f"Figures and the numbers behind them: {output}")


def publish(files: Mapping[str, bytes], folder: Path, *, force: bool) -> None:
    """Write all files or none. Raises ValueError where one is there, unless ``force``."""
    there = [name for name in files if (folder / name).exists()]
    if there and not force:
        listed = ", ".join(there[:5]) + (", ..." if len(there) > 5 else "")
        raise ValueError(f"{folder} already holds {listed}; --force overwrites them")
    try:
        with writing_into(folder) as staged:
            for name, content in files.items():
                (staged / name).write_bytes(content)
    except OSError as error:
        raise ValueError(f"the files cannot be written to {folder}: {error}") from None


@contextmanager
def _user_errors() -> Iterator[None]:
    """Turn any ValueError that is raised in this context into a UserError with its message."""
    try:
        yield
    except ValueError as error:
        raise UserError(str(error)) from None
