"""The plots, by matplotlib: each once as SVG for the page and once as PNG.

Lines differ in marker and stroke as well as in colour, and colours are those of Okabe and Ito, so
that plots can be read in print and by colour-blind people. The SVG takes ink, grid and background
from the page, which has them for light and dark.
"""

import io
import re
from collections.abc import Sequence

import matplotlib as mpl
import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

from diffusion_distill.report.run import RunFiles
from diffusion_distill.report.series import Series, Spent, chain_curves, spent

# Colours that stand for what the page says they are.
INK, RULE, PAPER = "#010203", "#cacbcc", "#fcfdfe"
_IN_PAGE = {INK: "currentColor", RULE: "var(--rule)", PAPER: "var(--paper)"}

_COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
BLUE, VERMILLION, GREEN, PURPLE, ORANGE, SKY = _COLOURS
_MARKERS = "os^Dv<"

# Of the undistilled teacher: name, colour, stroke, marker. Students are blue, their DDIM is solid.
_SAMPLERS = {
    "ddim": ("DDIM", VERMILLION, "--", "s"),
    "ancestral": ("ancestral", GREEN, ":", "^"),
    "dpmpp_2m": ("DPM-Solver++(2M)", PURPLE, "-.", "D"),
    "heun": ("Heun", ORANGE, (0, (5, 1, 1, 1, 1, 1)), "v"),
    "ddim_diffusers": ("DDIM of diffusers", SKY, (0, (3, 1, 1, 1)), "P"),
}
_WIDTH = 5.2  # inches: 374 points, about a phone's width, so that no text is shrunk there
_RC = {
    "font.size": 10, "axes.labelsize": 10, "xtick.labelsize": 9, "ytick.labelsize": 9,
    "legend.fontsize": 9, "lines.linewidth": 1.7, "lines.markersize": 5.5,
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK,
    "xtick.color": INK, "ytick.color": INK, "axes.facecolor": "none", "figure.facecolor": PAPER,
    "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.8,
    "axes.grid": True, "grid.color": RULE, "grid.linewidth": 0.6, "axes.axisbelow": True,
    "legend.frameon": False,
    "svg.fonttype": "none", "svg.hashsalt": "report",
}  # fmt: skip


_styled = mpl.rc_context(_RC)


def _sampler(name: str) -> tuple:
    return _SAMPLERS.get(name, (name, INK, "-", "x"))


def series_name(series: Series, run: str = "") -> str:
    """What a legend calls a line: "students", "teacher, DDIM"."""
    name = f"{'students' if series.distilled else 'teacher'}, {_sampler(series.sampler)[0]}"
    if series.distilled and series.sampler == "ddim":
        name = "students"
    return f"{run}: {name}" if run else name


@_styled
def distance_figure(
    metric: str, lines: Sequence[tuple[str, list[Series]]], paper: list[Series], lower: bool
) -> Figure:
    """A metric against sampling steps; `lower` says whether lower is better.

    Lines are (name of a run, what it measured of the metric), the name "" for a run alone. What the
    paper reports of the same metric has hollow marks.
    """
    figure = Figure((_WIDTH, 4.1), layout="constrained")
    axes = figure.subplots()
    several = len(lines) > 1
    for number, (run, found) in enumerate(lines):
        for series in found:
            if several and not series.distilled and series.sampler != "ddim":
                continue  # too many lines: the numbers beside the plot have them
            style = _run_style(number, series) if several else _style(series)
            _errorbar(axes, series, series_name(series, run), **style)
    for series in paper:
        marker, name = ("P", "paper, distilled") if series.distilled else ("X", "paper, DDIM")
        _errorbar(
            axes, series, name, color=INK, marker=marker, markerfacecolor=PAPER,
            linestyle=(0, (1, 1.2)), linewidth=1, markersize=7,
        )  # fmt: skip
    shown = [s for _, found in lines for s in found] + paper
    points = [p for s in shown for p in s.points]
    _step_axis(axes, [p.num_steps for p in points])
    _value_axis(axes, [p.mean for p in points])
    axes.set_xlabel("sampling steps")
    axes.set_ylabel(f"{metric} ({'lower' if lower else 'higher'} is better)")
    figure.legend(loc="outside lower center", ncols=1 if several else 2)
    return figure


