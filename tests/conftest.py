"""What tests share."""

import atexit
import contextlib
import fcntl
import importlib.util
import json
import logging
import os
import shutil
import socket
import tempfile
import threading
from pathlib import Path

# Before JAX starts: programs compiled once are reused by later tests and by their child processes.
_CACHE = os.path.join(os.path.dirname(__file__), "..", ".pytest_cache", "xla")
os.environ.setdefault("JAX_COMPILATION_CACHE_DIR", os.path.abspath(_CACHE))
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0")
# And without LLVM's optimizations, in half of the time: programs are compared with each other, with
# other code and with closed forms. What is said of optimized ones asks for them: `optimized`.
os.environ.setdefault("JAX_DISABLE_MOST_OPTIMIZATIONS", "1")
# Most of what is left is tracing. It takes three quarters of the time where operations are not told
# which lines of Python made them, and cycles are collected less often (tests/commands.py).
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("DIFFUSION_DISTILL_ONEDNN", "0")  # but for its own tests, as in most installs
# Reference statistics of tests stay out of the person's own cache, and of the next start's.
_REFERENCES = tempfile.mkdtemp(prefix="diffusion_distill_cache_")
atexit.register(shutil.rmtree, _REFERENCES, ignore_errors=True)
os.environ["DIFFUSION_DISTILL_CACHE"] = _REFERENCES

import jax  # noqa: E402
import pytest  # noqa: E402

from configs import digits_distill  # noqa: E402
from diffusion_distill.config import base  # noqa: E402
from diffusion_distill.run import Programs, check, run_chain  # noqa: E402
from diffusion_distill.terminal.stop import StopSignal  # noqa: E402
from tests import commands  # noqa: E402
from tests.bucket_server import BucketServer  # noqa: E402

commands.collect_seldom()

_ROOT = Path(__file__).resolve().parents[1]

# Real data and weights that some tests need, and skip without: a folder beside the checkout.
ASSETS = Path(os.environ.get("DIFFUSION_DISTILL_ASSETS") or _ROOT.parent / "shared" / "assets")


def pytest_collection_modifyitems(items):
    """Tests of whole runs begin first, which take longest: no process is left alone with one."""
    items.sort(key=lambda item: item.path.parent != Path(__file__).parent)


@pytest.fixture(scope="session")
def cifar10_dir():
    """The folder cifar-10-batches-bin of the real release, unpacked once and kept."""
    return _unpacked(lambda name: True)


@pytest.fixture(scope="session")
def cifar10_test_dir():
    """As `cifar10_dir`, but only the test images are sure to be there: it takes two seconds."""
    return _unpacked(lambda name: name == "test_batch")


def _unpacked(wanted):
    if not (ASSETS / "unpack.py").exists():
        pytest.skip(f"there is no {ASSETS / 'unpack.py'}")
    spec = importlib.util.spec_from_file_location("unpack", ASSETS / "unpack.py")
    unpack = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(unpack)
    unpack.SHA1 = {name: sha1 for name, sha1 in unpack.SHA1.items() if wanted(name)}
    cache = _ROOT / ".pytest_cache" / "cifar10"
    cache.mkdir(parents=True, exist_ok=True)
    with open(cache / ".lock", "a") as lock:  # of several processes of tests, one unpacks
        fcntl.flock(lock, fcntl.LOCK_EX)
        with contextlib.redirect_stdout(None):
            unpack.main(cache)  # leaves alone what is there with the right sums
    return cache / "cifar-10-batches-bin"


@pytest.fixture(scope="session")
def browser():
    """Headless Chromium under selenium; its console is in `browser.get_log("browser")`."""
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        pytest.skip("there is no chromium with its chromedriver")
    from selenium import webdriver
    from selenium.webdriver.chrome.service import Service

    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
        "--disable-background-networking", "--disable-component-update", "--disable-sync",
        "--disable-dev-shm-usage",
    ):  # fmt: skip
        options.add_argument(argument)
    with webdriver.Chrome(options, Service(driver)) as opened:
        yield opened


@pytest.fixture
def x64():
    """Float64 in JAX for the length of a test."""
    with jax.enable_x64(True):
        yield


# What an environment may say of numbers, for another program's sake, and what JAX says by itself.
JAX_SETTINGS = {
    "jax_default_prng_impl": "rbg",
    "jax_enable_x64": True,
    "jax_threefry_partitionable": False,
    "jax_random_seed_offset": 5,
    "jax_numpy_dtype_promotion": "strict",
    "jax_numpy_rank_promotion": "raise",
}


