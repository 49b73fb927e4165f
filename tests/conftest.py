"""What the tests share: real text, a small run, and commands as a user types them."""

import multiprocessing
import os
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

import pytest
import warm

os.environ["OMP_NUM_THREADS"] = "1"  # before torch is imported: two workers share two cores
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")  # as gpt.cli.command does
WARM = multiprocessing.get_context("forkserver")
WARM.set_forkserver_preload(warm.PRELOAD)
ROOT = Path(__file__).parents[1]
SHARED = ROOT.parent / "shared"
SMALL = """
    model.n_layer=2 model.n_head=2 model.n_embd=32 model.seq_len=32 batch.global_tokens=256 batch.micro_batch_size=4
    trainer.max_tokens=null trainer.max_steps=20 trainer.eval_every=2560 trainer.eval_tokens=2000 trainer.log_every=1
    sample.tokens=16 device=cpu cluster.threads=1 tracker.plot=false
""".split()
BRIEF = ["trainer.max_steps=4", "trainer.eval_every=512", "trainer.grad_clip=0.5", "sample.tokens=0"]


@pytest.fixture(scope="session")
def text_file(tmp_path_factory) -> Path:
    """Real text: four modules of the standard library, some 300 kB."""
    library = Path(sysconfig.get_paths()["stdlib"])
    path = tmp_path_factory.mktemp("text") / "modules.txt"
    path.write_text(
        "".join((library / name).read_text() for name in ("argparse.py", "ast.py", "typing.py", "tarfile.py"))
    )
    return path


@pytest.fixture(scope="session")
def cache(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def small(text_file, cache) -> list[str]:
    """Overrides of a run of some seconds on the real text."""
    return ["data=text", f"data.files=[{text_file}]", f"data.cache_dir={cache}", *SMALL]


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


def environment() -> dict[str, str]:
    """The environment of a user who has set nothing, but with one thread per process."""
    return {key: value for key, value in os.environ.items() if key not in ("HYDRA_FULL_ERROR", "TIKTOKEN_CACHE_DIR")}


def command(*arguments: str, script: str = "train.py") -> list[str]:
    return [sys.executable, str(ROOT / script), *arguments]


class Started:
    """A command of the project in a process of its own, as subprocess.Popen shows one; ``script`` may be a module."""

    def __init__(self, *arguments: str, cwd: Path, script: str = "train.py"):
        self.args = command(*arguments, script=script)
        self.said = tempfile.TemporaryDirectory()
        self.process = WARM.Process(
            target=warm.run, args=(ROOT, script, arguments, cwd, environment(), Path(self.said.name))
        )
        self.process.start()
        self.pid = self.process.pid

    def poll(self) -> int | None:
        return self.process.exitcode

    @property
    def returncode(self) -> int | None:
        return self.process.exitcode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)

    def kill(self) -> None:
        self.process.kill()

    def communicate(self, timeout: float = 120) -> tuple[str, str]:
        """What it has said, when it has ended; killed if it has not by then."""
        self.process.join(timeout)
        if self.process.exitcode is None:
            self.kill()
            raise subprocess.TimeoutExpired(self.args, timeout)
        out, err = ((Path(self.said.name) / name).read_text() for name in ("out", "err"))
        return out, err


def call(*arguments: str, cwd: Path, script: str = "train.py", timeout: float = 120) -> subprocess.CompletedProcess:
    """Run a command of the project to its end."""
    started = Started(*arguments, cwd=cwd, script=script)
    out, err = started.communicate(timeout)
    return subprocess.CompletedProcess(started.args, started.returncode, out, err)


def processes_in(directory: Path) -> dict[int, bytes]:
    """The live processes that work in a directory, with their command lines."""
    found = {}
    for path in Path("/proc").glob("[0-9]*"):
        try:
            if (path / "cwd").readlink() == directory:
                found[int(path.name)] = (path / "cmdline").read_bytes()
        except OSError:
            continue
    return found


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


@pytest.fixture(scope="session")
def saved(small, tmp_path_factory) -> Path:
    """A finished sweep of two seeds, ``sweep``, and a copy of its first job, ``run``. Tests work on copies."""
    cwd = tmp_path_factory.mktemp("saved")
    done = call("--multirun", "seed=1,2", *small, *BRIEF, "hydra.sweep.dir=sweep", cwd=cwd)
    assert done.returncode == 0, done.stdout + done.stderr
    shutil.copytree(cwd / "sweep" / "seed-1", cwd / "run", symlinks=True)
    return cwd
