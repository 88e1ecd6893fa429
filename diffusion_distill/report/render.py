"""The page of one run, or of several that it compares."""

import re
import time
from collections.abc import Callable
from pathlib import Path

import jinja2

from diffusion_distill.report import samples, sections
from diffusion_distill.report.run import RunFiles, read_run
from diffusion_distill.report.series import plotted_metrics
from diffusion_distill.storage.buckets import as_path

# What a value of the wrong kind, in a file that could be read, ends in.
_DAMAGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


_PLOTTED = ("guidance", "training", "cost")  # sections of a run that have a plot


def render(workdirs: list[Path]) -> tuple[str, dict[str, bytes], list[str]]:
    """The page, its plots as PNG by file name, and what was missing or damaged."""
    runs, titles = [read_run(path) for path in workdirs], _titles(workdirs)
    several = len(runs) > 1
    named = list(zip(titles, runs, strict=True))
    headline = _headline(named if several else [("", runs[0])])
    shown = [
        _sections(title, run, f"_{number}" if several else "")
        for number, (title, run) in enumerate(named, 1)
    ]
    loader, strict = jinja2.FileSystemLoader(Path(__file__).parent), jinja2.StrictUndefined
    environment = jinja2.Environment(
        loader=loader, undefined=strict, trim_blocks=True, lstrip_blocks=True,
        autoescape=True,  # nothing from a file becomes markup
    )  # fmt: skip
    html = environment.get_template("page.html").render(
        title=f"{len(runs)} runs compared" if several else titles[0],
        runs=shown,
        headline=headline,
        settings=sections.settings(runs),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    with_plots = [*headline, *(s[what] for s in shown for what in _PLOTTED if s[what])]
    plots = {section["plot"].name: section["plot"].png for section in with_plots}
    problems = [
        f"{title}: {problem}" if several else problem
        for title, run in named
        for problem in run.problems
    ]
    return html, plots, problems


def _headline(runs: list[tuple[str, RunFiles]]) -> list[dict]:
    """The plots of quality against steps: of each metric, all runs in one."""
    found = []
    for metric in plotted_metrics([run for _, run in runs]):
        name = "distance_" + re.sub(r"[^A-Za-z0-9_]", "_", metric)
        found.append(_made(runs[0][1], metric, sections.distance_plot, metric, runs, name))
    return [section for section in found if section is not None]


def _sections(title: str, run: RunFiles, suffix: str) -> dict:
    """What the page shows of one run; its plots' names end in the suffix."""

    def made(what: str, make: Callable, *names: str):
        return _made(run, what, make, run, *names)

    return {
        "title": title,
        "path": str(run.path),
        "status": sections.status(run),
        "facts": made("the head of the page", sections.facts) or [],
        "results": made("the table of results", sections.results),
        "noises": made("the rows of samples", samples.noises) or [],
        "beside": made("samples beside data", samples.beside_data) or [],
        "nearest": made("the nearest training images", samples.neighbours),
        "guidance": made("the plot of guidance", sections.guidance, f"guidance{suffix}"),
        "training": made("the training curves", sections.training, f"training{suffix}"),
        "cost": made("what stages cost", sections.cost, f"cost{suffix}"),
        "problems": run.problems,
    }


def _made(run: RunFiles, what: str, make: Callable, *arguments):
    """make(*arguments); None, and a problem of the run, where its files do not allow it."""
    try:
        return make(*arguments)
    except _DAMAGED as error:
        run.problems.append(f"{what} could not be made of what is in the files: {error!r}")
        return None


def _titles(workdirs: list[Path]) -> list[str]:
    """A short name for each: that of its folder where no other has the same."""
    names = [as_path(path).resolve().name for path in workdirs]
    return [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, workdirs, strict=True)
    ]
