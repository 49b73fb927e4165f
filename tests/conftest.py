"""What the tests share: real text, a small run, and commands as a user types them."""

import contextlib
import fcntl
import gc
import getpass
import json
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import warm

from gpt.cluster.environment import set_environment

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: the workers share the cores
os.environ["TORCHINDUCTOR_COMPILE_THREADS"] = "1"  # its pool of compilers takes seconds to start
set_environment()  # as every command does
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
SMALL = """
    model.n_layer=2 model.n_head=2 model.n_embd=32 model.seq_len=32 batch.global_tokens=256 batch.micro_batch_size=4
    trainer.max_tokens=null trainer.max_steps=20 trainer.eval_every=2560 trainer.eval_tokens=2000 trainer.log_every=1
    sample.tokens=16 device=cpu cluster.threads=1 tracker.plot=false
""".split()
BRIEF = ["trainer.max_steps=4", "trainer.eval_every=512", "trainer.grad_clip=0.5", "sample.tokens=0"]


# --- the session: signals, the order of files, what is left of failed tests, seconds


def pytest_configure(config: pytest.Config) -> None:
    """Have the workers' commands forked from one process: each of its own would import for ten seconds."""
    if "PYTEST_XDIST_WORKER" not in os.environ:
        os.environ[warm.COMPOSED] = tempfile.mkdtemp(prefix="gptlab-composed-")
        config.add_cleanup(lambda: shutil.rmtree(os.environ.pop(warm.COMPOSED), ignore_errors=True))
    if getattr(config.option, "numprocesses", None):
        warm.start_for_workers()
    elif "PYTEST_XDIST_WORKER" in os.environ:
        warm.use_that_of_all()


def pytest_sessionstart() -> None:
    """Let commands hear signals that this process was told to ignore, as by nohup or by a shell's &."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        signal.signal(signal.SIGHUP, lambda *_: None)  # handlers end where another program begins
    forget_half_compiled()


@pytest.hookimpl(trylast=True)
def pytest_unconfigure(config: pytest.Config) -> None:
    """End a worker, which has told all that it has to tell, without taking all that it imported apart: seconds."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        warm.leave(0)


def forget_half_compiled() -> None:
    """Remove what a session that was killed has left half written in the cache of torch.compile."""
    default = Path(tempfile.gettempdir()) / f"torchinductor_{getpass.getuser()}"
    for path in Path(os.environ.get("TORCHINDUCTOR_CACHE_DIR", default)).rglob("*.so"):
        with contextlib.suppress(FileNotFoundError):
            about = path.stat()
            if about.st_size == 0 and time.time() - about.st_mtime > 60:
                path.unlink()


# The files that take longest, these first, so that no worker is left alone with one of them at the end.
LONGEST = """
    mirrors/test_mirror cluster/test_slurm sweep/test_sweep_runs end_to_end/test_menu cluster/test_ranks
    end_to_end/test_signals end_to_end/test_lecture end_to_end/test_run data/test_sources end_to_end/test_docs
    data/test_prepare
    interop/test_init_from cli/test_wrong_commands config/test_layouts tokens/test_documents config/test_config
""".split()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put the files that take longest first."""

    def place(item: pytest.Item) -> int:
        file = item.path.relative_to(ROOT / "tests").with_suffix("").as_posix()
        return LONGEST.index(file) if file in LONGEST else len(LONGEST)

    items.sort(key=place)


def pytest_collection_finish() -> None:
    """Look for garbage less often, and not among all that has been imported: it takes a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 50)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log):
    """Give workers whole files, whose tests share what they make, in the order above.

    All that compiles is one more file, for the imports that it takes, and so is all that waits for the one SLURM.
    """
    from xdist.scheduler import LoadFileScheduling

    class LongestFirst(LoadFileScheduling):
        def _split_scope(self, nodeid: str) -> str:
            file, _, test = nodeid.partition("[")[0].partition("::")
            if "compile" in test or "every_combination" in test:
                return "compiled"
            return "slurm" if "slurm" in test or "slurm" in file else file

    config.option.loadscopereorder = False
    return LongestFirst(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo):
    """End what a failed test has left in its directory: processes, and jobs of SLURM."""
    report = yield
    if report.failed and (directory := getattr(item, "funcargs", {}).get("tmp_path")):
        end_all_in(directory)
    return report


def end_all_in(directory: Path) -> None:
    """Kill the processes that work in a directory or below it, and cancel the SLURM jobs that were submitted there."""
    if shutil.which("squeue"):
        asked = subprocess.run(["squeue", "--noheader", "--format=%i %Z"], capture_output=True, text=True)
        jobs = [line.split(maxsplit=1) for line in asked.stdout.splitlines()]
        here = [job for job, where in jobs if Path(where).is_relative_to(directory)]
        if here:
            subprocess.run(["scancel", *here], capture_output=True)
    for process in processes_in(directory, below=True).keys() - {os.getpid()}:  # a test may work there itself
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)


