"""Which code made a number."""

import functools
import subprocess
from pathlib import Path

from diffusion_distill import __version__


@functools.cache
def code_version() -> str:
    """The commit of a git checkout, "-dirty" where files were changed; else the version."""
    root = Path(__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return __version__
    command = "git describe --always --dirty --abbrev=12 --exclude=*".split()
    try:
        done = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=20)
    except (OSError, subprocess.TimeoutExpired):
        return __version__
    return done.stdout.strip() if done.returncode == 0 else __version__