@_styled
def guidance_figure(found: dict[str, dict[str, dict[float, float]]]) -> Figure:
    """Each metric against w of guidance, a line for each stage; of `series.guided`."""
    figure = Figure((_WIDTH, 2.6 * len(found) + 1), layout="constrained")
    panels = figure.subplots(len(found), 1, sharex=True, squeeze=False)[:, 0]
    names = list(dict.fromkeys(name for lines in found.values() for name in lines))
    for axes, (metric, lines) in zip(panels, found.items(), strict=True):
        for name, by in lines.items():
            number, stroke = names.index(name), "-"
            colour, marker = (of[number % len(of)] for of in (_COLOURS, _MARKERS))
            if name.startswith("teacher"):
                colour, stroke = INK, "--"
            w = sorted(by)
            axes.plot(w, [by[x] for x in w], stroke, color=colour, marker=marker, label=name)
        axes.set_ylabel(metric.replace("_", " "))
    panels[-1].set_xlabel("guidance w (0 is none)")
    handles = {line.get_label(): line for axes in panels for line in axes.get_lines()}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=2)
    return figure


@_styled
def training_figure(run: RunFiles) -> Figure:
    """Loss, gradient norm and learning rate over all updates of a chain."""
    curves, borders = chain_curves(run)
    end = max(borders[-1][2], 1) if borders else 1
    figure = Figure((_WIDTH, 5.4), layout="constrained")
    panels = figure.subplots(3, 1, sharex=True)
    names = ("loss", "gradient norm", "learning rate")
    for axes, name, field, colour in zip(panels, names, curves, _COLOURS[:3], strict=True):
        for x, mean, low, high in curves[field]:
            marker = "." if len(x) == 1 else ""
            axes.fill_between(x, low, high, color=colour, alpha=0.25, linewidth=0)
            axes.plot(x, mean, color=colour, linestyle="-", linewidth=1.2, marker=marker)
        if field != "learning_rate":
            _value_axis(axes, [v for part in curves[field] for v in part[1]])
        else:
            axes.set_ylim(bottom=0)
            axes.yaxis.set_major_formatter(_plainly)
        axes.set_ylabel(name)
        axes.grid(axis="x", visible=False)
        for _, begin, _ in borders[1:]:
            axes.axvline(begin, color=INK, linewidth=0.6, linestyle=(0, (2, 2)))
    _name_stages(panels[0], borders, end)
    panels[-1].set_xlim(0, end)
    panels[-1].set_xlabel("updates since the beginning of the chain")
    panels[-1].xaxis.set_major_formatter(_thousands)
    figure.align_ylabels(panels)
    return figure


@_styled
def cost_figure(run: RunFiles) -> Figure:
    """Training time and images of all students, one after another, beside the teacher's."""
    found = spent(run)
    figure = Figure((_WIDTH, 3.3), layout="constrained")
    time, images = figure.subplots(2, 1)
    longest = max(sum(c.seconds or 0 for c in found if c.stage.is_teacher == t) for t in (0, 1))
    units = (("days", 86400), ("hours", 3600), ("minutes", 60), ("seconds", 1))
    unit, seconds = next(u for u in units if longest >= u[1] * 2 or u[1] == 1)
    _bars(time, found, lambda cost: (cost.seconds or 0) / seconds)
    time.set_xlabel(f"training time ({unit})")
    _bars(images, found, lambda cost: cost.images)
    images.set_xlabel("training images seen")
    images.xaxis.set_major_formatter(_thousands)
    return figure


