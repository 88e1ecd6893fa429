"""The numbers behind the plots are those that the run wrote."""

import json
import math

import numpy as np
import pytest

from configs import cifar10_distill, imagenet64_distill
from diffusion_distill.paper import DATASETS
from diffusion_distill.report.run import differ, read_run
from diffusion_distill.report.series import (
    benchmark,
    chain_curves,
    distances,
    paper_series,
    plotted_metrics,
    spent,
)
from diffusion_distill.storage.files import read_rows, write_rows
from tests.report.conftest import METRIC, value_of, write_run


def points(series):
    return {p.num_steps: p.mean for p in series.points}


def test_the_headline_has_every_number_of_the_results(digits_run):
    rows = read_rows(digits_run / "results.jsonl")
    students, ddim, ancestral = distances(read_run(digits_run))[METRIC]
    assert points(students) == {r["num_steps"]: r[METRIC] for r in rows[1:]}
    assert points(ddim) == {int(n): v for n, v in rows[0]["baselines"]["ddim"].items()}
    assert points(ancestral) == {int(n): v for n, v in rows[0]["baselines"]["ancestral"].items()}
    assert [(s.sampler, s.distilled) for s in (students, ddim, ancestral)] == [
        ("ddim", True), ("ddim", False), ("ancestral", False),
    ]  # fmt: skip


def test_of_a_real_run_too(finished):
    rows = read_rows(finished[0] / "results.jsonl")
    metric = rows[0]["metric"]
    students, *_ = distances(read_run(finished[0]))[metric]
    assert points(students) == {r["num_steps"]: r[metric] for r in rows[1:]}


def test_seeds_that_were_measured_later_make_means_and_spreads(digits_run):
    later = {"stage": "student_0004", "sampler": "ddim", "num_steps": 4, "metrics": [METRIC]}
    values = {1: value_of(4), 2: 0.6, 3: 0.7}  # seed 1 is the run's own, measured again
    write_rows(
        digits_run / "evaluations.jsonl",
        [later | {"seed": seed, METRIC: value} for seed, value in values.items()]
        + [{"stage": "teacher", "sampler": "dpmpp_2m", "num_steps": 8, "metrics": [METRIC],
            "seed": 1, METRIC: 0.4}],
    )  # fmt: skip
    students, *_, solver = distances(read_run(digits_run))[METRIC]
    (point,) = [p for p in students.points if p.num_steps == 4]
    assert point.seeds == 3
    assert point.mean == pytest.approx((0.5 + 0.6 + 0.7) / 3)
    assert point.std == pytest.approx(0.1)
    assert (solver.sampler, points(solver)) == ("dpmpp_2m", {8: 0.4})
    assert all(p.std is None for p in students.points if p.num_steps != 4)


def test_a_line_is_of_one_reference(digits_run):
    """Also where another file had the same name; what cannot be compared is told."""
    rows = read_rows(digits_run / "results.jsonl")
    for row in rows:
        row["reference"] = {"fingerprint": "a", "version": "0.1"}
    write_rows(digits_run / "results.jsonl", rows)
    later = {"stage": "student_0004", "sampler": "ddim", "num_steps": 4, "metrics": [METRIC]}
    evaluations = [
        later | {"seed": seed, METRIC: 0.6, "reference": {"fingerprint": fingerprint}}
        for seed, fingerprint in ((2, "a"), (3, "b"), (4, "content-a"))
    ]
    evaluations.append(evaluations[1] | {"metrics": ["fd_pixels1k_test"], "fd_pixels1k_test": 1.0})
    write_rows(digits_run / "evaluations.jsonl", evaluations)
    run = read_run(digits_run)
    (point,) = [p for p in distances(run)[METRIC][0].points if p.num_steps == 4]
    assert point.seeds == 3  # of another version's fingerprint nothing is known
    assert len(distances(run)["fd_pixels1k_test"]) == 1
    assert run.problems == [
        "evaluations.jsonl compares with other images than results.jsonl: 1 of its rows are left "
        "out"
    ]


def test_fingerprints_are_compared_with_those_of_their_kind():
    assert not differ({"a"})
    assert differ({"a", "b"})
    assert not differ({"a", "content-b"})
    assert differ({"a", "content-b", "content-c"})


