"""The parts of a report, each from what a run wrote, as plain values for the template."""

import base64
import dataclasses
import json
from collections.abc import Callable

import numpy as np

from diffusion_distill.config import base, to_dict
from diffusion_distill.report import figures, table
from diffusion_distill.report.mosaic import mosaic
from diffusion_distill.report.run import RunFiles, StageFiles
from diffusion_distill.report.series import (
    PAPER,
    PAPER_METRIC,
    Series,
    benchmark,
    costs,
    distances,
    paper_series,
)
from diffusion_distill.terminal.console import duration

IN_A_ROW = 10  # samples of each stage that are shown under one another
SIDE_BY_SIDE = 40  # images of a set that is shown whole
DATA_NAMES = {
    "cifar10": "CIFAR-10", "imagenet64": "ImageNet 64x64",
    "lsun_bedroom128": "LSUN bedroom 128x128", "lsun_church128": "LSUN church 128x128",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class Plot:
    """A plot: as <svg>, as PNG, the name of its PNG file, and what it shows in words."""

    svg: str
    png: bytes
    name: str
    alt: str


@dataclasses.dataclass(frozen=True)
class Picture:
    """Images: what they are called, the PNG as a data: address, its size, and it in words."""

    label: str
    src: str
    width: int
    height: int
    alt: str


@dataclasses.dataclass(frozen=True)
class Table:
    """A header and rows of cells, with notes below."""

    header: list[str]
    body: list[list[str]]
    notes: list[str]


def plot(figure, name: str, alt: str) -> Plot:
    """A plot from its figure; `name` is that of its file, and unique on a page."""
    figures.lay_out(figure)
    return Plot(figures.to_svg(figure, name), figures.to_png(figure), f"{name}.png", alt)


def status(run: RunFiles) -> str:
    """How far a run is, in a sentence."""
    done = len(run.results)
    text = f"{done} of {len(run.stages)} stages are trained and measured"
    for stage in run.stages:
        if stage.row is None:
            if stage.step >= stage.updates:
                return f"{text}; {stage.name} is being measured."
            if stage.step:
                return f"{text}; {stage.name} is at update {stage.step:,} of {stage.updates:,}."
            break
    return f"{text}."


def facts(run: RunFiles) -> list[tuple[str, str]]:
    """(what, value) for the head of the page."""
    found = []
    name = str(run.value("data.name", "unknown"))
    shape = "x".join(map(str, run.image_shape or ()))
    if run.real is not None and "total" in run.real:
        shape = f"{int(run.real['total']):,} images of {shape}, split {run.value('data.split')}"
    found.append(("data", f"{DATA_NAMES.get(benchmark(run), name)}: {shape}"))
    predicts = run.value("diffusion.parameterization")
    found.append(("network predicts", f"{predicts}, weighting {run.value('diffusion.weighting')}"))
    for row in run.results[-1:]:
        found.append(("measured on", f"{row.get('devices', '?')} x {row.get('device_kind', '?')}"))
        found.append(("code", str(row.get("code_version", "?"))))
    return found


def results(run: RunFiles) -> Table | None:
    """The table of results.txt."""
    if not run.results:
        return None
    return Table(*table.cells(run.results), table.legend(run.results))


def distance_plot(metric: str, runs: list[tuple[str, RunFiles]], name: str) -> dict | None:
    """The plot of a metric against steps, its numbers, and what is to be said of the paper's."""
    found = [(title, distances(run).get(metric, [])) for title, run in runs]
    found = [(title, lines) for title, lines in found if lines]
    if not found:
        return None
    lower = "lower is better" in table.meaning(metric)
    paper = next((p for _, run in runs if (p := paper_series(run, metric))), [])
    figure = figures.distance_figure(metric, found, paper, lower)
    columns = [(figures.series_name(s, title), s) for title, lines in found for s in lines]
    columns += [("paper, distilled" if s.distilled else "paper, DDIM", s) for s in paper]
    said = "; ".join(f"{header}: {_in_words(metric, s)}" for header, s in columns)
    return {
        "metric": metric,
        "meaning": table.meaning(metric),
        "plot": plot(figure, name, f"{metric} against sampling steps. {said}."),
        "numbers": _numbers(metric, columns),
        "notes": list(dict.fromkeys(n for _, run in runs for n in _paper_note(run, metric))),
        "has_spread": any(p.std is not None for _, s in columns for p in s.points),
        "several": len(found) > 1,
    }


def _in_words(metric: str, series: Series) -> str:
    return ", ".join(f"{table.value_text(metric, p.mean)} at {p.num_steps}" for p in series.points)


def _numbers(metric: str, columns: list[tuple[str, Series]]) -> Table:
    steps = sorted({p.num_steps for _, s in columns for p in s.points}, reverse=True)
    points = [{p.num_steps: p for p in s.points} for _, s in columns]

    def cell(point) -> str:
        if point is None:
            return ""
        text = table.value_text(metric, point.mean, point.std)
        return f"{text} ({point.seeds})" if point.seeds > 1 else text

    body = [[str(n), *(cell(by.get(n)) for by in points)] for n in steps]
    return Table(["steps", *(header for header, _ in columns)], body, [])


def _paper_note(run: RunFiles, metric: str) -> list[str]:
    known = benchmark(run)
    if known is None:
        return []
    if not PAPER[known]:
        return [f"For {DATA_NAMES[known]} the paper has curves, and no numbers to draw here."]
    if metric != PAPER_METRIC:
        return [
            "What the paper reports for this data is FID of 50,000 images against the training "
            f"split. {metric} is another quantity, so that the paper's numbers are not drawn."
        ]
    return [
        "Hollow marks are the paper's: FID of 50,000 images against the training split, as "
        "Salimans and Ho (2022) report it."
    ]


def training(run: RunFiles, name: str) -> dict | None:
    """Loss, gradient norm and learning rate over the chain: plot and table."""
    body = []
    for stage in run.stages:
        kept = [stage.curves[field] for field in ("loss", "grad_norm", "learning_rate")]
        loss, norm, rate = (values[np.isfinite(values)] for values in kept)
        if len(loss) and len(norm) and len(rate):
            numbers = [loss[0], loss[-1], np.median(norm), rate.max()]
            body.append([stage.name, *(f"{value:.2g}" for value in numbers)])
    if not body:
        return None
    header = ["stage", "first loss", "last loss", "median gradient norm", "highest learning rate"]
    ends = "; ".join(f"{stage} from {first} to {last}" for stage, first, last, *_ in body)
    alt = f"Loss, gradient norm and learning rate against updates. Loss: {ends}."
    figure = plot(figures.training_figure(run), name, alt)
    return {"plot": figure, "table": Table(header, body, [])}


def cost(run: RunFiles, name: str) -> dict | None:
    """What the stages cost against the teacher: plot, sentence and table."""
    found = costs(run)
    if not found:
        return None
    claim = _claim(run)
    total = int(run.real["total"]) if run.real is not None and "total" in run.real else 0
    teacher = found[0].seconds if found[0].stage.is_teacher else None
    body, seconds = [], 0.0
    for c in found:
        seconds += 0.0 if c.stage.is_teacher else c.seconds or 0.0
        body.append(
            [
                c.stage.name + ("" if c.finished else " (so far)"),
                f"{c.stage.step:,}",
                f"{c.images:,}",
                f"{c.images / total:,.1f}" if total else "",
                "" if c.seconds is None else duration(c.seconds),
                f"{seconds / teacher:.2f}" if teacher and not c.stage.is_teacher else "",
            ]
        )
    header = ["stage", "updates", "images seen", "epochs", "training time",
              "sum / teacher"]  # fmt: skip
    figure = plot(figures.cost_figure(run), name, f"Bars of training time and images. {claim}")
    return {"plot": figure, "claim": claim, "table": Table(header, body, [])}


def _claim(run: RunFiles) -> str:
    found = costs(run)
    rounds = [c for c in found if not c.stage.is_teacher and c.finished]
    teachers = [c for c in found if c.stage.is_teacher]
    if not teachers or not teachers[0].finished:
        return "The teacher is not done yet."
    if not teachers[0].stage.updates:
        return "The teacher was trained elsewhere: what it cost is not known here."
    if not rounds:
        return "No round of distillation is done yet."
    seconds, images = sum(c.seconds for c in rounds), sum(c.images for c in rounds)
    teacher = teachers[0]
    planned = sum(not stage.is_teacher for stage in run.stages)
    which = (
        f"All {planned} rounds" if len(rounds) == planned else f"{len(rounds)} of {planned} rounds"
    )
    which = which if planned > 1 else "The only round"

    def times(a, b):
        return f", {a / b:.2f} times the teacher's" if b else ", the teacher's"

    return (
        f"{which} took {duration(seconds)}{times(seconds, teacher.seconds)} "
        f"{duration(teacher.seconds)}, and saw {images:,} images"
        f"{times(images, teacher.images)} {teacher.images:,}."
    )


def picture(label: str, images: np.ndarray, alt: str) -> Picture:
    """Images [R, K, H, W, C] in R rows."""
    content = mosaic(images)
    src = "data:image/png;base64," + base64.b64encode(content).decode()
    # Size of a PNG: two numbers at a fixed place in its head.
    width, height = (int.from_bytes(content[n : n + 4], "big") for n in (16, 20))
    return Picture(label, src, width, height, alt)


def noises(run: RunFiles) -> list[Picture]:
    """One row of images for each stage, column for column from the same noise."""
    found = []
    for stage in run.stages:
        if stage.samples is not None:
            images = stage.samples["images"][:IN_A_ROW]
            alt = f"{len(images)} images of {stage.name}, {_at(stage)}"
            found.append(picture(f"{stage.name}: {_at(stage)}", images[None], alt))
    return found


def beside_data(run: RunFiles) -> list[Picture]:
    """Images of the data, of the teacher and of the last student."""
    found = []
    if run.real is not None:
        images = run.real["images"][:SIDE_BY_SIDE]
        found.append(_block("training images", images))
    sampled = [stage for stage in run.stages if stage.samples is not None]
    for stage in sampled[:1] + sampled[1:][-1:]:
        found.append(_block(f"{stage.name}: {_at(stage)}", stage.samples["images"][:SIDE_BY_SIDE]))
    return found


def _block(label: str, images: np.ndarray, columns: int = IN_A_ROW) -> Picture:
    columns = min(columns, len(images))
    rows = len(images) // columns
    images = images[: rows * columns].reshape(rows, columns, *images.shape[1:])
    return picture(label, images, f"{rows * columns} images: {label}")


def _at(stage: StageFiles) -> str:
    steps = (stage.row or {}).get("measured_steps", stage.num_steps)
    return f"{steps} step{'s' * (steps != 1)}"


def neighbours(run: RunFiles) -> dict | None:
    """A few samples of the last stage with their nearest training images."""
    stage = next((s for s in reversed(run.stages) if s.samples is not None), None)
    if stage is None:
        return None
    of = stage.samples
    near = of["nearest"].copy()  # [n, k, H, W, C]
    mirrored = of["nearest_mirrored"].astype(bool)
    near[mirrored] = near[mirrored][:, :, ::-1]
    count = len(near)
    rows = [picture("samples", of["images"][None, :count], f"{count} samples of {stage.name}")]
    for n, label in enumerate(("nearest", "second", "third")[: near.shape[1]]):
        alt = f"of each sample the {label} training image" + ("" if n == 0 else " by distance")
        rows.append(picture(label, near[None, :, n], alt))
    return {
        "rows": rows,
        "stage": stage.name,
        "cells": [f"{d:.0f}" for d in of["nearest_distances"][:, 0]],
        "text": _neighbour_text(run, of),
    }


def _neighbour_text(run: RunFiles, of: dict[str, np.ndarray]) -> str:
    all_ = of["distances"]
    total, compared = int(of["total"]), int(of["compared"])
    searched = f"All {total:,} training images were searched"
    if compared < total:
        searched = f"{compared:,} of the {total:,} training images, drawn at random, were searched"
    if run.value("data.random_flip"):
        searched += ", and their mirror images, since training mirrors at random"
    text = (
        f"{searched}. Distances are root mean squares over pixels, in levels of 0 to 255; a copy "
        f"would be at 0. {len(all_)} samples: median {np.median(all_):.1f}, least {all_.min():.1f}."
    )
    real = (run.real or {}).get("distances")
    if real is not None and len(real):
        text += (
            f" {len(real)} training images, each to the nearest other one: median "
            f"{np.median(real):.1f}, least {real.min():.1f}."
        )
    return text


def settings(runs: list[RunFiles]) -> list[dict]:
    """Sections of fields, each with its value in every run, its default, and what differs."""
    defaults = _flat(to_dict(base()))
    values = [_flat(run.config) for run in runs]
    names = dict.fromkeys([*defaults, *(name for fields in values for name in fields)])
    sections: dict[str, list] = {}
    for name in names:
        texts = [_text(fields, name) for fields in values]
        default = _text(defaults, name)
        section, _, field = name.rpartition(".")
        sections.setdefault(section, []).append(
            {
                "field": field,
                "values": [(text, text != default) for text in texts],
                "default": default,
                "differs": any(text != default for text in texts),
                "between": len(set(texts)) > 1,
            }
        )
    return [{"name": name or "the run", "fields": fields} for name, fields in sections.items()]


def _flat(fields: dict, prefix: str = "") -> dict:
    found = {}
    for name, value in fields.items():
        nested = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{name}.") if nested else {f"{prefix}{name}": value}
    return found


def _text(fields: dict, name: str) -> str:
    if name not in fields:
        return "(none)"
    value = fields[name]
    if isinstance(value, list):
        return ", ".join(map(str, value)) or "(none)"
    if isinstance(value, float):
        return f"{value:g}"  # 1 and 1.0 are one value: JSON keeps apart what a config does not
    return value if isinstance(value, str) and value else json.dumps(value)


# What a value of the wrong kind, in a file that could be read, ends in.
_DAMAGED = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)


def part(run: RunFiles, what: str, make: Callable):
    """make(), or None where the run's files do not allow it: then that is one of its problems."""
    try:
        return make()
    except _DAMAGED as error:
        run.problems.append(f"{what} could not be made of what is in the files: {error!r}")
        return None
