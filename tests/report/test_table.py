"""The table of a run."""

from diffusion_distill.report.table import lower_is_better, meaning, results_table

ROWS = [
    {
        "stage": "teacher", "num_steps": 2, "updates": 2000, "images_seen": 64000, "seconds": 12.4,
        "metric": "fd_pixels1k_train", "fd_pixels1k_train": 1.0, "label_agreement": 0.5,
        "baselines": {"ddim": {"2": 1.0, "1": 9.126}, "ancestral": {"2": 3.0, "1": 8.0}},
        "judge_accuracy": 0.989,
    },
    {
        "stage": "student_0001", "num_steps": 1, "updates": 300, "images_seen": 9600,
        "seconds": 3.0, "metric": "fd_pixels1k_train", "fd_pixels1k_train": 1.5,
        "label_agreement": 0.25,
    },
]  # fmt: skip


def test_table_has_a_row_a_stage_with_the_teachers_numbers_beside():
    lines = results_table(ROWS).splitlines()
    assert len({len(line) for line in lines[:4]}) == 1
    cells = [cell.strip() for cell in lines[3].strip("|").split("|")]
    assert cells == [
        "student_0001", "1", "300", "9,600", "3", "1.50", "9.13", "8.00", "25.0%",
    ]  # fmt: skip
    assert "right 98.9%" in lines[-1]


def test_table_of_a_run_without_labels_has_no_such_column():
    rows = [{k: v for k, v in row.items() if k != "label_agreement"} for row in ROWS]
    assert "agreement" not in results_table(rows)


def test_table_of_several_metrics_and_of_what_was_not_measured():
    many = {
        "metric": "fid50k_train", "metrics": ["fid50k_train", "kid50k_train", "precision50k_train"],
        "kid50k_train": 0.00123, "kid50k_train_std": 0.0002, "precision50k_train": 0.6789,
        "notes": {"inception_score": "the network gives no logits"},
    }  # fmt: skip
    cost = {"updates": 9, "images_seen": 9, "seconds": 1.0}
    rows = [
        {
            "stage": "teacher", "num_steps": 512, "measured_steps": 256, "fid50k_train": 2.514,
            "baselines": {"ddim": {"256": 3.0}}, "baseline_metric": "fid10k_train", **cost, **many,
        },
        {"stage": "student_0512", "num_steps": 512, "not_measured": "of many steps", **cost},
        {
            "stage": "student_0256", "num_steps": 256, "measured_steps": 256, "fid50k_train": 2.6,
            **cost, **many,
        },
    ]  # fmt: skip
    lines = results_table(rows).splitlines()
    table = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[:5]]
    assert [row[5:] for row in table if "---" not in row[0]] == [
        ["fid50k_train", "teacher, ddim: fid10k_train", "kid50k_train", "precision50k_train"],
        ["2.51 at 256 steps", "", "0.00123 ± 0.00020", "0.679"],
        ["", "", "", ""],
        ["2.60", "3.00", "0.00123 ± 0.00020", "0.679"],
    ]
    assert "teacher: everything is measured at 256 steps." in lines
    assert "student_0512: not measured: of many steps." in lines
    assert lines.count("inception_score: the network gives no logits.") == 1


def test_table_of_nothing():
    assert results_table([]) == "no stage is measured yet"


def test_which_way_is_better():
    for metric in ("fid50k_train", "fd_pixels1k_test", "kid50k_train"):
        assert lower_is_better(metric)
        assert meaning(metric).endswith("; lower is better.")
    for metric in ("precision50k_train", "recall50k_train", "is50k"):
        assert not lower_is_better(metric)
        assert meaning(metric).endswith("; higher is better.")
