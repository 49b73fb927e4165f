"""python -m gpt.generate: what it prints, and what it refuses."""

import os
import pty
import re
import select
import subprocess
import sys
import time

import pytest
from conftest import ROOT, environment

import gpt
from gpt.cli import command
from gpt.cli.generation import read_prompts
from gpt.errors import InputError
from gpt.generate import __main__ as generation


@pytest.fixture
def generated(saved, monkeypatch, capsys):
    """A function that calls the command on the saved run; returns its exit code, and what it prints."""

    def call(*arguments, source=saved / "run"):
        monkeypatch.setattr("sys.argv", ["gpt.generate", *([str(source)] if source else []), *arguments])
        code = command.script(generation.main, generation.__doc__)
        return code, *capsys.readouterr()

    return call


def notebook_text(saved, prompt, tokens, **options):
    """The same by another way."""
    run = gpt.load_run(saved / "run")
    sample = run.config.sample
    options = {"temperature": sample.temperature, "top_k": sample.top_k, "seed": run.config.seed} | options
    return run.load_model("last").generate(prompt, tokens=tokens, **options)


def test_it_writes_what_the_notebook_writes(generated, saved):
    assert generated("prompt=def f(x, y):", "tokens=80") == (0, notebook_text(saved, "def f(x, y):", 80) + "\n", "")
    options = ["temperature=1.5", "top_k=null", "top_p=0.8", "seed=9", "device=cpu"]
    expected = notebook_text(saved, "a=b", 20, temperature=1.5, top_k=None, top_p=0.8, seed=9) + "\n"
    assert generated("prompt=a=b", "tokens=20", *options) == (0, expected, "")
    # The end of a run is its last checkpoint, and a checkpoint may be given.
    last = saved / "run" / "checkpoints" / "last"
    assert generated("prompt=a=b", "tokens=20", *options, f"checkpoint={last}", source=None)[:2] == (0, expected)


