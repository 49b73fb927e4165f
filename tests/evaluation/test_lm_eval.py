"""lm-evaluation-harness on a model of ours, and against its own HFLM on the exported one."""

import json
import math
from contextlib import nullcontext

import pytest
import torch
from conftest import SHARED
from interop.weights import built, model_config, pretrained

from gpt.cli.compose import compose
from gpt.device import Compute
from gpt.distributed import World
from gpt.errors import InputError
from gpt.evaluation import lm_eval_names
from gpt.evaluation.task import Subject
from gpt.interop import hf_export
from gpt.tokens.tokenizer import get_tokenizer

CPU = Compute(torch.device("cpu"), nullcontext())
FILE = SHARED / "data" / "hellaswag_val_1000.jsonl"
CHOICE = """
task: own_choice
dataset_path: json
dataset_kwargs: {data_files: {validation: PATH}}
validation_split: validation
output_type: multiple_choice
doc_to_text: "{{ctx}}"
doc_to_target: "{{label}}"
doc_to_choice: "{{endings}}"
metric_list: [{metric: acc, aggregation: mean, higher_is_better: true}]
"""
WRITTEN = """
task: own_written
dataset_path: json
dataset_kwargs: {data_files: {validation: PATH}}
validation_split: validation
output_type: generate_until
doc_to_text: "{{ctx}}"
doc_to_target: "{{ctx}}"
generation_kwargs: {until: ["\\n"], max_gen_toks: 5}
metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]
"""
ROLLING = """
task: own_rolling
dataset_path: json
dataset_kwargs: {data_files: {validation: PATH}}
validation_split: validation
output_type: loglikelihood_rolling
doc_to_text: ""
doc_to_target: "{{ctx}}"
metric_list: [{metric: bits_per_byte, aggregation: bits_per_byte, higher_is_better: false}]
"""


def harness():
    return pytest.importorskip("gpt.evaluation.lm_eval")


@pytest.mark.slow
@pytest.mark.skipif(not FILE.exists(), reason=f"{FILE} is not there")
def test_log_likelihoods_are_those_of_hflm_on_the_exported_model(tmp_path, gpt2_vocabulary):
    """200 pairs; some do not fit into the context, and lose the same of it."""
    ours = harness()
    from lm_eval.api.instance import Instance
    from lm_eval.models.huggingface import HFLM

    config = model_config(seq_len=64)
    weights = pretrained(config, 50_257, "gpt2")
    hf_export.write(weights, tmp_path / "exported", "fp32")
    requests = []
    for line in FILE.read_text().splitlines()[:50]:
        example = json.loads(line)
        for ending in example["endings"]:
            requests.append(Instance("loglikelihood", example, (example["ctx"], " " + ending), 0))
    requests[7] = Instance("loglikelihood", {}, ("", "An ending without a beginning"), 0)
    requests[9] = Instance("loglikelihood", {}, ("A context that ends in spaces  ", "and its ending"), 0)

    reference = HFLM(pretrained=str(tmp_path / "exported"), device="cpu", batch_size=16, dtype="float32")
    expected = reference.loglikelihood(requests, disable_tqdm=True)
    model = ours.HarnessModel(built(config, 50_257), get_tokenizer("gpt2"), CPU, 1024)
    found = model.loglikelihood(requests, disable_tqdm=True)
    assert len(found) == 200
    for (log_p, greedy), (their_log_p, their_greedy) in zip(found, expected, strict=True):
        assert log_p == pytest.approx(their_log_p, abs=1e-3)
        assert greedy == their_greedy
    texts = [Instance("loglikelihood_rolling", {}, (example["ctx"] * 9,), 0)]
    rolling = model.loglikelihood_rolling(texts), reference.loglikelihood_rolling(texts, disable_tqdm=True)
    assert rolling[0] == pytest.approx(rolling[1], abs=1e-2)


@pytest.mark.slow
def test_tasks_of_ones_own_are_run_from_their_directory(tmp_path):
    ours = harness()
    data = tmp_path / "data.jsonl"
    rows = [
        {"ctx": f"{number} cats sit", "endings": [" down.", " on a mat", " up"], "label": number % 3}
        for number in range(9)
    ]
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, text in {"a": CHOICE, "b": WRITTEN, "c": ROLLING}.items():
        (tmp_path / f"{name}.yaml").write_text(text.replace("PATH", str(data)))
    overrides = [
        "lm_eval.tasks=[own_choice,own_written,own_rolling]",
        f"lm_eval.include_path={tmp_path}",
        "lm_eval.limit=6",
    ]
    config = compose(overrides)
    lm_eval_names.check(config)
    task = ours.LmEval.build(Subject(config, get_tokenizer("bytes"), None))
    model = built(model_config())
    metrics = task.measure(model, 0, CPU).metrics
    assert sorted(metrics) == ["val/own_choice_acc", "val/own_rolling_bits_per_byte", "val/own_written_exact_match"]

    # The same without the harness.
    right = 0
    bits = 0.0
    n_bytes = 0
    for row in rows[:6]:
        losses = []
        for ending in row["endings"]:
            losses.append(nats(model, row["ctx"].encode(), ending.encode()))
        right += losses.index(min(losses)) == row["label"]
        bits += nats(model, [256], row["ctx"].encode()) / math.log(2)
        n_bytes += len(row["ctx"].encode())
    assert metrics["val/own_choice_acc"] == right / 6
    assert metrics["val/own_rolling_bits_per_byte"] == pytest.approx(bits / n_bytes, rel=1e-5)
    assert metrics["val/own_written_exact_match"] == 0.0


