"""A stand-in for gcloud: one project, one zone, one slice at a time, two workers that are folders.

It runs after its call was recorded, with os and sys imported. What few calls need is imported
there: the tests make hundreds. In the folder CLOUD:

    resource      the name of the queued resource, where there is one
    states        its states, one for each `describe`; the last one stays
    next          for each request to come, its states with spaces between; ACTIVE without
    worker-0, worker-1   the workers' homes, which come and go with the slice
"""

from pathlib import Path

CLOUD = Path(os.environ["CLOUD"])  # noqa: F821
PROJECT, ZONE = "my-project", "us-west4-a"


def fail(command, message):
    print(f"ERROR: (gcloud.{'.'.join(command)}) {message}", file=sys.stderr)  # noqa: F821
    sys.exit(1)  # noqa: F821


def take_first(file, default):
    """The first line of a file, which it loses unless it is the last."""
    lines = file.read_text().splitlines() if file.exists() else []
    if len(lines) > 1:
        file.write_text("\n".join(lines[1:]))
    return lines[0] if lines else default


def take_down():
    """Powers the workers off; their disks go with them."""
    import shutil
    import signal

    for home in workers():
        for entry in Path("/proc").iterdir():
            try:
                if entry.name.isdigit() and (entry / "cwd").readlink().is_relative_to(home):
                    os.kill(int(entry.name), signal.SIGKILL)  # noqa: F821
            except OSError:
                pass
        shutil.rmtree(home)


def workers():
    return sorted(CLOUD.glob("worker-*"))


def remote(home, command):
    """Starts a shell command as sshd would, in the worker's home."""
    import subprocess

    environment = {"PATH": os.environ["PATH"], "HOME": str(home), "WORKER": home.name}  # noqa: F821
    return subprocess.Popen(
        ["bash", "-c", command], cwd=home, env=environment, stdin=subprocess.DEVNULL
    )


def create(name):
    if (CLOUD / "resource").exists():
        fail(COMMAND, f"ALREADY_EXISTS: Resource '{name}' already exists")
    (CLOUD / "resource").write_text(name)
    states = take_first(CLOUD / "next", "ACTIVE").split()
    (CLOUD / "states").write_text("\n".join(states))
    for number in range(2):
        (CLOUD / f"worker-{number}").mkdir(exist_ok=True)


def describe(flags):
    states = CLOUD / "states"
    if flags["format"] == "value(state.state)":
        now = take_first(states, None)
        if now in ("SUSPENDED", "FAILED", "PREEMPTED"):
            take_down()
        print("ACTIVE" if now == "PREEMPTED" else now)
    elif flags["format"] == "value(state)":
        print("READY" if workers() else "PREEMPTED")
    else:
        assert flags["format"] == "value(networkEndpoints.len())", flags
        print(len(workers()))


def delete():
    take_down()
    (CLOUD / "resource").unlink()


def ssh(flags):
    assert flags["worker"] == "all", flags
    running = [remote(home, flags["command"]) for home in workers()]
    sys.exit(max(process.wait() for process in running))  # noqa: F821


def scp(source, target, flags):
    import shutil

    if ":" in target:
        for home in workers():
            shutil.copy(source, home / target.split(":")[1])
    else:
        path = CLOUD / f"worker-{flags['worker']}" / source.split(":")[1]
        if not path.exists():
            fail(COMMAND, f"scp: {path}: No such file or directory")
        shutil.copy(path, target)


ARGUMENTS = sys.argv[1:]  # noqa: F821
WORDS = [word for word in ARGUMENTS if not word.startswith("--")]
FLAGS = {
    word[2:].partition("=")[0]: word.partition("=")[2] for word in ARGUMENTS if word[:2] == "--"
}
COMMAND, NAMES = WORDS[:4], WORDS[4:]
assert COMMAND[:3] in (["compute", "tpus", "queued-resources"], ["compute", "tpus", "tpu-vm"])
if FLAGS.get("project", PROJECT) != PROJECT or FLAGS["zone"] != ZONE:
    fail(
        COMMAND,
        f"PERMISSION_DENIED: Permission denied on 'locations/{FLAGS['zone']}' (or it may not "
        "exist).\n- '@type': type.googleapis.com/google.rpc.ErrorInfo\n  reason: FORBIDDEN",
    )
verb = COMMAND[3]
name = next(word.split(":")[0] for word in NAMES if "/" not in word.split(":")[0])
held = (CLOUD / "resource").read_text() if (CLOUD / "resource").exists() else None
if verb != "create" and name != held:
    fail(
        COMMAND,
        f"NOT_FOUND: Resource 'projects/{PROJECT}/locations/{ZONE}/queuedResources/{name}' was not "
        "found\n- '@type': type.googleapis.com/google.rpc.ResourceInfo",
    )
if verb == "create":
    create(name)
elif verb == "describe":
    describe(FLAGS)
elif verb == "delete":
    delete()
elif verb == "ssh":
    ssh(FLAGS)
else:
    scp(*NAMES, FLAGS)
