"""Configs as plain values."""

import json

from configs.digits_distill import get_config
from diffusion_distill.config import base, differences, to_dict
from diffusion_distill.validate import from_dict


def test_a_config_survives_json():
    config = get_config()
    assert from_dict(json.loads(json.dumps(to_dict(config)))).to_dict() == config.to_dict()


def test_differences_name_fields_and_leave_out_runtime():
    old, new = to_dict(base()), to_dict(base())
    new["teacher"]["updates"] = 7
    new["runtime"]["updates_per_call"] = 3
    assert differences(old, new) == ["teacher.updates: 800000 -> 7"]
