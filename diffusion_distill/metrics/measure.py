"""Measures requests as a config says, and keeps what was measured; what was stopped goes on.

Images go from the sampler to uint8 to features on the devices; features come to the host, and of
the rest only what a metric asks for.
While something is measured, its blocks of features are kept in files, and with them the results
of what is measured already.
"""

import contextlib
import dataclasses
import functools
import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import jax
import numpy as np
from jax.sharding import Mesh
from ml_collections import ConfigDict

from diffusion_distill.data import sources
from diffusion_distill.data.source import Source
from diffusion_distill.devices import compiler
from diffusion_distill.devices.distributed import everywhere, on_main
from diffusion_distill.devices.sharding import batched, place, replicated, rounded_up
from diffusion_distill.errors import UserError
from diffusion_distill.metrics import inception
from diffusion_distill.metrics.blocks import BlockStore, OnBatch
from diffusion_distill.metrics.classifier import LabelJudge, check_labels
from diffusion_distill.metrics.features import FeatureNetwork, pixels, thumbnails
from diffusion_distill.metrics.names import check_count
from diffusion_distill.metrics.reference import (
    Reference,
    check_cache,
    reference_from_file,
    reference_of,
)
from diffusion_distill.metrics.request import Request, Result
from diffusion_distill.metrics.yardstick import METRICS, Yardstick, check_feature_size
from diffusion_distill.storage.files import cache_folder, read_json, write_atomically
from diffusion_distill.terminal.console import say
from diffusion_distill.terminal.progress import Progress, RunLeft, no_run
from diffusion_distill.version import code_version

# Each: the path of its weights ("" for where they usually are) -> the network.
FEATURES = {"pixels": pixels, "thumbnails": thumbnails, "inception": inception.load}


def feature_network(config: ConfigDict, mesh: Mesh) -> FeatureNetwork:
    """The feature network of config.eval, compiled for batches that are split over the mesh.

    Raises:
        UserError: its weights are missing or damaged.
    """
    network = everywhere(lambda: FEATURES[config.eval.features](config.runtime.feature_weights))
    whole, rows = replicated(mesh), batched(mesh)
    options = compiler.options(mesh.devices.flat[0].platform)
    jit = functools.partial(jax.jit, out_shardings=rows, compiler_options=options)
    compiled = jit(network.apply, in_shardings=(whole, rows))

    @functools.wraps(network.apply)
    def apply(params, images):
        return compiled(params, place(images, rows) if isinstance(images, np.ndarray) else images)

    return dataclasses.replace(network, params=place(network.params, whole), apply=apply)


