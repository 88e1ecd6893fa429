"""The sections of a report that have numbers: plots and tables as values for the template."""

import dataclasses
import json
from collections.abc import Sequence

import numpy as np
from flax.traverse_util import flatten_dict

from diffusion_distill.config import base, to_dict
from diffusion_distill.metrics.names import value_text
from diffusion_distill.report import figures, series, table
from diffusion_distill.report.run import CURVES, RunFiles, differ, references_of
from diffusion_distill.report.series import Series, Spent
from diffusion_distill.terminal.console import duration


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot."""

    svg: str  # an <svg> element
    png: bytes  # the same as a PNG file
    name: str  # of that file
    alt: str  # what it shows, in words


@dataclasses.dataclass(frozen=True)
class Table:
    """A header and rows of cells, with notes below."""

    header: list[str]
    body: list[list[str]]
    notes: Sequence[str] = ()


def plot(figure, name: str, alt: str) -> Plot:
    """A plot from its figure; `name` is that of its file, and unique on a page."""
    return Plot(*figures.saved(figure, name), f"{name}.png", alt)


def status(run: RunFiles) -> str:
    """How far a run is, in a sentence."""
    text = f"{len(run.results)} of {len(run.stages)} stages are trained and measured"
    stage = next((stage for stage in run.stages if stage.row is None), None)
    if stage and stage.step >= stage.updates:
        return f"{text}; {stage.name} is being measured."
    if stage and stage.step:
        return f"{text}; {stage.name} is at update {stage.step:,} of {stage.updates:,}."
    return f"{text}."


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """(what, value) for the head of the page."""
    known, shape = series.benchmark(run), "x".join(map(str, run.image_shape or ()))
    name = known.title if known else str(run.value("data.name", "unknown"))
    if total := _total(run):
        shape = f"{total:,} images of {shape}, split {run.value('data.split')}"
    predicts, weighting = (run.value(f"diffusion.{f}") for f in ("parameterization", "weighting"))
    found = {"data": f"{name}: {shape}", "network predicts": f"{predicts}, weighting {weighting}"}
    for row in run.results[-1:]:
        found["measured on"] = f"{row.get('devices', '?')} x {row.get('device_kind', '?')}"
        found["code"] = str(row.get("code_version", "?"))
    return list(found.items())


def _total(run: RunFiles) -> int:
    """Images of the training split; 0 where that is not known."""
    return int((run.real or {}).get("total", 0))


def results(run: RunFiles) -> Table | None:
    """The table of results.txt."""
    if not run.results:
        return None
    return Table(*table.cells(run.results), table.legend(run.results))


def distance_plot(metric: str, runs: list[tuple[str, RunFiles]], name: str) -> dict | None:
    """The plot of a metric against steps, its numbers, and what is to be said of the paper's."""
    found = [(title, series.distances(run).get(metric, [])) for title, run in runs]
    found = [(title, lines) for title, lines in found if lines]
    if not found:
        return None
    paper = next((p for _, run in runs if (p := series.paper_series(run, metric))), [])
    figure = figures.distance_figure(metric, found, paper, table.lower_is_better(metric))
    columns = [(figures.series_name(s, title), s) for title, lines in found for s in lines]
    columns += [("paper, distilled" if s.distilled else "paper, DDIM", s) for s in paper]

    def in_words(s: Series) -> str:
        return ", ".join(f"{value_text(metric, p.mean)} at {p.num_steps}" for p in s.points)

    said = "; ".join(f"{header}: {in_words(s)}" for header, s in columns)
    notes = [n for _, run in runs for n in _paper_note(run, metric)]
    if differ(set.union(*(references_of(run.results) for _, run in runs))):
        notes.append("These runs are measured against different images: distances do not compare.")
    notes = [n for _, run in runs for n in _paper_note(run, metric)]
    if differ(set.union(*(references_of(run.results) for _, run in runs))):
        notes.append("These runs are measured against different images: distances do not compare.")
    return {
        "metric": metric,
        "meaning": table.meaning(metric),
        "plot": plot(figure, name, f"{metric} against sampling steps. {said}."),
        "numbers": _numbers(metric, columns),
        "notes": list(dict.fromkeys(notes)),
        "has_spread": any(p.std is not None for _, s in columns for p in s.points),
        "several": len(found) > 1,
    }


def _numbers(metric: str, columns: list[tuple[str, Series]]) -> Table:
    steps = sorted({p.num_steps for _, s in columns for p in s.points}, reverse=True)
    points = [{p.num_steps: p for p in s.points} for _, s in columns]

    def cell(point) -> str:
        if point is None:
            return ""
        text = value_text(metric, point.mean, point.std)
        return f"{text} ({point.seeds})" if point.seeds > 1 else text

    body = [[str(n), *(cell(by.get(n)) for by in points)] for n in steps]
    return Table(["steps", *(header for header, _ in columns)], body)


