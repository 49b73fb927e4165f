"""The README and docs/ say what is true."""

import functools
import json
import re
import runpy
import shlex

import pytest
from conftest import ROOT, call

from gpt.cli.compose import compose
from gpt.cli.help import EXAMPLES
from gpt.config.groups import CONF, GROUPS, options
from gpt.config.load import flatten
from gpt.config.schema import VARIANTS, Config
from gpt.schedule import SHAPES

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
COMMANDS = sorted(
    {
        line.removeprefix("$ ").partition("  #")[0].strip()
        for page in PAGES
        for line in page.read_text().splitlines()
        if re.match(r"(\$ )?python (train\.py|eval\.py|-m data\.(prepare|show|export)) ", line)
    }
)


@pytest.mark.slow
@pytest.mark.parametrize("line", COMMANDS)
def test_every_command_composes(line):
    own = ("-", "resume=", "checkpoint=", "tasks=", "weights=", "format=", "to=", "verify=")
    overrides = [a for a in shlex.split(line)[2:] if "=" in a and not a.startswith(own)]
    if "model.n_embd=130" in overrides:  # shown as a wrong one
        return
    if "--multirun" in line or "sweeps=" in line:  # several values are several jobs, of which the first one is composed
        overrides = [re.sub(r"=([\w.+-]+),.*", r"=\1", a) for a in overrides]
    assert set(flatten(compose(overrides)))


def test_help_examples_compose():
    for line in EXAMPLES.splitlines():
        assert isinstance(compose([a for a in line.split()[2:] if not a.startswith("resume=")]), Config)


def test_the_table_of_groups_is_complete():
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) \|", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert {group: set(re.findall(r"`(\w+)`", options)) for group, options in rows.items()} == {
        group: set(options(group)) for group in GROUPS
    }


@functools.cache
def keys_of_options() -> frozenset[str]:
    """All keys of any option of the groups that have keys of their own."""
    options_of_groups = [f"{group}={option}" for group in VARIANTS for option in options(group)]
    return frozenset(key for option in options_of_groups for key in flatten(compose([option])))


@pytest.mark.slow
def test_named_tests_keys_files_and_images_exist():
    tests = "\n".join(path.read_text() for path in (ROOT / "tests").rglob("*.py"))
    keys = keys_of_options()
    for page in PAGES:
        text = page.read_text()
        for name in re.findall(r"`(test_\w+)`", text):
            assert f"def {name}(" in tests, f"{page.name}: {name}"
        for key in re.findall(
            r"`((?:data|trainer|model|batch|optimizer|schedule|checkpoint|sample|tracker)\.[\w.]+)", text
        ):
            assert key in keys or (ROOT / key.replace(".", "/")).with_suffix(".py").exists(), f"{page.name}: {key}"
        for target in re.findall(r"\]\(([^)#:]+)\)", text):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def test_the_step_against_hugging_face_is_that_of_the_benchmark():
    ratios = json.loads((ROOT / "benchmarks" / "results" / "step.json").read_text())["ratios"]
    rows = re.findall(
        r"^\| (\w+ (?:eager|compiled)) \| ([\d.]+) \| ([\d.]+) \|$",
        (ROOT / "docs" / "config.md").read_text(),
        re.MULTILINE,
    )
    speeds, memory = ratios["tokens_per_sec_over_hf"], ratios["memory_over_hf"]
    assert rows == [(mode, f"{speeds[mode]:.2f}", f"{memory[mode]:.2f}") for mode in speeds]


def test_the_speed_of_generating_is_that_of_the_benchmark():
    ratios = json.loads((ROOT / "benchmarks" / "results" / "generate.json").read_text())["ratios"]
    page = (ROOT / "docs" / "config.md").read_text()
    assert f"\n{ratios['tokens_per_sec_over_hf']:.2f} times as many tokens per second" in page
    cost = ratios["cost_beyond_over_first"]
    assert f"\n{cost['median']:.2f} times as much as one of the first 100" in page
    assert f"; {cost['max']:.2f} where the half is read again" in page


