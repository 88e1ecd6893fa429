"""The page: what is typed becomes a question to a World, and what it draws becomes HTML."""

import base64
import functools
import html
import os
from collections.abc import Callable, Iterator, Sequence

# Before gradio is imported: it reads them then, and would report its use to its makers.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"

import gradio as gr
import numpy as np

from diffusion_distill.errors import CheckpointError, UserError
from diffusion_distill.explore import world as worlds
from diffusion_distill.explore.world import MAX_IMAGES, Column, Picture, World, whole_number
from diffusion_distill.report.grid import png

WAITING = 8  # requests that wait for the one that is drawn; more are refused
LARGEST_SEED = 2**31 - 1
MOST_STEPS = 8192  # the paper's longest chain starts there

# Fonts of the machine: gradio's own theme names some of its own.
THEME = gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["ui-monospace", "monospace"])

CSS = """
.images { display: grid; gap: 4px; }
.images.large { grid-template-columns: repeat(8, minmax(0, 1fr)); }
.images.small { grid-template-columns: repeat(4, minmax(0, 1fr)); }
.images img { width: 100%; image-rendering: pixelated; display: block; margin: 0; }
.columns { display: grid; grid-template-columns: repeat(4, minmax(0, 1fr)); gap: 1.2em; }
.columns h3, .columns p, .said { margin: 0.4em 0; }
.absent { aspect-ratio: 2; display: grid; place-items: center; text-align: center;
  border: 1px dashed currentColor; opacity: 0.7; padding: 0.5em; }
.refused { border-left: 4px solid #b91c1c; padding: 0.5em 0.8em; }
#draw, #walk { align-self: end; }
@media (max-width: 640px) {
  .columns { grid-template-columns: repeat(2, minmax(0, 1fr)); }
  .images.large { grid-template-columns: repeat(4, minmax(0, 1fr)); }
}
"""


def images_html(images: np.ndarray, size: str, alt: str) -> str:
    """uint8 images [N, H, W, C], each a PNG inside the page: no file is served.

    The size is "large" or "small"; `alt` is what they are, and each adds its place.
    """
    tags = ""
    for n, image in enumerate(images):
        source = f"data:image/png;base64,{base64.b64encode(png(image)).decode()}"
        tags += f'<img alt="{html.escape(alt)}, image {n}" src="{source}">'
    return f'<div class="images {size}">{tags}</div>'


def steps_text(num_steps: int) -> str:
    return f"{num_steps} step" if num_steps == 1 else f"{num_steps} steps"


def seconds_text(seconds: float) -> str:
    return f"{1000 * seconds:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def picture_html(picture: Picture, what: str) -> str:
    """A picture with who drew it, and in what time."""
    count, seconds = len(picture.images), picture.seconds
    who = f"{picture.stage} in {steps_text(picture.num_steps)}"
    times = f"{seconds_text(seconds)} ({seconds_text(seconds / count)} an image)"
    said = html.escape(f"{count} image{'s' * (count > 1)} by {who}: {times}")
    shown = images_html(picture.images, "large", f"{what} by {who}")
    return f'{shown}<p class="said">{said}</p>'


def columns_html(columns: Sequence[Column]) -> str:
    """Columns side by side: the student's picture, and the teacher's below it."""
    return f'<div class="columns">{"".join(map(_column_html, columns))}</div>'


def _column_html(column: Column) -> str:
    steps = steps_text(column.num_steps)
    shown = f"<h3>{steps}</h3>"
    for who, picture in (("student", column.student), ("teacher", column.teacher)):
        if picture is None:
            shown += f'<div class="absent">no {who} of {steps} in this run</div>'
        else:
            name = picture.stage if who == "student" else "teacher, undistilled, DDIM"
            shown += images_html(picture.images, "small", f"{name} in {steps}")
            shown += f"<p>{name}: {seconds_text(picture.seconds)}</p>"
    return f"<div>{shown}</div>"


def answered(handler: Callable[..., Iterator[str]]) -> Callable[..., Iterator[str]]:
    """The handler, with what a person can put right answered in the page."""

    @functools.wraps(handler)
    def wrapped(*inputs):
        try:
            yield from handler(*inputs)
        except (UserError, CheckpointError, OSError) as error:
            yield f'<p class="said refused" role="alert">{html.escape(str(error))}</p>'

    return wrapped


class Handlers:
    """What the buttons do: each takes what was typed, and yields HTML until it is done."""

    def __init__(self, world: World):
        self._world = world

    @answered
    def samples(self, stage, steps, seed, label, guidance, count) -> Iterator[str]:
        seed, label = _seed("seed", seed), self._world.label(label)
        steps, w = _steps(steps), self._world.guidance(guidance)
        count = whole_number("images", count, 1, MAX_IMAGES)
        yield from self._announce([stage])
        for picture in self._world.samples(stage, steps, seed, label, count, w):
            yield picture_html(picture, f"Samples of seed {seed}")

    @answered
    def compare(self, seed, label, guidance) -> Iterator[str]:
        w = self._world.guidance(guidance)
        asked = _seed("seed", seed), self._world.label(label), w
        yield from self._announce(self._world.compared_names())
        for columns in self._world.compare(*asked):
            yield columns_html(columns)

    @answered
    def walk(self, stage, steps, seed, to_seed, label, guidance) -> Iterator[str]:
        steps, label = _steps(steps), self._world.label(label)
        w = self._world.guidance(guidance)
        seeds = _seed("seed", seed), _seed("second seed", to_seed)
        yield from self._announce([stage])
        picture = self._world.walk(stage, steps, seeds, label, w)
        yield picture_html(picture, f"A walk from seed {seeds[0]} to seed {seeds[1]}")

    def made_for(self, stage) -> str:
        """The steps that a stage is made for, to be filled in when it is chosen."""
        return next((str(s.num_steps) for s in self._world.stages() if s.name == stage), "")

    def _announce(self, names: list[str]) -> Iterator[str]:
        if said := self._world.announcement(names):
            yield f'<p class="said" role="status">First {html.escape(said)}...</p>'