@_styled
def saved(figure: Figure, prefix: str) -> tuple[str, bytes]:
    """The figure as an <svg> element, and as a PNG of about 1,000 pixels width, on white.

    The element is for a page that has --rule and --paper. All ids in it begin with the prefix: each
    picture of a page needs its own.
    """
    # All parts are placed once: each way of saving would do it again, which is half of the work.
    figure.draw_without_rendering()
    figure.set_layout_engine(None)
    svg, png = io.StringIO(), io.BytesIO()
    metadata = {"Date": None, "Creator": None, "Format": None, "Type": None}
    figure.savefig(svg, format="svg", transparent=True, metadata=metadata)
    figure.savefig(png, format="png", dpi=200, facecolor="white")
    text = svg.getvalue()
    text = text[text.index("<svg") :]
    text = re.sub(r' (width|height)="[\d.]+pt"', "", text, count=2)
    text = re.sub(r'\bid="', f'id="{prefix}-', text)
    text = re.sub(r'(url\(#|href="#)', rf"\g<1>{prefix}-", text)
    text = text.replace("<svg ", '<svg aria-hidden="true" focusable="false" ', 1)
    for colour, in_page in _IN_PAGE.items():
        text = text.replace(colour, in_page)
    return text, png.getvalue()


def _style(series: Series) -> dict:
    _, colour, stroke, marker = _sampler(series.sampler)
    if series.distilled:
        colour, marker = BLUE, "o"
        stroke = "-" if series.sampler == "ddim" else stroke
    return {"color": colour, "linestyle": stroke, "marker": marker}


def _run_style(number: int, series: Series) -> dict:
    colour, marker = (of[number % len(of)] for of in (_COLOURS, _MARKERS))
    style = {"color": colour, "marker": marker, "linestyle": "-" if series.distilled else "--"}
    return style | ({} if series.distilled else {"markerfacecolor": PAPER, "linewidth": 1.2})


def _errorbar(axes, series: Series, label: str, **style) -> None:
    x, mean = ([getattr(p, f) for p in series.points] for f in ("num_steps", "mean"))
    std = [p.std or 0.0 for p in series.points]
    axes.errorbar(x, mean, yerr=std if any(std) else None, label=label, capsize=3, **style)


def _step_axis(axes, steps: list[int]) -> None:
    axes.set_xscale("log", base=2)
    last = int(np.ceil(np.log2(max([*steps, 2]))))
    stride = 1 if last <= 9 else 2
    axes.xaxis.set_major_locator(FixedLocator([2**n for n in range(0, last + 1, stride)]))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(lambda n, _: f"{n:.0f}")


def _value_axis(axes, values: list[float]) -> None:
    """Logarithmic where values are positive and far apart; plain numbers at its ticks."""
    if values and min(values) > 0 and max(values) > 3 * min(values):
        axes.set_yscale("log")
        wide = max(values) > 1000 * min(values)
        axes.yaxis.set_major_locator(LogLocator(subs=(1.0,) if wide else (1.0, 2.0, 5.0)))
        axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(_plainly)


def _name_stages(axes, borders: list[tuple[str, int, int]], end: int) -> None:
    """Names each stage by its steps over its part of the axis, where there is room."""
    for name, first, last in borders:
        steps, share = name.removeprefix("student_").lstrip("0"), (last - first) / end
        if share >= 0.02:
            axes.annotate(
                steps, ((first + last) / 2, 1.03), xycoords=("data", "axes fraction"), ha="center",
                va="bottom", rotation=0 if share > 0.02 * len(steps) else 90, fontsize=8.5,
            )  # fmt: skip


def _bars(axes, found: list[Spent], value) -> None:
    """The teacher's bar over that of its students, each of them a part of it."""
    teacher = sum(value(c) for c in found if c.stage.is_teacher)
    students = [c for c in found if not c.stage.is_teacher]
    widest = max(teacher, sum(map(value, students)), 1e-9)
    axes.barh(["teacher"], [teacher], color=VERMILLION, height=0.6, hatch="//", edgecolor=PAPER)
    axes.barh(["students"], [0])
    left = 0.0
    for cost in students:
        width, steps = value(cost), str(cost.stage.num_steps)
        axes.barh(["students"], [width], left=left, color=BLUE, height=0.6, edgecolor=PAPER)
        if width > 0.06 * widest:
            middle = left + width / 2
            style = {"ha": "center", "va": "center", "color": "white", "fontsize": 9}
            axes.text(middle, "students", steps, **style)
        left += width
    if teacher:
        axes.axvline(teacher, color=INK, linestyle="--", linewidth=1)
    axes.set_xlim(0, widest * 1.03)
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)


def _plainly(value: float, _) -> str:
    return f"{value:g}"


def _thousands(value: float, _) -> str:
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"