def test_measured_tables_are_those_of_the_benchmarks():
    measured, page = json.loads((ROOT / "benchmarks" / "results" / "data.json").read_text()), ROOT / "docs" / "data.md"
    rows = re.findall(r"^\| ([^|`]*?) \| (\d+) \|$", page.read_text(), re.MULTILINE)
    medians = {name: round(spread["median"]) for name, spread in measured["figures"].items()}
    assert {name: int(figure) for name, figure in rows} == medians
    memory = [round(megabytes) for megabytes in measured["ratios"]["prepare_megabytes"].values()]
    assert "{} MB in all for 20 MB of text, {} MB for 2 GB".format(*memory) in page.read_text()


def test_the_efficiency_of_ranks_is_that_of_the_benchmark():
    ratios = json.loads((ROOT / "benchmarks" / "results" / "scaling.json").read_text())["ratios"]
    parts = [ratios[key] for key in ("efficiency", "communication_share", "efficiency_of_the_machine")]
    rows = re.findall(
        r"^\| (\d) \| ([\d.]+) \| (\d+) % \| ([\d.]+) \|$", (ROOT / "docs" / "cluster.md").read_text(), re.MULTILINE
    )
    expected = {
        name.split()[1]: (f"{efficiency:.2f}", f"{share:.0%}"[:-1], f"{machine:.2f}")
        for (name, efficiency), share, machine in zip(parts[0].items(), *(p.values() for p in parts[1:]), strict=True)
    }
    assert {micro_steps: tuple(row) for micro_steps, *row in rows} == expected


def test_the_cost_of_a_mirror_is_that_of_the_benchmark():
    ratios = json.loads((ROOT / "benchmarks" / "results" / "mirror.json").read_text())["ratios"]
    rows = re.findall(r"^\| (\d+) \| ([\d.]+ ± [\d.]+) \|$", (ROOT / "docs" / "wandb.md").read_text(), re.MULTILINE)
    assert {f"wandb / local, {count} metrics per step": figure for count, figure in rows} == {
        name: f"{ratio['mean']:.2f} ± {ratio['standard error']:.2f}" for name, ratio in ratios.items()
    }


@pytest.mark.slow
def test_the_reference_of_all_keys_is_that_of_conf():
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    written = generate["PAGE"].read_text().partition(generate["MARK"])[2]
    assert written.strip() == generate["reference"]().strip(), "write it anew: make docs"
    documented = set(re.findall(r"^\| `([\w.]+)` \|", written, re.MULTILINE))
    keys = keys_of_options()
    assert {key for key in keys if not key.endswith(".name")} <= documented


ABLATIONS = ROOT / "docs" / "ablations.md"


def test_the_table_of_sweeps_is_that_of_their_files():
    rows = re.findall(r"^\| `(\w+)` \| ([^|]+\?) \|$", ABLATIONS.read_text(), re.MULTILINE)
    assert dict(rows) == options("sweeps")


def test_the_results_of_sweeps_are_those_of_the_benchmark():
    generate = runpy.run_path(str(ROOT / "docs" / "generate.py"))
    page = ABLATIONS.read_text()
    assert page.count("<!-- results of ") == 6
    assert generate["filled_in"](page) == page, "write it anew: make docs"
    speedrun = generate["SPEEDRUN"].read_text()
    assert generate["filled_in"](speedrun) == speedrun, "write it anew: make docs"
    readme = (ROOT / "README.md").read_text()
    for label, row in re.findall(
        r"^\| `(\w+)` \| (\d\.\d+ ± \d\.\d+) \|", generate["results"]("optimizers"), re.MULTILINE
    ):
        assert re.search(rf"^{label} +3 +{row} ", readme, re.MULTILINE), label


def test_the_ladder_leaves_out_runs_of_fewer_seeds_than_a_record_has(tmp_path, monkeypatch):
    """As make speedrun adds them to the file of records."""
    ladder = runpy.run_path(str(ROOT / "docs" / "generate.py"))["ladder"]
    table = ladder("speedrun")
    records = ladder.__globals__["RECORDS"]
    one_seed = json.loads(records.read_text().splitlines()[0]) | {"losses": {"1": 1.9}, "p": None}
    one_seed["val_loss"] = {"mean": 1.9, "low": None, "high": None}
    monkeypatch.setitem(ladder.__globals__, "RECORDS", tmp_path / "records.jsonl")
    (tmp_path / "records.jsonl").write_text(records.read_text() + json.dumps(one_seed) + "\n")
    assert ladder("speedrun") == table


