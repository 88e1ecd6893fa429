"""report.html: what a run wrote as one page, that needs nothing beside itself."""

import re
import time
from pathlib import Path

from diffusion_distill.devices import distributed
from diffusion_distill.report.run import read_run
from diffusion_distill.storage.buckets import as_path
from diffusion_distill.storage.files import write_atomically
from diffusion_distill.terminal.console import say


def refresh(workdir: Path) -> None:
    """Writes a run's report.html anew, in one of several processes.

    Whatever goes wrong is said in a warning, and is no reason to stop a run.
    """
    if not distributed.is_main():
        return
    try:
        write([workdir], workdir / "report.html")
    except Exception as error:  # of any kind: a page that can be made anew ends no training
        reason = " ".join(str(error).split())
        say(f"warning: {workdir / 'report.html'} was not made: {type(error).__name__}: {reason}")


def write(workdirs: list[Path], out: Path) -> list[str]:
    """Writes the page of one run, or of several that it compares, and its plots as PNG files.

    The plots go into a folder beside the page, of its name without ".html".

    Returns:
        What was missing or damaged, a sentence each.

    Raises:
        UserError: a workdir is none.
        OSError: something could not be written.
    """
    html, plots, problems = render(workdirs)
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in plots.items():
        write_atomically(folder / name, content)
    write_atomically(out, html)
    return problems


def render(workdirs: list[Path]) -> tuple[str, dict[str, bytes], list[str]]:
    """The page, its plots as PNG by file name, and what was missing or damaged.

    Raises:
        UserError: a workdir is none.
    """
    # Slow to import, and a run's start, --help or a mistake must not wait for them.
    import jinja2

    from diffusion_distill.report import parts
    from diffusion_distill.report.series import plotted_metrics

    runs = [read_run(path) for path in workdirs]
    titles = _titles(workdirs)
    named = list(zip(titles if len(runs) > 1 else [""], runs, strict=True))
    plots = []

    def name_of(what: str, number: int) -> str:
        return what if len(runs) == 1 else f"{what}_{number}"

    headline = []
    for metric in plotted_metrics(runs):
        name = "distance_" + re.sub(r"[^A-Za-z0-9_]", "_", metric)
        made = parts.part(
            runs[0], metric, lambda m=metric, n=name: parts.distance_plot(m, named, n)
        )
        if made is not None:
            headline.append(made)
            plots.append(made["plot"])
    shown = []
    for number, (title, run) in enumerate(zip(titles, runs, strict=True), 1):

        def make(what, build, *arguments, run=run):
            return parts.part(run, what, lambda: build(run, *arguments))

        section = {
            "title": title,
            "path": str(run.path),
            "status": parts.status(run),
            "facts": make("the head of the page", parts.facts) or [],
            "results": make("the table of results", parts.results),
            "noises": make("the rows of samples", parts.noises) or [],
            "beside": make("samples beside data", parts.beside_data) or [],
            "nearest": make("the nearest training images", parts.neighbours),
            "training": make("the training curves", parts.training,
                             name_of("training", number)),
            "cost": make("what stages cost", parts.cost, name_of("cost", number)),
            "problems": run.problems,
        }  # fmt: skip
        plots += [section[what]["plot"] for what in ("training", "cost") if section[what]]
        shown.append(section)
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,  # nothing from a file becomes markup
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    html = environment.get_template("page.html").render(
        title=titles[0] if len(runs) == 1 else f"{len(runs)} runs compared",
        runs=shown,
        headline=headline,
        settings=parts.settings(runs),
        written=time.strftime("%Y-%m-%d %H:%M UTC", time.gmtime()),
    )
    problems = [
        f"{title}: {problem}" if len(runs) > 1 else problem
        for title, run in zip(titles, runs, strict=True)
        for problem in run.problems
    ]
    return html, {plot.name: plot.png for plot in plots}, problems


def _titles(workdirs: list[Path]) -> list[str]:
    """A short name for each: that of its folder where no other has the same."""
    names = [as_path(path).resolve().name for path in workdirs]
    return [
        name if names.count(name) == 1 else str(path)
        for name, path in zip(names, workdirs, strict=True)
    ]
