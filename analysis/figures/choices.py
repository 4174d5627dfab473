"""Draws what each strategy chose for each device, round by round, as heat maps."""

from __future__ import annotations

import pandas as pd
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import MaxNLocator

from analysis import escape
from analysis.figures import colors, style
from analysis.figures.rows import of_first_seed, of_runs
from analysis.metrics.study import Study
from analysis.runs.fleet import devices

NAME_IN = 0.11  # the height of a row in inches at which a device number can be read
CHOICES = {  # column -> title
    "depth": "Depth (blocks)",
    "num_absent_blocks": "Blocks not on\nthe device",
    "num_quantized_blocks": "Blocks with\npacked activations",
    "mean_weight_bits": "Mean bits of\nfrozen weights",
    "num_terms_trained": "Rank-1 terms\ntrained",
    "mean_upload_bits": "Mean bits of\nuploaded terms",
}
COLUMNS = ["device_id", "profile", "round", "outcome", *CHOICES]


def frame(study: Study) -> pd.DataFrame:
    """Return one row for each plan: device, round, outcome, the choices; position on the y axis.

    Absent blocks are a choice where some plan has any.
    """
    runs = of_first_seed(study.runs)
    order = {device: place for place, device in enumerate(devices(runs, study.devices).index)}
    plans = of_runs(
        runs,
        lambda run: _with_absent_blocks(run.clients)[COLUMNS].assign(
            position=run.clients["device_id"].map(order), num_rounds=run.rounds["round"].max()
        ),
    )
    plans = plans[plans["position"].notna()].astype({"position": int}).reset_index(drop=True)
    return plans if plans["num_absent_blocks"].any() else plans.drop(columns="num_absent_blocks")


def _with_absent_blocks(clients: pd.DataFrame) -> pd.DataFrame:
    """Return the plans with a column of absent blocks, which runs of older versions lack."""
    return clients if "num_absent_blocks" in clients else clients.assign(num_absent_blocks=0)


def draw(frame: pd.DataFrame, paper: style.Paper) -> Figure:
    """Return a column for each choice, a row for each run; grey where there was no plan."""
    labels = list(dict.fromkeys(frame["label"]))
    choices = {choice: title for choice, title in CHOICES.items() if choice in frame}
    devices = frame.drop_duplicates("position").set_index("position")["device_id"].sort_index()
    wanted_in = min(2.2, max(0.9, 0.085 * (int(devices.index.max()) + 1)))
    panel_in = min(wanted_in, (style.MAX_HEIGHT_IN - 1.2) / len(labels) - 0.1)
    figure = style.figure(paper.page_in, 0.9 + len(labels) * (panel_in + 0.1))
    grid = figure.subplots(
        1 + len(labels),
        len(choices),
        squeeze=False,
        height_ratios=[0.07] + [panel_in] * len(labels),
    )
    for column, (choice, title) in enumerate(choices.items()):
        scale = Normalize(min(0, frame[choice].min()), max(1, frame[choice].max()))
        for axes, label in zip(grid[1:, column], labels, strict=True):
            image = plot(frame[frame["label"] == label], axes, choice, scale=scale)
            axes.set_ylim(-0.5, devices.index.max() + 0.5)
            axes.set_yticks([])
            axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
            axes.tick_params(labelbottom=axes is grid[-1, column], length=1.5)
        _color_bar(grid[0, column], image, title)
        grid[-1, column].set_xlabel("Round")
    for axes, label in zip(grid[1:, 0], labels, strict=True):
        axes.set_ylabel(escape.figure(label))
        named = devices[:: -(-len(devices) // max(1, int(panel_in / NAME_IN)))]
        axes.set_yticks(named.index, [str(device) for device in named], fontsize=7)
    figure.supylabel("Device, by rising memory budget", fontsize=8)
    style.legend_above(figure, _marks(frame, num_rows=int(devices.index.max()) + 1))
    return figure


def _marks(frame: pd.DataFrame, *, num_rows: int) -> list[Artist]:
    """Return what the legend names: cells without a plan and plans that met OOM, if any."""
    panels = frame.groupby("label")
    num_cells = int(panels["num_rounds"].max().sum()) * num_rows
    planned = frame.drop_duplicates(["label", "position", "round"])
    marks: list[Artist] = []
    if len(planned) < num_cells:
        marks.append(Patch(color=colors.LIGHT_GREY, label="no plan"))
    if (frame["outcome"] == "oom").any():
        marks.append(
            Line2D([], [], color=colors.RED, marker="o", linestyle="", label="the plan met OOM")
        )
    return marks


def plot(rows: pd.DataFrame, axes: Axes, choice: str, *, scale: Normalize) -> AxesImage:
    """Draw one choice of one label as a heat map; plans that met OOM carry a dot."""
    num_rounds, top = int(rows["num_rounds"].max()), int(rows["position"].max())
    cells = rows.pivot_table(index="position", columns="round", values=choice)
    cells = cells.reindex(index=range(top + 1), columns=range(1, num_rounds + 1))
    axes.set_facecolor(colors.LIGHT_GREY)
    image = axes.imshow(
        cells.to_numpy(),
        cmap="viridis",
        norm=scale,
        aspect="auto",
        origin="lower",
        interpolation="nearest",
        extent=(0.5, num_rounds + 0.5, -0.5, top + 0.5),
    )
    oom, dot = rows[rows["outcome"] == "oom"], min(2.8, 45 / num_rounds)
    axes.plot(
        oom["round"], oom["position"], "o", color=colors.RED, markersize=dot, markeredgewidth=0
    )
    return image


def _color_bar(axes: Axes, image: AxesImage, title: str) -> None:
    """Draw the scale of a column above it, with its ends and its middle marked."""
    low, high = image.get_clim()
    bar = axes.figure.colorbar(image, cax=axes, orientation="horizontal")
    bar.set_ticks([low, (low + high) / 2, high])
    bar.ax.xaxis.set_major_formatter(lambda value, _: f"{value:.3g}")
    bar.ax.tick_params(labeltop=True, labelbottom=False, top=False, bottom=False, pad=0)
    first, _, last = bar.ax.get_xticklabels()
    first.set_horizontalalignment("left")
    last.set_horizontalalignment("right")
    bar.ax.annotate(
        title,
        (0.5, 1.0),
        (0, 11),
        xycoords="axes fraction",
        textcoords="offset points",
        ha="center",
        va="bottom",
        linespacing=0.9,
    )
    bar.outline.set_visible(False)
    # A colour bar clips by a path, which has a random id in SVG and would change the file's bytes.
    for artist in bar.ax.get_children():
        artist.set_clip_on(False)