@pytest.mark.parametrize("prompt", [[], ["prompt="], ["prompt=FILE:empty.txt"]])
def test_an_empty_prompt_begins_a_document(prompt, generated, saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.txt").write_text("")
    assert generated(*prompt, "tokens=30") == (0, notebook_text(saved, None, 30) + "\n", "")


def test_several_prompts_and_samples(generated, saved):
    code, said, _ = generated("prompt=[def f,'import a, b',x]", "samples=2", "tokens=12")
    assert code == 0
    titles = re.findall(r"^--- prompt (\d), sample (\d)$", said, re.MULTILINE)
    assert titles == [("1", "1"), ("1", "2"), ("2", "1"), ("2", "2"), ("3", "1"), ("3", "2")]
    texts = [text.removesuffix("\n") for text in re.split(r"--- prompt \d, sample \d\n", said)[1:]]
    assert texts[0] == notebook_text(saved, "def f", 12)
    assert [text[:5] for text in texts[:2]] == ["def f"] * 2
    assert [text[:11] for text in texts[2:4]] == ["import a, b"] * 2
    assert len(set(texts)) == 6
    # The texts of a prompt do not depend on the prompts after it.
    alone = generated("prompt=def f", "samples=2", "tokens=12")[1]
    assert said.startswith(alone)


def test_a_prompt_in_a_file_keeps_its_last_newline(generated, saved, tmp_path):
    path = tmp_path / "prompt.txt"
    path.write_text("import os\n")
    expected = notebook_text(saved, "import os\n", 9) + "\n"
    assert generated(f"prompt=FILE:{path}", "tokens=9") == (0, expected, "")


def test_a_prompt_that_is_longer_than_the_context_is_told(generated, saved):
    code, said, warned = generated("prompt=" + "ab" * 50, "tokens=9")
    assert code == 0
    assert said == notebook_text(saved, "ab" * 50, 9) + "\n"
    assert warned == "the prompt has 100 tokens: its last 32 are read, the context of the model\n"


@pytest.mark.parametrize(
    "text, prompts",
    [
        ("a, b=[c]", ["a, b=[c]"]),
        ("[a]", ["a"]),
        ("[a,'b, c',3,null,'']", ["a", "b, c", "3", "", ""]),
        ("[INST] a", ["[INST] a"]),
        ("[a", ["[a"]),
        ("'quoted'", ["'quoted'"]),
    ],
)
def test_prompts_are_as_typed_or_a_list(text, prompts):
    assert read_prompts(text) == prompts


@pytest.mark.parametrize("text", ["[]", "[a,[b]]", "[a b]]", "FILE:nowhere", "[FILE:nowhere]", "FILE:/"])
def test_lists_and_files_that_cannot_be_read(text):
    with pytest.raises(InputError):
        read_prompts(text)


@pytest.mark.parametrize(
    "arguments, problem, cure",
    [
        (["tokens=0"], "sample.tokens=0: nothing is to be written", "give tokens=100"),
        (["tokens=x"], "sample.tokens: Value 'x'", "a whole number of tokens"),
        (["top_p=0"], "sample.top_p=0.0 makes no sense", "more than 0, up to 1"),
        (["top_k=1,2"], "sample.top_k=1,2: several values", "takes one"),
        (["temperature=0"], "sample.temperature=0.0 makes no sense", "more than 0"),
        (["samples=0"], "samples=0 makes no sense", "1 to 10,000"),
        (["samples=-1"], "samples=-1 makes no sense", "1 to 10,000"),
        (["samples=10001"], "samples=10001 makes no sense", "1 to 10,000"),
        (["prompt=a\udcff", "tokens=2"], r"the text has '\udcff', and is no UTF-8", "give text in UTF-8"),
        (["device=tpu"], "device=tpu", "allowed: auto"),
        (["prompt=a", "prompt=b"], "2 arguments prompt=", "'prompt=[a,b]'"),
        (["prompt=FILE:nowhere"], "prompt=FILE:nowhere cannot be read: No such file", "FILE:PATH names a text file"),
        (["temprature=1"], "temprature=1: no such argument", "did you mean temperature?"),
        (["elsewhere"], "elsewhere: one checkpoint writes", "usage: python -m gpt.generate"),
        (["model.n_layer=3"], "model.n_layer=3: no such argument", "usage: python -m gpt.generate"),
    ],
)
def test_wrong_input_is_refused(arguments, problem, cure, generated):
    code, said, refusal = generated(*arguments)
    assert (code, said) == (2, "")
    assert refusal.startswith("error: ") and problem in refusal.splitlines()[0], refusal
    assert cure in refusal


def test_no_checkpoint(generated, tmp_path):
    assert "no directory is given" in generated(source=None)[2]
    assert "holds no weights" in generated(source=tmp_path)[2]


@pytest.mark.slow
def test_help_needs_no_torch():
    code = "import sys, runpy; sys.argv = ['x', '--help']\n" \
           "try: runpy.run_module('gpt.generate', run_name='__main__')\n" \
           "finally: assert not {'torch', 'hydra'} & set(sys.modules)"  # fmt: skip
    env = environment(PYTHONPATH=str(ROOT))
    done = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "top_p=P" in done.stdout


class Terminal:
    """The command in a terminal of its own."""

    def __init__(self, *arguments):
        self.master, terminal = pty.openpty()
        self.process = subprocess.Popen(
            [sys.executable, "-m", "gpt.generate", *arguments], env=environment(PYTHONPATH=str(ROOT), TERM="dumb"),
            stdin=terminal, stdout=terminal, stderr=terminal,
        )  # fmt: skip
        os.close(terminal)

    def read_until(self, end, seconds=60):
        """What it prints until then."""
        said = b""
        deadline = time.monotonic() + seconds
        while not said.endswith(end):
            assert time.monotonic() < deadline, said
            if select.select([self.master], [], [], 0.1)[0]:
                said += os.read(self.master, 4096)
        return said.decode().replace("\r\n", "\n")

    def type(self, text):
        os.write(self.master, text.encode())


@pytest.mark.slow
def test_a_terminal_asks_for_one_prompt_after_the_other(saved):
    terminal = Terminal(str(saved / "run"), "tokens=9", "temperature=0.01")
    try:
        assert "Ctrl-D ends." in terminal.read_until(b"> ")
        for prompt in ("def f(a, b)", "def f(a, b)", ""):
            terminal.type(prompt + "\n")
            said = terminal.read_until(b"\n> ")
            assert said.count(prompt) >= 2  # as typed, and continued
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.process.kill()
        os.close(terminal.master)
