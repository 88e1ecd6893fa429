"""Measures samplers and sets of images, as a config says; what was stopped goes on.

Images go from the sampler to uint8 to features on the devices; only features come to the host.
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
import ml_collections
import numpy as np
from jax.sharding import Mesh

from diffusion_distill.data import sources
from diffusion_distill.data.source import Source
from diffusion_distill.devices import compiler
from diffusion_distill.devices.distributed import everywhere, on_main
from diffusion_distill.devices.sharding import batched, place, replicated, rounded_up
from diffusion_distill.errors import UserError
from diffusion_distill.generate import Sampler
from diffusion_distill.metrics.blocks import BlockStore, OnBatch
from diffusion_distill.metrics.classifier import LabelJudge
from diffusion_distill.metrics.evaluator import METRICS, Evaluator, Measured, check_size
from diffusion_distill.metrics.features import FEATURES, FeatureNetwork
from diffusion_distill.metrics.names import check_count
from diffusion_distill.metrics.reference import Reference, reference_from_file, reference_of, subset
from diffusion_distill.storage.files import cache_folder, read_json, write_atomically
from diffusion_distill.terminal.console import say
from diffusion_distill.terminal.progress import Progress, RunLeft, no_run
from diffusion_distill.version import code_version


def cache_dir(config: ml_collections.ConfigDict) -> Path:
    """The cache folder of a run's config; it may not be there yet."""
    return cache_folder(config.runtime.cache_dir)


def feature_network(config: ml_collections.ConfigDict, mesh: Mesh) -> FeatureNetwork:
    """The feature network of config.eval, compiled for batches that are split over the mesh.

    Raises:
        UserError: its weights are missing or damaged.
    """
    network = everywhere(lambda: FEATURES[config.eval.features](config.runtime.feature_weights))
    whole, rows = replicated(mesh), batched(mesh)
    compiled = jax.jit(
        network.apply,
        in_shardings=(whole, rows),
        out_shardings=rows,
        compiler_options=compiler.options(mesh.devices.flat[0].platform),
    )

    @functools.wraps(network.apply)
    def apply(params, images):
        return compiled(params, place(images, rows) if isinstance(images, np.ndarray) else images)

    return dataclasses.replace(network, params=place(network.params, whole), apply=apply)


def batch_size(config: ml_collections.ConfigDict, mesh: Mesh, count: int) -> int:
    """Images of `count` to measure at once: a multiple of the devices."""
    return rounded_up(min(config.runtime.sampler_batch_size, count), mesh)


