"""The table of a run: what each number of steps costs and gives."""


def results_table(rows: list[dict]) -> str:
    """The rows of results.jsonl as a Markdown table with its legend.

    A column for each sampler of the undistilled teacher follows the student's own; a column
    with label agreement stands where it was measured.
    """
    if not rows:
        return "no stage is measured yet"
    teacher = rows[0]
    baselines = teacher["baselines"]
    metric = teacher["metric"]
    judged = "label_agreement" in teacher
    header = ["stage", "steps", "updates", "images seen", "seconds", metric]
    header += [f"teacher, {name}" for name in baselines]
    header += ["label agreement"] if judged else []
    body = []
    for row in rows:
        steps = str(row["num_steps"])
        cells = [row["stage"], steps, f"{row['updates']:,}", f"{row['images_seen']:,}"]
        cells += [f"{row['seconds']:.0f}", _number(row[metric])]
        cells += [_number(baselines[name].get(steps)) for name in baselines]
        cells += [f"{row['label_agreement']:.1%}"] if judged else []
        body.append(cells)
    legend = (
        f"{metric}: Frechet distance to the data of the stage at its steps; the columns after it, "
        "of the undistilled teacher at as many. Lower is better."
    )
    if judged:
        legend += (
            " Label agreement: how often a classifier fitted on real images sees the label asked "
            f"for; on real images it was not fitted on it is right {teacher['judge_accuracy']:.1%}."
        )
    return _markdown(header, body) + "\n\n" + legend


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def _markdown(header: list[str], body: list[list[str]]) -> str:
    widths = [max(len(row[c]) for row in [header, *body]) for c in range(len(header))]

    def line(cells, pad=" "):
        first, *rest = (
            cell.ljust(w, pad) if n == 0 else cell.rjust(w, pad)
            for n, (cell, w) in enumerate(zip(cells, widths, strict=True))
        )
        return "| " + " | ".join([first, *rest]) + " |"

    rule = (
        "| "
        + " | ".join("-" * w if n == 0 else "-" * (w - 1) + ":" for n, w in enumerate(widths))
        + " |"
    )
    return "\n".join([line(header), rule, *map(line, body)])
