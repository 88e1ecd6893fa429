# /// script
# dependencies = ["skypilot==0.14.1"]
# ///
"""What SkyPilot makes of commands, in an environment of its own, which `uv run --script` makes.

The first argument is JSON: "commands", words after `sky`; "variables" of a host; "codes" of a job.
Printed is JSON, too, for each command: null where it is no launch; of a launch the task, the
scripts that such a host gets, and whether a job is started again that ends with those codes one
after the other; or why SkyPilot refuses it. Nothing is asked or started elsewhere.
"""

import json
import os
import sys
import tempfile

home = tempfile.TemporaryDirectory()  # SkyPilot keeps a folder in it
os.environ.update(HOME=home.name, SKYPILOT_DISABLE_USAGE_COLLECTION="1")

from sky.backends import CloudVmRayBackend  # noqa: E402
from sky.client.cli import command  # noqa: E402
from sky.clouds.utils import gcp_utils  # noqa: E402
from sky.jobs import recovery_strategy  # noqa: E402
from sky.skylet import log_lib  # noqa: E402

launched = []


def launch(dag, *_, **__):
    """In place of what sends the job to SkyPilot's server, once the command line is understood."""
    launched.extend(dag.tasks)
    raise SystemExit


def read(words, variables, codes):
    launched.clear()
    try:
        command.cli.main(words, prog_name="sky", standalone_mode=False)
    except SystemExit:
        (task,) = launched
    except Exception as error:
        return {"refused": str(error)}
    else:
        return None
    (resources,) = task.resources
    scripts = {
        part: log_lib.make_task_bash_script(getattr(task, part), task.envs | variables)
        for part in ("setup", "run")
    }
    config = task.to_yaml_config()
    several_hosts = gcp_utils.is_tpu_vm_pod(resources)
    job = recovery_strategy.StrategyExecutor.make(
        *["cluster", CloudVmRayBackend(), task, 1, 0, None, set()],
        starting_lock=None,
        starting_signal=None,
    )
    again = [job.should_restart_on_failure([code]) for code in codes]
    return scripts | {"task": config, "several hosts": several_hosts, "started again": again}


command.managed_jobs.launch = launch
for group in (command.cli, command.jobs):
    for name, other in group.commands.items():
        if name not in ("jobs", "launch"):
            other.callback = lambda **_: None  # understood, and no more
asked = json.loads(sys.argv[1])
print(json.dumps([read(w, asked["variables"], asked["codes"]) for w in asked["commands"]]))