@torch.no_grad()
def nats(model, context, continuation):
    """The loss of a continuation, in nats."""
    ids = torch.tensor([[*context, *continuation]])
    log_p = model.logits(model(ids[:, :-1]))[0].log_softmax(-1)
    targets = ids[0, len(context) :]
    return -log_p[len(context) - 1 :].gather(1, targets[:, None]).sum().item()


def test_a_task_that_is_not_known_is_refused_by_name(monkeypatch):
    ours = harness()

    class Manager:
        all_tasks = ("piqa", "lambada_openai")

        def __init__(self, include_path=None):
            pass

    monkeypatch.setattr(ours, "TaskManager", Manager)
    with pytest.raises(InputError, match=r"piqaa is not known\n.*did you mean piqa\?"):
        ours.LmEval.build(Subject(compose(["lm_eval.tasks=[piqaa]"]), get_tokenizer("bytes"), None))


def test_data_that_cannot_be_fetched_is_told(monkeypatch):
    ours = harness()
    task = ours.LmEval(compose(["lm_eval.tasks=[piqa]"]).lm_eval, None, get_tokenizer("bytes"), 64, 1)

    def unreachable(*_, **__):
        raise ConnectionError("Couldn't reach 'baber/piqa' on the Hub\nmore")

    monkeypatch.setattr(ours, "simple_evaluate", unreachable)
    with pytest.raises(InputError, match=r"cannot be loaded: Couldn't reach 'baber/piqa' on the Hub\n"):
        task.measure(built(model_config()), 0, CPU)


def test_every_rank_gets_the_results_that_the_harness_gives_to_the_first(monkeypatch):
    ours = harness()
    task = ours.LmEval(compose(["lm_eval.tasks=[piqa]"]).lm_eval, None, get_tokenizer("bytes"), 64, 1)
    values = {
        "alias": "piqa",
        "acc,none": 0.5,
        "acc_stderr,none": 0.1,
        "exact_match,strict-match": 0.25,
        "sample_len": 4,
        "bleu,none": math.nan,
    }
    expected = {"val/piqa_acc": 0.5, "val/piqa_exact_match_strict-match": 0.25}

    class Ranks(World):
        def gather(self, value):
            return [expected, value]

    monkeypatch.setattr(ours, "simple_evaluate", lambda *_, **__: {"results": {"piqa": values}})
    assert task.measure(built(model_config()), 0, CPU).metrics == expected
    monkeypatch.setattr(ours, "simple_evaluate", lambda *_, **__: None)
    second = Compute(torch.device("cpu"), nullcontext(), Ranks(1, 1, 2))
    assert task.measure(built(model_config()), 0, second).metrics == expected


def test_an_answer_ends_at_the_first_of_its_ends(monkeypatch):
    ours = harness()
    from lm_eval.api.instance import Instance

    bytes_ = get_tokenizer("bytes")
    written = [*b"one\ntwo", bytes_.eot_token, *b"three"]
    monkeypatch.setattr(ours, "generate", lambda _, ids, *__, **___: torch.cat([ids, torch.tensor([written])], 1))
    model = ours.HarnessModel(built(model_config()), bytes_, CPU, 64)
    for until, answer in {None: "one\ntwo", "two": "one\n", ("t", "\n"): "one"}.items():
        options = {"until": list(until) if isinstance(until, tuple) else until}
        assert model.generate_until([Instance("generate_until", {}, ("x", options), 0)]) == [answer]


def test_it_says_what_it_needs(monkeypatch):
    with pytest.raises(InputError, match="has no tasks to run"):
        lm_eval_names.check(compose([]))
    with pytest.raises(InputError, match="include_path=nowhere: no such directory"):
        lm_eval_names.check(compose(["lm_eval.tasks=[own]", "lm_eval.include_path=nowhere"]))
    monkeypatch.setattr(lm_eval_names, "find_spec", lambda name: None)
    with pytest.raises(InputError, match=r"not installed\n  pip install lm_eval=="):
        lm_eval_names.check(compose(["lm_eval.tasks=[piqa]"]))
