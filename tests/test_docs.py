"""The README and docs/ say what is true."""

import json
import re
import shlex

import pytest
from conftest import ROOT

from gpt import cli
from gpt.compose import compose
from gpt.config import Config, flatten

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.removeprefix("$ ").partition("  #")[0].strip()
        for page in PAGES
        for line in page.read_text().splitlines()
        if re.match(r"(\$ )?python (train\.py|-m data\.prepare) ", line)
    }
)


@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes(line):
    overrides = [
        a for a in shlex.split(line.replace("'", ""))[2:] if not a.startswith(("-", "resume=", "data.prepare"))
    ]
    if "model.n_embd=130" in overrides:  # shown as a wrong one
        return
    overrides = [re.sub(r"=(\w+),.*", r"=\1", a) if "--multirun" in line else a for a in overrides]
    assert set(flatten(compose(overrides)))


def test_help_examples_compose():
    for line in cli.EXAMPLES.splitlines():
        assert isinstance(compose([a for a in line.split()[2:] if not a.startswith("resume=")]), Config)


def test_the_table_of_groups_is_complete():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {group: set(re.findall(r"`(\w+)`", options)) for group, options in rows.items()} == {
        group: set(cli.options(group)) for group in cli.GROUPS
    }


def test_named_tests_keys_files_and_images_exist():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").glob("*.py"))
    keys = set(flatten(compose([])))
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, f"{page.name}: {name}"
        for key in re.findall(r"`((?:data|trainer|model|batch|optimizer|schedule|checkpoint|sample)\.\w+)", text):
            assert key in keys or (ROOT / key.replace(".", "/")).with_suffix(".py").exists(), f"{page.name}: {key}"
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_measured_tables_are_those_of_the_benchmarks():
    figures = json.loads((ROOT / "benchmarks" / "results" / "data.json").read_text())["figures"]
    rows = re.findall(
        r"^\| (.*(?:memmap|Dataset).*?) \| (\d+) \|$", (ROOT / "docs" / "data.md").read_text(), re.MULTILINE
    )
    assert {name: int(figure) for name, figure in rows} == {name: round(v["median"]) for name, v in figures.items()}