class Measurer:
    """Measures by the yardstick of config.eval; its reference is computed when first needed.

    A run sets `check`, which is called after each batch and raises where the work is to stop, and
    `run_left`, what progress says of all of the run.
    """

    def __init__(
        self,
        config: ConfigDict,
        mesh: Mesh,
        network: FeatureNetwork,
        image_shape: tuple[int, int, int],
        reference: Source | Reference,
        labelled: Source | None = None,
    ):
        """Checks what can be checked before anything is computed.

        Args:
            network: of `feature_network`.
            image_shape: (H, W, C) of the images that are to be measured.
            reference: real images to compare with, or what is known of some.
            labelled: real images with labels, for the judge of labels; None for no judge.

        Raises:
            UserError: the network takes no such images, the reference does not fit it, or nothing
                that is asked for can be measured.
        """
        self.config, self.mesh = config, mesh
        self.check: Callable[[], None] = lambda: None
        self.run_left: RunLeft = no_run
        self._network, self._reference, self._labelled = network, reference, labelled
        self._check_early(image_shape)

    @functools.cached_property
    def yardstick(self) -> Yardstick:
        """The metrics that config.eval asks for; computes the reference where none is kept."""
        judge = None
        if self._labelled is not None:
            judge = LabelJudge(self._labelled.images(), self._labelled.labels)
        asked = self.config.eval
        reference = self._computed_reference()
        return Yardstick(self._network, reference, tuple(asked.metrics), asked.allow_biased, judge)

    def reference_identity(self) -> dict:
        """What tells the reference from any other, wherever it is; as `Source.identity`."""
        real = self._reference
        if isinstance(real, Reference):
            return {"split": real.name, **real.made_of}
        return real.identity()

    @contextlib.contextmanager
    def progress(self, label: str, count: int) -> Iterator[OnBatch]:
        """Shows how far so many images are, and looks after each batch at whether to stop."""
        every = self.config.runtime.log_every_seconds
        with Progress(label, count, "images", every, 1, self.run_left) as shown:

            def on_batch(done: int, count: int) -> None:
                self.check()
                shown.update(done, say_last=False)  # what was measured is said next

            yield on_batch

    def batch_size(self, count: int) -> int:
        """Images of `count` to measure at once: a multiple of the devices."""
        return rounded_up(min(self.config.runtime.sampler_batch_size, count), self.mesh)

    def measure(self, request: Request, folder: Path, label: str) -> Result:
        """What a request asks for, measured now or kept from before; see `Yardstick.measure`.

        Blocks, and in the end the result, are kept in `folder`; whoever asks removes it. Lines of
        progress begin with `label`.
        """
        request_made_of = request.made_of | {
            "metrics": list(self.config.eval.metrics),
            "features": self._network.name,
            "network": self._network.fingerprint,
            "judge": self._labelled is not None,
        }
        result_made_of = request_made_of | {"reference": self.yardstick.reference.made_of}
        result = _kept(folder / "result.json", result_made_of)
        if result is None:
            store = BlockStore(folder / "blocks", request_made_of, say)
            with self.progress(label, request.count) as on_batch:
                result = self.yardstick.measure(request, store, on_batch)
            folder.mkdir(parents=True, exist_ok=True)
            fields = {"made_of": result_made_of, **dataclasses.asdict(result)}
            write_atomically(folder / "result.json", json.dumps(fields, indent=1) + "\n")
            store.clear()
        return dataclasses.replace(result, notes=result.notes | request.notes)

    def definition(self, count: int, seed: int | None = None) -> dict:
        """What a number is a number of, beside the names of the metrics."""
        seeded = {} if seed is None else {"seed": seed, "weights": "averaged"}
        return {
            "num_images": count,
            **seeded,
            "reference": self.yardstick.reference.made_of,
            "feature_weights": self._network.fingerprint,
            "code_version": code_version(),
            "device_kind": jax.devices()[0].device_kind,
            "devices": self.mesh.size,
        }

    def _computed_reference(self) -> Reference:
        real = self._reference
        if isinstance(real, Reference):
            return real
        size, cache = self.batch_size(len(real)), cache_folder(self.config.runtime.cache_dir)
        with self.progress("reference", len(real)) as on_batch:
            return reference_of(real, self._network, size, cache, say=say, on_batch=on_batch)

    def _check_early(self, image_shape: tuple[int, int, int]) -> None:
        """What would else be found out after the teacher was trained."""
        evaluation, name, real = self.config.eval, self._network.name, self._reference
        features, logits = self._features(image_shape)
        if self._labelled is not None:
            check_labels(self._labelled.labels, self._labelled.name)
        first, why = METRICS[evaluation.metrics[0]], ""
        count = min(evaluation.num_images, evaluation.baseline_images or evaluation.num_images)
        if isinstance(real, Reference):
            check_feature_size(features.shape[1], real)
        else:
            self._check_real(real, features)
            count = min(count, len(real)) if first.has_reference else count
        if count < first.least:
            why = f"it takes at least {first.least} images, not {count}"
        if first.needs_logits and logits is None:
            why = f"config.eval.features, {name}, gives no logits"
        if first.needs_features and isinstance(real, Reference) and real.features is None:
            why = "config.eval.reference has statistics only"
        if why:
            raise UserError(
                f"config.eval.metrics is {tuple(evaluation.metrics)}; the first of them cannot be "
                f"measured: {why}"
            )

    def _features(self, image_shape: tuple[int, int, int]) -> tuple:
        """Shapes of the features and logits of images [H, W, C]; UserError where there are none."""
        images = jax.ShapeDtypeStruct((self.mesh.size, *image_shape), np.uint8)
        try:
            apply = inspect.unwrap(self._network.apply)  # compiled as a whole, never within
            return jax.eval_shape(apply, self._network.params, images)
        except (TypeError, ValueError) as error:
            shape = "x".join(map(str, image_shape))
            raise UserError(f"{self._network.name} takes no images of {shape}: {error}") from None

    def _check_real(self, real: Source, features: jax.ShapeDtypeStruct) -> None:
        """Whether the reference can be computed of these images, compared with, and kept."""
        evaluation, what = self.config.eval, f"the number of images of {real.name}, {real.split},"
        if "fd" in evaluation.metrics:
            check_count(self._network.name, len(real), evaluation.allow_biased, what)
        if len(real) < 2:
            raise UserError(f"{what} is {len(real)}; a reference takes at least 2")
        if self._features(real.image_shape)[0].shape != features.shape:
            size = "x".join(map(str, real.image_shape))
            raise UserError(f"{real.name}, {real.split}, has images of another size, {size}")
        cache = cache_folder(self.config.runtime.cache_dir)
        on_main(lambda: check_cache(real, self._network, cache))


def for_run(config: ConfigDict, source: Source, mesh: Mesh) -> Measurer:
    """What the stages of a run that trains on `source` are measured with.

    Raises:
        UserError: weights, the reference or its split are missing; or see `Measurer`.
    """
    network = feature_network(config, mesh)
    labelled = source if config.eval.label_agreement else None
    reference = config_reference(config, source)
    return Measurer(config, mesh, network, source.image_shape, reference, labelled)


def config_reference(config: ConfigDict, source: Source | None = None) -> Source | Reference:
    """What config.eval compares with: another project's statistics, or all images of a split.

    `source` is what is trained on, where that is there already.

    Raises:
        UserError: it cannot be had.
    """
    evaluation = config.eval
    if evaluation.reference:
        return everywhere(lambda: reference_from_file(evaluation.reference))
    if source is not None and evaluation.split in ("", source.split):
        return source
    cache = cache_folder(config.runtime.cache_dir)
    return everywhere(lambda: sources.load(config.data, evaluation.split or None, cache))


def _kept(path: Path, made_of: dict) -> Result | None:
    """The result in a file, where there is one and it is made of this."""
    with contextlib.suppress(UserError, KeyError):
        found = on_main(lambda: read_json(path))
        if found["made_of"] == made_of:
            return Result(found["values"], found["spreads"], found["notes"])
    return None