def _steps(text: str) -> int:
    return whole_number("steps", text, 1, MOST_STEPS)


def _seed(name: str, text: str) -> int:
    return whole_number(name, text, 0, LARGEST_SEED)


def choices(world: World) -> list[tuple[str, str]]:
    """(shown, name) of the stages that are finished by now, the last one first."""
    return [(f"{s.name} ({steps_text(s.num_steps)})", s.name) for s in reversed(world.stages())]


def build(world: World) -> gr.Blocks:
    """The page. One request is drawn at a time, WAITING wait, more are refused."""
    handlers = Handlers(world)
    last = world.stages()[-1]
    height, width, _ = world.run.image_shape
    title = f"Explore {world.run.path.absolute().name}"
    with gr.Blocks(title=title, analytics_enabled=False) as page:
        gr.Markdown(
            f"# {title}\n"
            f"Images of {height}x{width} pixels by the finished stages of this run. An image is a "
            "function of its seed, its place among the images, and its label: every stage starts "
            "from the same noise, so that the same place shows what each halving kept."
        )
        with gr.Row():
            stage = gr.Dropdown(
                choices(world), value=last.name, label="Stage", elem_id="stage", min_width=260
            )
            steps = _box("Steps", "steps", str(last.num_steps), "a student's own; the teacher any")
            seed = _box("Seed", "seed", "0", f"0 to {LARGEST_SEED}")
            most = world.num_classes - 1
            label = _box("Label", "label", "", f"0 to {most}; empty for all in turn", most >= 0)
            info = "w towards the label: 0 is none; others write 1 + w"
            guidance = _box("Guidance", "guidance", "", info, world.knows_guidance())
        with gr.Tab("Samples"):
            gr.Markdown("Images of the stage, steps, seed and label above.")
            with gr.Row():
                count = _box("Images", "images", "16", f"1 to {MAX_IMAGES}")
                draw = gr.Button("Draw", variant="primary", elem_id="draw")
            drawn = gr.HTML(elem_id="drawn")
        with gr.Tab("Side by side"):
            *few, most_steps = worlds.COMPARED
            gr.Markdown(
                f"The same noise in {', '.join(map(str, few))} and {most_steps} steps, of the seed "
                "and label above: on top by the student that was distilled for so many, below it "
                "by the teacher, undistilled, with as many steps of DDIM. What differs between the "
                "two is what distillation buys."
            )
            compare = gr.Button("Compare", variant="primary", elem_id="compare")
            compared = gr.HTML(elem_id="compared")
        with gr.Tab("Walk"):
            gr.Markdown(
                f"{worlds.FRAMES} images of the stage and steps above, on the way from the first "
                "image of the seed above to the first of a second seed, all of one label. The way "
                "is an arc, not a line: noise of many pixels lies close to a sphere, and half way "
                "on a straight line it would have half the variance, which no network was trained "
                "on."
            )
            with gr.Row():
                to_seed = _box("Second seed", "to_seed", "1", f"0 to {LARGEST_SEED}")
                walk = gr.Button("Walk", variant="primary", elem_id="walk")
            walked = gr.HTML(elem_id="walked")
        gr.Markdown(
            f"Requests are drawn one after the other; {WAITING} may wait. What would take longer "
            f"than {worlds.MAX_SECONDS:.0f} s on this machine is refused. Times are of sampling "
            f"alone, {worlds.BATCH} images at once."
        )
        asked = [stage, steps, seed, label, guidance, count]
        quick = {"queue": False, "show_progress": "hidden"}
        queued = {"concurrency_id": "drawing", "concurrency_limit": 1}
        stage.change(handlers.made_for, stage, steps, **quick)
        page.load(lambda: gr.Dropdown(choices(world)), None, stage, **quick)
        gr.on([page.load, draw.click], handlers.samples, asked, drawn, **queued)
        compare.click(handlers.compare, [seed, label, guidance], compared, **queued)
        walk.click(handlers.walk, [stage, steps, seed, to_seed, label, guidance], walked, **queued)
    return page.queue(max_size=WAITING, api_open=False)  # nothing is drawn past the queue


def _box(label: str, elem_id: str, value: str, info: str, visible: bool = True) -> gr.Textbox:
    """A field for a number; text, so that what is no number is answered like any other mistake."""
    return gr.Textbox(
        value, label=label, info=info, elem_id=elem_id, visible=visible, min_width=120, max_lines=1
    )