def test_baselines_of_fewer_images_are_another_metric(digits_run):
    rows = read_rows(digits_run / "results.jsonl")
    rows[0]["baseline_metric"] = "fd_pixels100_train"
    write_rows(digits_run / "results.jsonl", rows)
    run = read_run(digits_run)
    assert plotted_metrics([run]) == [METRIC, "fd_pixels100_train"]
    assert [s.distilled for s in distances(run)["fd_pixels100_train"]] == [False, False]
    assert [len(s.points) for s in distances(run)[METRIC]] == [5, 1]


def test_a_teacher_made_for_its_steps_is_one_of_the_students(digits_run):
    fields = json.loads((digits_run / "config.json").read_text()) | {"teacher_num_steps": 32}
    (digits_run / "config.json").write_text(json.dumps(fields))
    rows = read_rows(digits_run / "results.jsonl")
    rows[0]["baselines"] = {}
    write_rows(digits_run / "results.jsonl", rows)
    (students,) = distances(read_run(digits_run))[METRIC]
    assert list(points(students)) == [1, 2, 4, 8, 16, 32]


def test_the_papers_numbers_stand_only_beside_the_same_quantity(cifar10_run, digits_run, tmp_path):
    run = read_run(cifar10_run)
    distilled, ddim = paper_series(run, "fid50k_train")
    assert points(distilled) == {1: 9.12, 2: 4.51, 4: 3.00, 8: 2.57}
    assert points(ddim) == {10: 13.36, 20: 6.84, 50: 4.67, 8192: 2.51}
    for other in ("fid10k_train", "fid50k_test", "kid50k_train", "fid50k_train_biased"):
        assert paper_series(run, other) == []
    assert benchmark(read_run(digits_run)) is None
    imagenet = write_run(
        tmp_path / "imagenet", imagenet64_distill.get_config(), (64, 64, 3), measured=0
    )
    assert benchmark(read_run(imagenet)) is DATASETS["imagenet64"]
    assert paper_series(read_run(imagenet), "fid50k_train") == []
    grey = write_run(tmp_path / "grey", cifar10_distill.get_config(), (8, 8, 1), measured=0)
    assert benchmark(read_run(grey)) is None


def test_stages_that_are_not_measured_have_no_point(cifar10_run):
    run = read_run(cifar10_run)
    students, ddim, _ = distances(run)["fid50k_train"]
    assert list(points(students)) == [16, 32, 64, 128]
    assert list(points(ddim)) == [1, 2, 4, 8, 16, 32, 64, 128]


def test_curves_run_over_the_whole_chain(digits_run):
    curves, borders = chain_curves(read_run(digits_run))
    assert borders[:3] == [
        ("teacher", 0, 1200), ("student_0016", 1200, 1400), ("student_0008", 1400, 1600),
    ]  # fmt: skip
    x, mean, low, high = curves["loss"][1]
    np.testing.assert_allclose(x.max(), 1400, atol=6)  # a bin is 2400 / 400 updates wide
    assert np.all(low <= mean)
    assert np.all(mean <= high)
    assert low.min() == 1 / 200
    assert high.max() == 1 / 4


def test_long_logs_are_drawn_from_few_points_that_lose_no_peak(tmp_path):
    workdir = write_run(tmp_path / "run", measured=0)
    rows = [{"step": n, "loss": 1000.0 if n == 777 else 1.0} for n in range(1, 1201)]
    write_rows(workdir / "teacher/metrics.jsonl", rows)
    curves, _ = chain_curves(read_run(workdir))
    x, mean, low, high = curves["loss"][0]
    assert len(x) <= 201
    assert (low.min(), high.max()) == (1.0, 1000.0)
    assert np.average(mean, weights=np.diff(np.append(0, np.rint(x)))) < 10
    assert curves["grad_norm"] == []


def test_costs_are_of_what_is_done_and_of_what_is_being_done(cifar10_run):
    found = spent(read_run(cifar10_run))
    assert [c.finished for c in found] == [True] * 10 + [False]
    assert (found[0].images, found[0].seconds) == (800_000 * 128, 10.0)
    assert (found[-1].images, found[-1].seconds) == (20_000 * 128, None)
    assert math.isclose(sum(c.seconds for c in found[1:10]), sum(range(11, 20)))