class Measurer:
    """What a run's stages are measured with; the reference is computed when first needed."""

    def __init__(
        self,
        config: ml_collections.ConfigDict,
        source: Source,
        mesh: Mesh,
        check: Callable[[], None] = lambda: None,
        reference: Source | None = None,
    ):
        """Checks what can be checked before anything is computed.

        Args:
            config: a run's.
            source: its data; or the images to measure.
            mesh: the devices.
            check: called after each batch; raises where the work is to stop.
            reference: images to compare with, in place of those that config.eval names; metric
                names have its split.

        Raises:
            UserError: weights, the reference or its split are missing, or nothing that is asked
                for can be measured.
        """
        self.config, self.mesh = config, mesh
        self._source, self.check = source, check
        self.run_left: RunLeft = no_run  # the run that asks may set its own
        self._network = feature_network(config, mesh)
        self._real = reference or self._source_of_reference()
        self._evaluator = None
        self._check_early()

    @property
    def evaluator(self) -> Evaluator:
        """Of the metrics that config.eval asks for."""
        if self._evaluator is None:
            evaluation = self.config.eval
            judge = None
            if evaluation.label_agreement:
                judge = LabelJudge(self._source.images(), self._source.labels)
            self._evaluator = Evaluator(
                self._network, self._reference(), evaluation.metrics, evaluation.allow_biased, judge
            )
        return self._evaluator

    @contextlib.contextmanager
    def progress(self, label: str, count: int) -> Iterator[OnBatch]:
        """Shows how far so many images are, and looks after each batch at whether to stop."""
        every = self.config.runtime.log_every_seconds
        with Progress(label, count, "images", every, 1, self.run_left) as shown:

            def on_batch(done: int, count: int) -> None:
                self.check()
                shown.update(done, say_last=False)  # what was measured is said next

            yield on_batch

    def images(self, source: Source, count: int, folder: Path, label: str) -> Measured:
        """Measures `count` images of a source; see `sampler` for the other arguments.

        Where it has more, those are drawn at random, once and for all: the first ones by name are
        often of a few classes.

        Raises:
            UserError: it has fewer, or they are of another size than the reference.
        """
        if count > len(source):
            raise UserError(f"{count} images were asked for; {source.name} has {len(source)}")
        if self._real is not None and source.image_shape != self._real.image_shape:
            a, b = ("x".join(map(str, s.image_shape)) for s in (source, self._real))
            raise UserError(
                f"{source.name} has images of {a}, the reference {self._real.name} of {b}; they "
                "must be of one size, and how they are resized moves the distance"
            )
        chosen = subset(len(source), count)
        made_of = {"images": source.fingerprint, "count": count, "chosen": "at random"}
        size = batch_size(self.config, self.mesh, count)

        def measure(store: BlockStore) -> Measured:
            with self.progress(label, count) as on_batch:
                return self.evaluator.measure(
                    lambda indices: source.images(chosen[indices]),
                    count,
                    size,
                    store=store,
                    on_batch=on_batch,
                )

        measured = self._kept(folder, made_of, measure)
        if count < len(source):
            note = f"{count:,} of {len(source):,}, drawn at random, the same at each start"
            measured.notes["images"] = note
        return measured

    def sampler(
        self,
        sampler: Sampler,
        count: int,
        seed: int,
        folder: Path,
        label: str,
        made_of: dict,
        only: str | None = None,
    ) -> Measured:
        """Measures what a sampler makes, or finds it measured already.

        Args:
            sampler: measured on images 0 to count - 1.
            count: of the images.
            seed: of the images.
            folder: where blocks, and in the end the result, are kept; whoever asks removes it.
            label: what lines of progress begin with.
            made_of: plain JSON values that tell its weights from any others.
            only: see `Evaluator.measure`.
        """
        labels = sampler.check(seed, count)
        made_of = made_of | {
            "num_steps": sampler.num_steps, "seed": seed, "count": count, "only": only or "",
            "ancestral_variance": self.config.eval.ancestral_variance,
        }  # fmt: skip

        def measure(store: BlockStore) -> Measured:
            with self.progress(label, count) as on_batch:
                return self.evaluator.measure(
                    lambda indices: sampler.on_devices(seed, indices, labels),
                    count,
                    sampler.batch_size(count),
                    labels,
                    store,
                    on_batch,
                    only,
                )

        return self._kept(folder, made_of, measure)

    def definition(self, count: int, seed: int | None = None) -> dict:
        """What a number is a number of, beside the names of the metrics."""
        seeded = {} if seed is None else {"seed": seed, "weights": "averaged"}
        return {
            "num_images": count,
            **seeded,
            "reference": self.evaluator.reference.made_of,
            "feature_weights": self._network.fingerprint,
            "code_version": code_version(),
            "device_kind": jax.devices()[0].device_kind,
            "devices": self.mesh.size,
        }

    def _kept(
        self, folder: Path, made_of: dict, measure: Callable[[BlockStore], Measured]
    ) -> Measured:
        """The result in the folder, or else that of measure(store), which is then put there."""
        made_of = made_of | {
            "metrics": list(self.config.eval.metrics),
            "features": self._network.name,
            "network": self._network.fingerprint,
            "judge": self.config.eval.label_agreement,
        }
        key = made_of | {"reference": self.evaluator.reference.made_of}
        path = folder / "result.json"
        with contextlib.suppress(UserError, KeyError):
            found = on_main(lambda: read_json(path))
            if found["made_of"] == key:
                return Measured(found["values"], found["notes"])
        store = BlockStore(folder / "blocks", made_of, say)
        measured = measure(store)
        folder.mkdir(parents=True, exist_ok=True)
        fields = {"made_of": key, "values": measured.values, "notes": measured.notes}
        write_atomically(path, json.dumps(fields, indent=1) + "\n")
        store.clear()
        return measured

    def _source_of_reference(self) -> Source | None:
        """The images to compare with; None where a file of statistics is given."""
        evaluation = self.config.eval
        if evaluation.reference:
            return None
        if evaluation.split in ("", self._source.split):
            return self._source
        return everywhere(
            lambda: sources.load(self.config.data, evaluation.split, cache_dir(self.config))
        )

    def _reference(self) -> Reference:
        if self._real is None:
            return everywhere(lambda: reference_from_file(self.config.eval.reference))
        size = batch_size(self.config, self.mesh, len(self._real))
        with self.progress("reference", len(self._real)) as on_batch:
            return reference_of(
                self._real, self._network, size, cache_dir(self.config), say=say, on_batch=on_batch
            )

    def _check_early(self) -> None:
        """What would else be found out after the teacher was trained."""
        evaluation, name = self.config.eval, self._network.name
        images = jax.ShapeDtypeStruct((self.mesh.size, *self._source.image_shape), np.uint8)
        try:
            apply = inspect.unwrap(self._network.apply)  # compiled as a whole, never within
            features, logits = jax.eval_shape(apply, self._network.params, images)
        except (TypeError, ValueError) as error:
            shape = "x".join(map(str, self._source.image_shape))
            raise UserError(f"{name} takes no images of {shape}: {error}") from None
        if self._real is None:
            check_size(features.shape[1], self._reference())
        elif "fd" in evaluation.metrics:
            what = f"the number of images of {self._real.name}, {self._real.split},"
            check_count(name, len(self._real), evaluation.allow_biased, what)
        first = METRICS[evaluation.metrics[0]]
        why = ""
        counts = [evaluation.num_images, evaluation.baseline_images or evaluation.num_images]
        if min(counts) < first.least:
            why = f"it takes at least {first.least} images, not {min(counts)}"
        if first.needs_logits and logits is None:
            why = f"config.eval.features, {name}, gives no logits"
        if first.needs_features and self._real is None:
            why = "config.eval.reference has statistics only"
        if why:
            raise UserError(
                f"config.eval.metrics is {tuple(evaluation.metrics)}; the first of them cannot be "
                f"measured: {why}"
            )
