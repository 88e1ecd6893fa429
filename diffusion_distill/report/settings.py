"""The section of a report on the fields of its runs' configs."""

import json

from diffusion_distill.config import base, to_dict
from diffusion_distill.report.run import RunFiles


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