def _paper_note(run: RunFiles, metric: str) -> list[str]:
    known = series.benchmark(run)
    if known is None:
        return []
    if not known.students_fid:
        return [f"For {known.title} the paper has curves, and no numbers to draw here."]
    fid = "FID of 50,000 images against the training split"
    if metric == series.PAPER_METRIC:
        return [f"Hollow marks are the paper's: {fid}, as Salimans and Ho (2022) report it."]
    other = f"{metric} is another quantity, so that the paper's numbers are not drawn."
    return [f"What the paper reports for this data is {fid}. {other}"]


def guidance(run: RunFiles, name: str) -> dict | None:
    """Distance, and agreement with the labels, against w: plot and table."""
    found = series.guided(run)
    if not found:
        return None
    body = [
        [metric, who, f"{w:g}", value_text(metric, by[w])]
        for metric, lines in found.items()
        for who, by in lines.items()
        for w in sorted(by)
    ]
    said = "; ".join(f"{metric} of {who} at w {w}: {value}" for metric, who, w, value in body)
    figure = plot(figures.guidance_figure(found), name, f"Against guidance. {said}.")
    return {"plot": figure, "table": Table(["metric", "stage", "w", "value"], body)}


def training(run: RunFiles, name: str) -> dict | None:
    """Loss, gradient norm and learning rate over the chain: plot and table."""
    body = []
    for stage in run.stages:
        kept = [stage.curves[field] for field in CURVES]
        loss, norm, rate = (values[np.isfinite(values)] for values in kept)
        if len(loss) and len(norm) and len(rate):
            numbers = [loss[0], loss[-1], np.median(norm), rate.max()]
            body.append([stage.name, *(f"{value:.2g}" for value in numbers)])
    if not body:
        return None
    header = ["stage", "first loss", "last loss", "median gradient norm", "highest learning rate"]
    ends = "; ".join(f"{stage} from {first} to {last}" for stage, first, last, *_ in body)
    alt = f"Loss, gradient norm and learning rate against updates. Loss: {ends}."
    return {"plot": plot(figures.training_figure(run), name, alt), "table": Table(header, body)}


def cost(run: RunFiles, name: str) -> dict | None:
    """What the students cost beside the teacher: plot, sentence and table."""
    found = series.spent(run)
    if not found:
        return None
    claim, total = _claim(run, found), _total(run)
    teacher = found[0].seconds if found[0].stage.is_teacher else None
    body, seconds = [], 0.0
    for c in found:
        student = not c.stage.is_teacher
        seconds += (c.seconds or 0.0) if student else 0.0
        body.append([
            c.stage.name + ("" if c.finished else " (so far)"),
            f"{c.stage.step:,}",
            f"{c.images:,}",
            f"{c.images / total:,.1f}" if total else "",
            "" if c.seconds is None else duration(c.seconds),
            f"{seconds / teacher:.2f}" if teacher and student else "",
        ])  # fmt: skip
    header = ["stage", "updates", "images seen", "epochs", "training time", "sum / teacher"]
    figure = plot(figures.cost_figure(run), name, f"Bars of training time and images. {claim}")
    return {"plot": figure, "claim": claim, "table": Table(header, body)}


def _claim(run: RunFiles, found: list[Spent]) -> str:
    rounds = [c for c in found if not c.stage.is_teacher and c.finished]
    teacher = next((c for c in found if c.stage.is_teacher), None)
    if teacher is None or not teacher.finished:
        return "The teacher is not done yet."
    if not teacher.stage.updates:
        return "The teacher was trained elsewhere: what it cost is not known here."
    if not rounds:
        return "No round of distillation is done yet."
    seconds, images = sum(c.seconds for c in rounds), sum(c.images for c in rounds)
    planned = sum(not stage.is_teacher for stage in run.stages)
    which = "All" if len(rounds) == planned else f"{len(rounds)} of"
    which = f"{which} {planned} rounds" if planned > 1 else "The only round"

    def times(a, b):
        return f", {a / b:.2f} times the teacher's" if b else ", the teacher's"

    return (
        f"{which} took {duration(seconds)}{times(seconds, teacher.seconds)} "
        f"{duration(teacher.seconds)}, and saw {images:,} images"
        f"{times(images, teacher.images)} {teacher.images:,}."
    )


def settings(runs: list[RunFiles]) -> list[dict]:
    """Sections of fields, each with its value in every run, its default, and what differs."""
    configs = (to_dict(base()), *(run.config for run in runs))
    defaults, *values = (flatten_dict(config, sep=".") for config in configs)
    sections: dict[str, list] = {}
    for name in dict.fromkeys(name for fields in (defaults, *values) for name in fields):
        default, *texts = (_setting(fields, name) for fields in (defaults, *values))
        section, _, field = name.rpartition(".")
        sections.setdefault(section, []).append({
            "field": field,
            "values": [(text, text != default) for text in texts],
            "default": default,
            "between": len(set(texts)) > 1,
        })  # fmt: skip
    return [{"name": name or "the run", "fields": fields} for name, fields in sections.items()]


def _setting(fields: dict, name: str) -> str:
    if name not in fields:
        return "(none)"
    value = fields[name]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, float):
        return f"{value:g}"  # 1 and 1.0 are one value: JSON keeps apart what a config does not
    return value if isinstance(value, str) and value else json.dumps(value)