def pytest_terminal_summary(terminalreporter) -> None:
    """Say how long the tests took, by mark and by directory."""
    seconds: dict[str, float] = defaultdict(float)
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                seconds["slow" if "slow" in report.keywords else "unit"] += report.duration
                folder = Path(report.nodeid.partition("::")[0]).parent.relative_to("tests")
                seconds[f"tests/{folder}" if folder.name else "tests"] += report.duration
    if seconds:
        terminalreporter.section("seconds, of all workers together")
    for name, spent in sorted(seconds.items(), key=lambda pair: -pair[1]):
        terminalreporter.line(f"{spent:8.1f}  {name}")


# --- what is made once, for all workers


@pytest.fixture(scope="session")
def shared_dir(tmp_path_factory) -> Path:
    """A directory of this session, the same in all its workers."""
    base = tmp_path_factory.getbasetemp()
    return base.parent if "PYTEST_XDIST_WORKER" in os.environ else base


def made_once(directory: Path, make: Callable[[Path], None]) -> Path:
    """The directory, once ``make`` has filled it, in whichever worker came first."""
    with open(f"{directory}.lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not directory.exists():
            unfinished = directory.with_name(f"{directory.name}.unfinished")
            unfinished.mkdir()
            make(unfinished)
            unfinished.rename(directory)
    return directory


@pytest.fixture(scope="session")
def text_file(shared_dir) -> Path:
    """Real text: four modules of the standard library, some 300 kB."""

    def make(directory: Path) -> None:
        library = Path(sysconfig.get_paths()["stdlib"])
        texts = [(library / name).read_text() for name in ("argparse.py", "ast.py", "typing.py", "tarfile.py")]
        (directory / "modules.txt").write_text("".join(texts))

    return made_once(shared_dir / "text", make) / "modules.txt"


@pytest.fixture(scope="session")
def cache(shared_dir) -> Path:
    """Where data is prepared once for all tests."""
    return made_once(shared_dir / "cache", lambda directory: None)


@pytest.fixture(scope="session")
def small(text_file, cache) -> list[str]:
    """Overrides of a run of some seconds on the real text."""
    return ["data=text", f"data.files=[{text_file}]", f"data.cache_dir={cache}", *SMALL]


@pytest.fixture(scope="session")
def saved(small, shared_dir) -> Path:
    """A finished sweep of two seeds, ``sweep``, and a copy of its first job, ``run``. Tests work on copies."""

    def make(directory: Path) -> None:
        done = call("--multirun", "seed=1,2", *small, *BRIEF, "hydra.sweep.dir=sweep", cwd=directory)
        assert done.returncode == 0, done.stdout + done.stderr
        shutil.copytree(directory / "sweep" / "seed-1", directory / "run", symlinks=True)

    return made_once(shared_dir / "saved", make)


@pytest.fixture(autouse=True, scope="session")
def quick_composition():
    """Compose the same options again in a third of the time."""
    import composed_before  # noqa: F401


@pytest.fixture
def trainer(small, tmp_path):
    """A function from overrides to a Trainer of the small run, in a directory of its own."""
    from data.preparation import prepare
    from gpt.cli.compose import compose
    from gpt.trainer import Trainer

    def build(*overrides: str) -> Trainer:
        config = compose([*small, *overrides])
        run_dir = tmp_path / f"run{len(list(tmp_path.iterdir()))}"
        run_dir.mkdir()
        return Trainer(config, *prepare(config.data), run_dir)

    return build


# --- commands


def environment(**more: str) -> dict[str, str]:
    """The environment of a user who has set nothing but ``more``, with one thread per process."""
    own = {key: value for key, value in os.environ.items() if key not in ("HYDRA_FULL_ERROR", "TIKTOKEN_CACHE_DIR")}
    return own | more


def command(*arguments: str, script: str = "train.py") -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


class Started:
    """A command of the project in a process of its own, as subprocess.Popen shows one; ``script`` may be a module.

    ``env`` is added to its environment; ``constants`` are set in it by dotted name; ``file_size`` is a limit in bytes.
    """

    def __init__(
        self,
        *arguments: str,
        cwd: Path,
        script: str = "train.py",
        env: Mapping[str, str] | None = None,
        constants: Mapping[str, Any] | None = None,
        file_size: int | None = None,
        stdout_is_pipe: bool = False,
    ):
        self.args = command(*arguments, script=script)
        self.output = tempfile.TemporaryDirectory()
        directory = Path(self.output.name)
        # There from the start: a test may end the process before it opens them.
        (directory / "err").touch()
        if stdout_is_pipe:
            os.mkfifo(directory / "out")
        else:
            (directory / "out").touch()
        settings = warm.Settings(environment(**(env or {})), constants or {}, file_size)
        self.process = warm.process(warm.run, script, arguments, cwd, settings, directory)
        self.process.start()
        self.pid = self.process.pid
        self.stdout = open(directory / "out") if stdout_is_pipe else None

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def wait(self, timeout: float = 120) -> int:
        """Its exit code, when it has ended; killed if it has not by then."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.process.exitcode

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it has said, when it has ended; killed if it has not by then."""
        out = self.stdout.read() if self.stdout and not self.stdout.closed else None
        self.wait(timeout)
        if self.stdout is None:
            out = (Path(self.output.name) / "out").read_text()
        return out, (Path(self.output.name) / "err").read_text()


def call(*arguments: str, cwd: Path, timeout: float = 120, **how: Any) -> subprocess.CompletedProcess:
    """Run a command of the project to its end; ``how`` are the settings of :class:`Started`."""
    started = Started(*arguments, cwd=cwd, **how)
    out, err = started.communicate(timeout)
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


@contextlib.contextmanager
def imported(*modules: str, **how: Any) -> Iterator[Callable[..., subprocess.CompletedProcess]]:
    """A function like :func:`call` whose processes have imported these modules too, by the settings ``how``."""
    ours, theirs = multiprocessing.Pipe()
    settings = warm.Settings(environment(**how.pop("env", {})), **how)
    process = warm.process(warm.serve, theirs, modules, settings)
    process.start()

    def call_there(*arguments: str, cwd: Path, script: str) -> subprocess.CompletedProcess:
        ours.send({"args": [sys.executable, "-m", script, *arguments], "cwd": cwd})
        assert ours.poll(120), arguments
        return ours.recv()

    yield call_there
    ours.send(None)
    process.join()


def processes_in(directory: Path, below: bool = False) -> dict[int, bytes]:
    """The live processes that work in a directory, or below it too, with their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            where = (path / "cwd").readlink()
            if where == directory or (below and where.is_relative_to(directory)):
                found[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:
            continue
    return found


def deterministic(run_dir: Path) -> tuple:
    """All that must be the same however often a run was interrupted."""
    from gpt.tracker.logs import read_metrics

    rows = [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in read_metrics(run_dir)]
    names = ("model.safetensors", "optimizer.safetensors")
    weights = [(run_dir / "checkpoints" / "last" / name).read_bytes() for name in names]
    result = json.loads((run_dir / "result.json").read_text())
    kept = {key: value for key, value in result.items() if key not in ("seconds", "peak_memory_bytes")}
    return rows, weights, kept, (run_dir / "samples.txt").read_text()


def assert_same(found: tuple, expected: tuple) -> None:
    """Part by part, and without pytest's comparison, which takes hours for so much."""
    for part, ours, theirs in zip(("metrics", "weights", "result", "samples"), found, expected, strict=True):
        is_same = ours == theirs
        assert is_same, part


def until(condition: Callable[[], Any], seconds: float = 90, process: Any = None) -> Any:
    """What ``condition`` returns once it is true. ``process`` must not end before."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert process is None or process.poll() is None, process.communicate()
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.02)
    return found


# --- what is not on every machine

SLURM = ["cluster=slurm", "cluster.gpus=0", "cluster.nproc=2"]
# A command that asks SLURM often, and does not wait long for what a shared file system has not shown yet.
ASKS = {"constants": {"gpt.cluster.slurm.POLL": 0.3, "gpt.cluster.slurm.RESULT_AFTER_END": 1}}
slurm = pytest.mark.usefixtures("slurm_here")


@pytest.fixture(scope="session")
def slurm_here() -> None:
    """A SLURM, or a skip where none answers, which takes it seconds to say."""
    if shutil.which("sbatch") is None or subprocess.run(["sinfo"], capture_output=True).returncode != 0:
        pytest.skip("needs a SLURM: sbatch, and a controller that answers")


@pytest.fixture
def gpt2_vocabulary(monkeypatch) -> Path:
    """tiktoken's cache with the GPT-2 vocabulary, or a skip where it is missing."""
    path = Path(os.environ.get("TIKTOKEN_CACHE_DIR") or SHARED / "tiktoken")
    if not path.is_dir():
        pytest.skip("needs the GPT-2 vocabulary: set TIKTOKEN_CACHE_DIR to a directory where tiktoken has cached it")
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(path))
    return path


@pytest.fixture
def shakespeare() -> Path:
    """Tiny Shakespeare, or a skip where it is missing."""
    path = SHARED / "data" / "tinyshakespeare.txt"
    if not path.exists():
        pytest.skip(f"needs Tiny Shakespeare at {path}")
    return path