@contextlib.contextmanager
def set_otherwise(settings=JAX_SETTINGS):
    """JAX as somebody's environment sets it; for all threads, as that does."""
    before = {name: getattr(jax.config, name) for name in settings}
    for name, value in settings.items():
        jax.config.update(name, value)
    yield
    for name, value in before.items():
        jax.config.update(name, value)


@pytest.fixture
def optimized(monkeypatch):
    """Programs with LLVM's optimizations, as a person's are, here and in child processes."""
    before = os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] == "1"
    monkeypatch.setenv("JAX_DISABLE_MOST_OPTIMIZATIONS", "0")
    jax.config.update("jax_disable_most_optimizations", False)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


def free_port():
    """A port of this machine that nothing listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


TINY = [
    "--config=configs/digits_distill.py:tiny",
    "--config.model.channel_multipliers=(1,)",
    "--config.model.attention_resolutions=()",
]  # the flags of a command that give `tiny_config`


def tiny_config():
    """The smallest config that runs every stage: digits, 4 -> 2 -> 1 steps, one resolution."""
    config = digits_distill.get_config("tiny")
    config.model.channel_multipliers = (1,)  # for the compiler's sake
    config.model.attention_resolutions = ()
    return config


@pytest.fixture(name="tiny_config")
def tiny_config_fixture():
    return tiny_config()


class Compilations(logging.Handler):
    """Names of the programs that JAX compiles."""

    def __init__(self):
        super().__init__()
        self.names = []

    def emit(self, record):
        message = record.getMessage()
        if message.startswith("Compiling "):
            self.names.append(message.split()[1])


@pytest.fixture(scope="session")
def _tiny_run(tmp_path_factory):
    """(what `finished` is, what `programs` is): one process of tests runs, others have copies."""
    programs = Programs(check(tiny_config(), tmp_path_factory.mktemp("programs") / "run"))
    base = tmp_path_factory.getbasetemp()
    shared = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "tiny_run"
    shared.mkdir(exist_ok=True)
    names = shared / "compiled.json"
    with open(shared / ".lock", "a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not names.exists():
            shutil.rmtree(shared / "tiny", ignore_errors=True)  # of one that failed
            compilations = Compilations()
            logger = logging.getLogger("jax")
            logger.addHandler(compilations)
            with jax.log_compiles():
                relative = Path(os.path.relpath(shared / "tiny"))  # as a person gives it
                run_chain(check(tiny_config(), relative), programs, StopSignal())
            logger.removeHandler(compilations)
            names.write_text(json.dumps(compilations.names))
    workdir = tmp_path_factory.mktemp("runs") / "tiny"
    shutil.copytree(shared / "tiny", workdir)
    return (workdir, json.loads(names.read_text())), programs


@pytest.fixture(scope="session")
def finished(_tiny_run):
    """(workdir of a finished run, names of the programs compiled on the way)."""
    return _tiny_run[0]


@pytest.fixture(scope="session")
def programs(_tiny_run):
    """The programs of the tiny config, compiled once for all of its runs here."""
    return _tiny_run[1]


@pytest.fixture(scope="session")
def go_on(programs):
    """go_on(workdir): runs the tiny config there to its end, as run_config, and compiles less.

    Another config must be one whose programs are those of the tiny config.
    """

    def run(workdir, config=None, stop=None):
        setup = check(config or tiny_config(), workdir)
        run_chain(setup, programs, stop or StopSignal())
        return setup

    return run


@pytest.fixture
def workdir(finished, tmp_path):
    """A copy to damage."""
    return shutil.copytree(finished[0], tmp_path / "run")


@pytest.fixture(scope="module")
def bucket_server():
    """A BucketServer on loopback with the buckets "bucket", and "closed", which nobody may use."""
    with BucketServer("bucket", "closed") as server, used_by_clients(server.url):
        server.closed.add("closed")
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@contextlib.contextmanager
def used_by_clients(url):
    """All clients, and child processes, find their buckets at this address."""
    import fsspec  # of the extra test, as gcsfs is; most tests have no use for them

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {
            "STORAGE_EMULATOR_HOST": url,  # for gcsfs and Google's client
            "FSSPEC_GCS_TOKEN": "anon",  # for gcsfs: it need not look for a Google machine
            "TENSORSTORE_GCS_HTTP_URL": url,
            "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # for TensorStore, as for gcsfs
        }.items():
            patch.setenv(name, value)
        patch.setitem(fsspec.config.conf["gcs"], "token", "anon")
        yield


def data_config(name, path, **fields):
    """config.data of a source at a path."""
    config = base().data
    config.name, config.path = name, path
    config.update(fields)
    return config
