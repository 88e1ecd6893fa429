"""The table of a run: what each number of steps costs and gives."""

import functools

from diffusion_distill.metrics.names import kind, value_text

# What a kind of metric is, and whether lower is better.
_FRECHET = ("Frechet distance to the data", True)
_MEANINGS = {
    "kid": ("kernel distance, mean ± spread over subsets", True),
    "precision": ("share of images that look like the data", False),
    "recall": ("share of the data that the images cover", False),
    "is": ("Inception Score, mean ± spread over splits", False),
}


def results_table(rows: list[dict]) -> str:
    """The rows of results.jsonl as a Markdown table with its legend.

    The first metric that was asked for stands next to what the stage costs, a column for each
    sampler of the undistilled teacher follows, and then the other metrics. A stage that was not
    measured has empty cells, and the legend says why.
    """
    if not rows:
        return "no stage is measured yet"
    return markdown(*cells(rows)) + "\n\n" + "\n".join(legend(rows))


def cells(rows: list[dict]) -> tuple[list[str], list[list[str]]]:
    """The table's header, and its body. The first row is the teacher's."""
    columns = [
        ("stage", lambda row: row["stage"]),
        ("steps", lambda row: str(row["num_steps"])),
        ("updates", lambda row: f"{row['updates']:,}"),
        ("images seen", lambda row: f"{row['images_seen']:,}"),
        ("seconds", lambda row: f"{row['seconds']:.0f}"),
        *_metric_columns(rows[0]),
    ]
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows]


def summary(row: dict) -> str:
    """What a stage's row says first, in a few words."""
    if "not_measured" in row:
        return f"not measured: {row['not_measured']}"
    metric = row["metric"]
    return f"{metric} {value_text(metric, row[metric])} at {row['measured_steps']} steps"


def meaning(metric: str) -> str:
    """What a metric is, and which way is better, in a few words."""
    what, lower = _MEANINGS.get(kind(metric), _FRECHET)
    return f"{what}; {'lower' if lower else 'higher'} is better."


def lower_is_better(metric: str) -> bool:
    """Whether a lower value of a metric is the better one."""
    return _MEANINGS.get(kind(metric), _FRECHET)[1]


def _metric_columns(teacher: dict):
    """(header, row -> cell) of each column with something measured."""
    first, *others = teacher.get("metrics", [teacher["metric"]])
    yield first, functools.partial(_first, first)
    of = teacher.get("baseline_metric", first)
    for name, values in teacher["baselines"].items():
        header = f"teacher, {name}" if of == first else f"teacher, {name}: {of}"
        yield header, functools.partial(_baseline, of, values)
    for metric in others:
        yield metric, functools.partial(_measured, metric)
    if "label_agreement" in teacher:
        has = "label_agreement"
        yield "label agreement", lambda row: f"{row[has]:.1%}" if has in row else ""


def _measured(metric: str, row: dict) -> str:
    return value_text(metric, row.get(metric), row.get(f"{metric}_std"))


def _first(metric: str, row: dict) -> str:
    text = _measured(metric, row)
    steps = row.get("measured_steps", row["num_steps"])
    return text if steps == row["num_steps"] else f"{text} at {steps} steps"


def _baseline(metric: str, values: dict[str, float], row: dict) -> str:
    return value_text(metric, values.get(str(row["num_steps"])))


def legend(rows: list[dict]) -> list[str]:
    """Sentences on what the table's columns are, and on what was not measured."""
    teacher = rows[0]
    lines = [f"{m}: {meaning(m)}" for m in teacher.get("metrics", [teacher["metric"]])]
    lines[0] += " Of the stage at its steps; the columns after it, of the undistilled teacher at "
    lines[0] += "as many."
    steps = teacher.get("measured_steps", teacher["num_steps"])
    if steps != teacher["num_steps"]:
        lines.append(f"teacher: everything is measured at {steps} steps.")
    missing = [row for row in rows if "not_measured" in row]
    lines += [f"{row['stage']}: not measured: {row['not_measured']}." for row in missing]
    notes = [f"{what}: {note}." for row in rows for what, note in row.get("notes", {}).items()]
    lines += dict.fromkeys(notes)
    if "label_agreement" in teacher:
        lines.append(
            "Label agreement: how often a classifier fitted on real images sees the label asked "
            f"for; on real images it was not fitted on it is right {teacher['judge_accuracy']:.1%}."
        )
    return lines


def markdown(header: list[str], body: list[list[str]]) -> str:
    """A Markdown table: its first column stands on the left, the others on the right."""
    widths = [max(map(len, column)) for column in zip(header, *body, strict=True)]
    rule = [":".rjust(width, "-") if n else "-" * width for n, width in enumerate(widths)]

    def line(row: list[str]) -> str:
        padded = enumerate(zip(row, widths, strict=True))
        return f"| {' | '.join(c.rjust(w) if n else c.ljust(w) for n, (c, w) in padded)} |"

    return "\n".join(map(line, [header, rule, *body]))
