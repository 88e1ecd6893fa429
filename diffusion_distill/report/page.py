"""report.html, written: what a run left as one page that needs nothing beside itself."""

from pathlib import Path

from diffusion_distill.devices import distributed
from diffusion_distill.devices.distributed import on_main
from diffusion_distill.report.table import results_table
from diffusion_distill.storage.files import write_atomically
from diffusion_distill.terminal.console import say


def show_results(workdir: Path, rows: list[dict]) -> None:
    """Writes results.txt and the page of a run, where they are not of all `rows` of results yet."""
    path, table = workdir / "results.txt", results_table(rows) + "\n"

    def write() -> None:
        if rows and (not path.exists() or path.read_text("utf-8") != table):
            refresh(workdir)
            write_atomically(path, table)

    on_main(write)


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

    The plots go into a folder beside the page, of its name without ".html". Returns what was
    missing or damaged, a sentence each; a workdir that is none is a UserError.
    """
    # It draws with what is slow to import: a run's start, --help and mistakes must not wait for it.
    from diffusion_distill.report.render import render

    html, plots, problems = render(workdirs)
    folder = out.with_suffix("")
    folder.mkdir(parents=True, exist_ok=True)
    for name, content in plots.items():
        write_atomically(folder / name, content)
    write_atomically(out, html)
    return problems
