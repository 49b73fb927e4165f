"""docs/evaluation.md says what is true, and eval.py gives the same figures however it is run."""

import json
import re
import shutil

import pytest
from conftest import ROOT, SHARED, call
from test_tasks import WeightNorm

from gpt.evaluation.task import Task
from gpt.evaluation.tasks import TASKS

PAGE = (ROOT / "docs" / "evaluation.md").read_text()
FILE = SHARED / "data" / "hellaswag_val_1000.jsonl"


def test_the_table_has_every_task():
    rows = re.findall(r"^\| `(\w+)` \|.*\| ([^|]*) \|$", PAGE, re.MULTILINE)
    when = {"always": "each evaluation", "chosen": "chosen", "alone": "in `eval.py` alone"}
    assert {name for name, _ in rows} == set(TASKS)
    for name, words in rows:
        assert words.startswith(when[TASKS[name].runs])


def test_the_task_of_ones_own_is_one():
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    names = {}
    exec(block, names)
    assert issubclass(names["WeightNorm"], Task)
    assert names["WeightNorm"].measure.__code__.co_code == WeightNorm.measure.__code__.co_code


@pytest.mark.slow
@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")
def test_ranks_and_micro_batches_change_no_figure(saved, text_file, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved / "run", run, symlinks=True)
    tasks = ["tasks=[val,perplexity,hellaswag,arithmetic]", "arithmetic.problems=3", "hellaswag.examples=20"]
    inputs = [f"hellaswag.path={FILE}", f"perplexity.files={ROOT / 'LICENSE'}", "trainer.eval_tokens=5000"]
    variants = [[], ["cluster=ddp", "cluster.nproc=2"], ["cluster=ddp", "cluster.nproc=2", "batch.micro_batch_size=3"]]
    variants.append(["batch.micro_batch_size=7"])
    for variant in variants:
        done = call(str(run), *tasks, *inputs, "cluster.threads=1", *variant, cwd=tmp_path, script="eval.py")
        assert done.returncode == 0, done.stdout + done.stderr
    (results,) = (run / "checkpoints").glob("eval-*.json")
    first, *others = json.loads(results.read_text())
    assert len(others) == 3
    for other in others:
        for task in ("val", "perplexity", "hellaswag", "arithmetic"):
            assert other[task] == pytest.approx(first[task], rel=1e-6), task