@pytest.mark.slow
def test_a_sweep_as_the_docs_write_one_is_planned(tmp_path):
    whole, arms = re.findall(r"```yaml\n(.*?)```", ABLATIONS.read_text(), re.DOTALL)
    (tmp_path / "sweeps").mkdir()
    (tmp_path / "sweeps" / "whole.yaml").write_text(whole)
    (tmp_path / "sweeps" / "arms.yaml").write_text(
        "# @package _global_\n" + arms.replace("hydra:\n", "hydra:\n  mode: MULTIRUN\n")
    )
    for name, first, last in (("whole", "dropout-0.0_seed-1", "9 jobs"), ("arms", "adamw_seed-1", "6 jobs")):
        done = call(f"sweeps={name}", f"hydra.searchpath=[file://{tmp_path}]", "plan=true", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert f"\n{first} " in done.stdout and f"\n{last} " in done.stdout


@pytest.mark.slow
def test_a_refusal_of_a_sweep_is_as_shown(tmp_path):
    command, *said = re.search(r"^\$ python train.py (.*(?:\n(?!```).*)*)", ABLATIONS.read_text(), re.MULTILINE)[
        1
    ].splitlines()
    refused = call(*shlex.split(command), cwd=tmp_path)
    assert refused.stderr.splitlines() == said


@pytest.mark.slow
def test_the_search_for_hyperparameters_finds_one(small, tmp_path):
    pytest.importorskip("optuna", reason="needs optuna")
    code = re.search(r"```python\n(.*?)```", ABLATIONS.read_text(), re.DOTALL)[1]
    code = code.replace("range(20)", "range(2)").replace('"train.py"', f'"{ROOT / "train.py"}"')
    code = code.replace('"experiment=ablation_toy"', f"*{small!r}")
    (tmp_path / "search.py").write_text(code)
    done = call(cwd=tmp_path, script=str(tmp_path / "search.py"))
    assert done.returncode == 0, done.stderr
    assert re.search(r"^\{'lr': [\d.e-]+, 'weight_decay': [\d.]+\} [\d.]+$", done.stdout, re.MULTILINE)


RECIPES = dict(
    re.findall(
        r"`conf/(\w+)/NAME.yaml`.*?```yaml\n(.*?)```",
        (ROOT / "docs" / "config.md").read_text(),
        re.MULTILINE | re.DOTALL,
    )
)


@pytest.mark.parametrize("group", ["model", "data", "optimizer"])
def test_an_option_added_as_the_docs_say_composes(group, tmp_path):
    (tmp_path / group).mkdir()
    (tmp_path / group / "mine.yaml").write_text(RECIPES[group].replace("NAME", "mine"))
    config = compose([f"hydra.searchpath=[file://{tmp_path}]", f"{group}=mine"])
    if group == "model":
        assert (config.model.name, config.model.n_embd, config.optimizer.lr) == ("mine", 512, 8e-4)
    elif group == "data":
        assert (config.data.name, config.data.tokenizer, config.data.shuffle) == ("mine", "gpt2", True)
    else:
        assert (config.optimizer._target_, config.optimizer.options) == (
            "package.Class",
            {"precondition_frequency": 10},
        )


def test_a_schedule_added_as_the_docs_say_composes(tmp_path, monkeypatch):
    monkeypatch.setitem(SHAPES, "square", lambda progress, grown: 1 - progress**2)
    (tmp_path / "schedule").mkdir()
    keys = (CONF / "schedule" / "linear.yaml").read_text().replace("name: linear", "name: square")
    (tmp_path / "schedule" / "square.yaml").write_text(keys)
    schedule = compose(
        [f"hydra.searchpath=[file://{tmp_path}]", "schedule=square", "schedule.warmup_tokens=0"]
    ).schedule
    assert schedule.multiplier(500, 1000) == pytest.approx(0.1 + 0.9 * 0.75)
