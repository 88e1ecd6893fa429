"""The sections of a report that have images: samples of each stage, beside the data's."""

import base64
import dataclasses

import numpy as np

from diffusion_distill.report.grid import mosaic, png
from diffusion_distill.report.run import RunFiles, StageFiles

IN_A_ROW = 10  # samples of each stage that are shown under one another
SIDE_BY_SIDE = 40  # images of a set that is shown whole


@dataclasses.dataclass(frozen=True)
class Mosaic:
    """Images in rows, as one PNG."""

    label: str  # what they are called
    src: str  # the PNG as a data: address
    width: int  # of it, in pixels
    height: int
    alt: str  # what it shows, in words


def _mosaic(label: str, images: np.ndarray, alt: str) -> Mosaic:
    """Images [R, K, H, W, C] in R rows."""
    canvas = mosaic(images)
    height, width, _ = canvas.shape
    src = "data:image/png;base64," + base64.b64encode(png(canvas)).decode()
    return Mosaic(label, src, width, height, alt)


def noises(run: RunFiles) -> list[Mosaic]:
    """One row of images for each stage, column for column from the same noise."""
    found = []
    for stage in run.stages:
        if stage.samples is not None:
            images = stage.samples["images"][:IN_A_ROW]
            alt = f"{len(images)} images of {stage.name}, {_at(stage)}"
            found.append(_mosaic(f"{stage.name}: {_at(stage)}", images[None], alt))
    return found


def beside_data(run: RunFiles) -> list[Mosaic]:
    """Images of the data, of the teacher and of the last student."""
    sets = [] if run.real is None else [("training images", run.real)]
    sampled = [stage for stage in run.stages if stage.samples is not None]
    for stage in sampled[:1] + sampled[1:][-1:]:
        sets.append((f"{stage.name}: {_at(stage)}", stage.samples))
    found = []
    for label, arrays in sets:
        images = arrays["images"][:SIDE_BY_SIDE]
        columns = min(IN_A_ROW, len(images))
        images = images[: len(images) // columns * columns]
        rows = images.reshape(-1, columns, *images.shape[1:])
        found.append(_mosaic(label, rows, f"{len(images)} images: {label}"))
    return found


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
    alt = f"{len(near)} samples of {stage.name}"
    rows = [_mosaic("samples", of["images"][None, : len(near)], alt)]
    for n, label in enumerate(("nearest", "second", "third")[: near.shape[1]]):
        alt = f"of each sample the {label} training image" + ("" if n == 0 else " by distance")
        rows.append(_mosaic(label, near[None, :, n], alt))
    return {
        "rows": rows,
        "stage": stage.name,
        "cells": [f"{d:.0f}" for d in of["nearest_distances"][:, 0]],
        "text": _neighbour_text(run, of),
    }


def _neighbour_text(run: RunFiles, of: dict[str, np.ndarray]) -> str:
    total, compared = int(of["total"]), int(of["compared"])
    searched = f"All {total:,} training images were searched"
    if compared < total:
        searched = f"{compared:,} of the {total:,} training images, drawn at random, were searched"
    if run.value("data.random_flip"):
        searched += ", and their mirror images, since training mirrors at random"

    def told(what: str, distances: np.ndarray) -> str:
        middle, least = np.median(distances), distances.min()
        return f"{len(distances)} {what}: median {middle:.1f}, least {least:.1f}."

    text = (
        f"{searched}. Distances are root mean squares over pixels, in levels of 0 to 255; a copy "
        f"would be at 0. {told('samples', of['distances'])}"
    )
    real = (run.real or {}).get("distances")
    if real is not None and len(real):
        text += " " + told("training images, each to the nearest other one", real)
    return text
