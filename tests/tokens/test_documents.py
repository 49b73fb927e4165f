"""Packed, separate and masked documents, loss masks, exact answers, arithmetic."""

import itertools
import json
import re
from contextlib import nullcontext
from pathlib import Path

import h5py
import numpy as np
import pytest
import torch
from conftest import call

from data.preparation import check_fits, prepare
from data.sources.base import source_of
from gpt.cli.compose import compose
from gpt.device import Compute
from gpt.errors import InputError
from gpt.evaluation.exact_match import KEY, ExactMatch
from gpt.generate.decode import generate
from gpt.layers.masks import document_layout
from gpt.loss import loss_sum
from gpt.tokens.loader import TokenDataset, count_targets, unpack
from gpt.tokens.order import SampleOrder
from gpt.tokens.windows import ID, IGNORE, NO_TARGET, STARTS, Windows, open_windows
from gpt.trainer import Trainer

T = 16


@pytest.fixture(scope="module")
def lines(tmp_path_factory) -> Path:
    """Documents of 0 to 60 bytes."""
    path = tmp_path_factory.mktemp("lines") / "lines.jsonl"
    draws = np.random.default_rng(1)
    texts = ["".join(map(chr, draws.integers(97, 123, n))) for n in draws.integers(0, 61, 400)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return path


@pytest.fixture
def files(lines, cache):
    def prepared(*overrides):
        overrides = ["data=jsonl", f"data.files=[{lines}]", "data.tokenizer=bytes", *overrides]
        return prepare(compose([f"data.cache_dir={cache}", *overrides]).data)

    return prepared


def filled(windows: Windows, starts) -> np.ndarray:
    rows = np.empty((len(starts), windows.seq_len + 1), np.int64)
    for row, start in zip(rows, starts, strict=True):
        windows.fill(row, int(start))
    return rows


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_separate_windows_hold_every_target_once_and_one_document(files, tokenizer):
    file, _ = files(f"data.tokenizer={tokenizer}", "data.shard_tokens=1_000")
    windows = open_windows(file, T, "separate", "mmap")
    ids, offsets = file.reader()(0, file.n_tokens), file.doc_offsets()
    starts, seen = windows.starts(np.arange(windows.n_windows)), []
    for start, row in zip(starts, filled(windows, starts), strict=True):
        document = np.searchsorted(offsets, start, side="right")
        places = start + np.flatnonzero(row & NO_TARGET == 0)
        targets = places[places > start]
        seen += targets.tolist()
        assert np.array_equal(row[targets - start] & ID, ids[targets])
        last = targets.max(initial=start)  # the next document's end-of-text ends this one
        assert np.searchsorted(offsets, last - (tokenizer == "bytes"), side="right") == document
    firsts = set(offsets.tolist()) if tokenizer == "chars" else {0}
    assert sorted(seen) == [i for i in range(file.n_tokens) if i not in firsts]


def test_every_separate_window_comes_once_an_epoch(files):
    file, _ = files()
    windows = open_windows(file, T, "separate", "mmap")
    order = SampleOrder(1, windows)
    n = order.n_windows
    epochs = [sorted(order.starts(first, n).tolist()) for first in (0, n)]
    assert epochs[0] == epochs[1] == windows.starts(np.arange(n)).tolist()
    assert order.starts(0, n).tolist() != order.starts(n, n).tolist() != epochs[0]
    in_turn = SampleOrder(1, windows, kind="sequential")
    assert in_turn.starts(0, n).tolist() == epochs[0]


@pytest.mark.parametrize("tokenizer, n_files", [("bytes", 3), ("bytes", 1), ("chars", 3)])
def test_of_a_file_that_starts_within_a_document_every_target_counts(tmp_path, tokenizer, n_files):
    """The validation part of few texts, which are split by position."""
    length = 900 // n_files
    for number in range(n_files):
        (tmp_path / f"{number}.txt").write_text("abcdefghi"[number] * length)
    overrides = [
        "data=text",
        f"data.files=['{tmp_path}/*.txt']",
        f"data.tokenizer={tokenizer}",
        "data.val_fraction=0.5",
    ]
    _, file = prepare(compose([*overrides, f"data.cache_dir={tmp_path}/cache"]).data)
    offsets = file.doc_offsets().tolist()
    assert len(offsets) == n_files // 2
    assert 0 not in offsets
    no_targets = {0} | (set(offsets) if tokenizer == "chars" else set())
    expected = [i for i in range(file.n_tokens) if i not in no_targets]
    for kind in ("separate", "masked"):
        windows = open_windows(file, T, kind, "mmap")
        windows.check_documents()
        starts = windows.starts(np.arange(windows.n_windows))
        seen = []
        for start, row in zip(starts, filled(windows, starts), strict=True):
            seen += (start + 1 + np.flatnonzero(row[1:] & NO_TARGET == 0)).tolist()
        assert sorted(seen) == expected


@pytest.mark.parametrize("tokenizer", ["bytes", "chars"])
def test_masked_windows_are_packed_ones_that_say_where_documents_start(files, tokenizer):
    file, _ = files(f"data.tokenizer={tokenizer}")
    starts = SampleOrder(1, open_windows(file, T, "packed", "mmap")).starts(0, 100)
    packed, masked = (filled(open_windows(file, T, kind, "pread"), starts) for kind in ("packed", "masked"))
    assert np.array_equal(masked & ID, packed)
    offsets = set(file.doc_offsets().tolist())
    for start, row in zip(starts.tolist(), masked, strict=True):
        begins = [i for i in range(T + 1) if start + i in offsets]
        assert np.flatnonzero(row & STARTS).tolist() == begins
        assert np.flatnonzero(row & NO_TARGET).tolist() == (begins if tokenizer == "chars" else [])


@pytest.mark.parametrize("attention, position", [("sdpa", "learned"), ("naive", "learned"), ("sdpa", "sinusoidal")])
def test_a_masked_document_is_read_as_if_it_stood_alone(trainer, attention, position):
    model = trainer(f"model.attention={attention}", f"model.position={position}").state.model
    row = torch.randint(0, 256, (1, 33))
    begins = [0, 5, 6, 20]
    row[0, begins[1:]] |= STARTS
    inputs, targets, documents = unpack(row, masked=True)
    assert documents[0].tolist() == [0] * 5 + [5] + [6] * 14 + [20] * 12
    hidden = model(inputs, layout=document_layout(documents))
    total = 0
    for begin, end in itertools.pairwise([*begins, 32]):
        alone = inputs[:, begin:end]
        assert torch.allclose(hidden[:, begin:end], model(alone), atol=1e-5)
        total += loss_sum(model, alone, targets[:, begin:end])
    assert loss_sum(model, inputs, targets, documents).item() == pytest.approx(total.item(), rel=1e-5)


def test_unpack_leaves_out_what_is_no_target():
    batch = torch.tensor([[5, 6 | NO_TARGET, 7, 8 | NO_TARGET | STARTS]])
    inputs, targets, documents = unpack(batch, masked=False)
    assert (inputs.tolist(), targets.tolist(), documents) == ([[5, 6, 7]], [[IGNORE, 7, IGNORE]], None)
    assert count_targets(batch) == 1


ADDITION = """
    data=addition data.digits=1 data.problems=80 data.val_problems=20 model.seq_len=8 batch.global_tokens=64
    batch.micro_batch_size=8 trainer.grad_clip=0 trainer.max_steps=4
""".split()


@pytest.mark.parametrize("documents", ["packed", "separate"])
def test_a_masked_loss_is_the_mean_over_the_targets_of_the_whole_batch(trainer, documents):
    """Whatever the micro-batches, of which each has another number of targets."""
    gradients = []
    for micro in (8, 2, 1):
        overrides = ["data.files=[]", *ADDITION, f"data.documents={documents}", f"batch.micro_batch_size={micro}"]
        run = trainer(*overrides)
        step = run.stepper.train_step(run.stepper.batches())
        averages = run.state.optimizers[0].state  # a tenth of the gradient, after one step
        gradients.append({name: averages[p]["exp_avg"] for name, p in run.state.model.named_parameters()})
        if micro == 8:
            fresh = trainer(*overrides)
            batch = next(next(fresh.stepper.batches()).micro_batches)
            inputs, targets, _ = unpack(batch, masked=False)
            assert 0 < count_targets(batch) < targets.numel()
            expected = loss_sum(fresh.state.model, inputs, targets) / count_targets(batch)
            assert step.loss.item() == pytest.approx(expected.item(), rel=1e-6)
    for other in gradients[1:]:
        for name, value in other.items():
            assert (value - gradients[0][name]).norm() <= 1e-5 * value.norm(), name


def share_of(run: Trainer) -> float:
    """The exact match of a trainer's own task."""
    return (
        run.tasks["exact_match"].measure(run.state.model, 0, Compute(torch.device("cpu"), nullcontext())).metrics[KEY]
    )


@pytest.mark.slow
def test_exact_match_is_what_greedy_decoding_gets_right(trainer):
    overrides = ["data.files=[]", *ADDITION, "data.documents=separate", "trainer.max_steps=150", "model.init_std=0.1"]
    run = trainer(*overrides, "sample.tokens=0", "trainer.eval_every=64000")
    result = run.fit()
    windows = open_windows(run.stepper.dataset.windows.file, 8, "packed", "mmap")
    match = ExactMatch(windows, 4, every=1)
    share = match.measure(run.state.model, 0, Compute(torch.device("cpu"), nullcontext())).metrics[KEY]
    file = run.stepper.dataset.windows.file
    tokenizer = run.tasks["val"].tokenizer
    text = tokenizer.decode(file.reader()(0, file.n_tokens).tolist())
    right = 0
    for problem in text.splitlines():
        question = problem[: problem.index("=") + 1]
        prompt = torch.tensor([tokenizer.encode(question)])
        answer = len(problem) + 1 - len(question)
        ids = generate(run.state.model, prompt, answer, temperature=1.0, top_k=1, seed=1)
        right += tokenizer.decode(ids[0].tolist()) == problem + "\n"
    assert share == right / 80
    assert 0.1 < share < 1
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    assert rows[-1]["val/exact_match"] == result["exact_match"] == share_of(run)


def test_documents_that_do_not_fit_are_left_out_of_exact_match(trainer):
    run = trainer("data.files=[]", "data=arithmetic", "data.digits=1", "data.problems=200", "data.val_problems=50",
                  "model.seq_len=8", "batch.global_tokens=64", "batch.micro_batch_size=null")  # fmt: skip
    lengths = np.diff(run.tasks["val"].windows.file.doc_offsets(), append=run.tasks["val"].windows.file.n_tokens)
    assert 0 < len(run.tasks["exact_match"].documents) == (lengths <= 9).sum() < 50
    assert 0 <= share_of(run) <= 1


def test_where_no_document_fits_the_context_there_is_no_exact_match(trainer):
    run = trainer("data.files=[]", *ADDITION, "model.seq_len=3", "batch.global_tokens=24", "sample.tokens=0",
                  "trainer.max_steps=1")  # fmt: skip
    assert "exact_match" not in run.fit()


def undone(text: str) -> int:
    """A number written backwards."""
    return int(text[::-1])


@pytest.mark.parametrize("digits", [1, 2, 3])
def test_every_answer_is_right(digits, tmp_path):
    data = compose(["data=arithmetic", f"data.digits={digits}", "data.problems=300", "data.val_problems=80"]).data
    problems = [(piece.split, piece.question, piece.text) for piece, _ in source_of(data, tmp_path).pieces(None)]
    assert len({question for _, question, _ in problems}) == 380
    assert [split for split, *_ in problems] == ["val"] * 80 + ["train"] * 300
    kinds = []
    for _, question, answer in problems:
        a, kind, b = re.fullmatch(rf"(\d{{{digits}}})([-+*/])(\d{{{digits}}})=", question).groups()
        a, b, (*working, answer) = int(a), int(b), answer.removesuffix("\n").split("=")
        kinds.append(kind)
        if kind in "+-":
            assert undone(answer) == (a + b if kind == "+" else a - b)
            assert not working
        elif kind == "*":
            assert undone(answer) == sum(map(undone, working[0].split("+"))) == a * b
        else:
            assert tuple(map(undone, answer.split("r"))) == divmod(a, b)
            for part, quotient, rest in (re.fullmatch(r"(\d+)>(\d)r(\d+)", s).groups() for s in working[0].split(",")):
                assert divmod(int(part), b) == (int(quotient), int(rest))
    assert min(kinds.count(kind) for kind in "+-*/") > 60


def test_problems_for_validation_stay_whatever_there_is_for_training(tmp_path):
    def questions(*overrides):
        data = compose(["data=addition", "data.val_problems=50", *overrides]).data
        return [(p.split, p.question) for p, _ in source_of(data, tmp_path).pieces(None)]

    few, many = questions("data.problems=100"), questions("data.problems=300")
    assert few == many[:150]


WRONG = [
    (["data=addition", "data.digits=1"], "are more than there are", "with +: 100"),
    (["data=addition", "data.operations=x"], "data.operations='x'", "some of +-*/"),
    (["data=addition", "data.digits=12"], "data.digits=12", "up to 9 digits"),
]


@pytest.mark.parametrize("overrides, problem, cure", WRONG)
def test_wrong_arithmetic_is_refused(overrides, problem, cure, tmp_path):
    with pytest.raises(InputError) as caught:
        prepare(compose([*overrides, f"data.cache_dir={tmp_path}"]).data)
    assert problem in caught.value.problem
    assert cure in caught.value.cure


def fitted(run: Trainer) -> list[dict]:
    run.fit()
    rows = [json.loads(line) for line in (run.run_dir / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if not key.startswith("perf/")} for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("documents", ["separate", "masked"])
def test_workers_checkpointing_and_micro_batches_change_nothing_about_documents(files, trainer, lines, documents):
    overrides = ["data=jsonl", f"data.files=[{lines}]", "data.tokenizer=bytes", f"data.documents={documents}",
                 "trainer.max_steps=6", "sample.tokens=0", "trainer.eval_every=768"]  # fmt: skip
    plain = fitted(trainer(*overrides))
    assert plain[-1]["train/loss"] < plain[0]["train/loss"]
    assert fitted(trainer(*overrides, "data.num_workers=1")) == plain
    for other in (["model.activation_checkpointing=blocks"], ["model.attention=naive"], ["batch.micro_batch_size=1"]):
        for row, expected in zip(fitted(trainer(*overrides, *other)), plain, strict=True):
            assert row == pytest.approx(expected, rel=1e-4)


@pytest.mark.slow
def test_ranks_and_interruptions_change_nothing_about_masked_losses(small, cache, tmp_path):
    overrides = [*small, "data=addition", "data.files=[]", "data.digits=2", "data.problems=2_000",
                 "data.val_problems=200", f"data.cache_dir={cache}", "data.documents=separate", "model.seq_len=16",
                 "trainer.max_steps=12", "schedule=constant", "schedule.warmup_tokens=256", "checkpoint.every=6"]  # fmt: skip
    rows = []
    for name, more in {"one": [], "two": ["cluster=ddp", "cluster.nproc=2"], "half": ["trainer.max_steps=6"]}.items():
        done = call(*overrides, *more, f"hydra.run.dir={tmp_path}/{name}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
    done = call(f"resume={tmp_path}/half", "trainer.max_steps=12", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("one", "two", "half"):
        held = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        rows.append(
            [{key: row.get(key) for key in ("tokens", "train/loss", "val/loss", "val/exact_match")} for row in held]
        )
    one, two, resumed = rows
    assert resumed[-1] == one[-1]
    for a, b in zip(one, two, strict=True):
        assert b == pytest.approx(a, abs=1e-5)
    results = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("one", "two", "half")]
    assert len({result["data_order_hash"] for result in results}) == 1


@pytest.mark.slow
def test_a_small_model_learns_to_add(cache, tmp_path):
    """The recipe of experiment=addition, made smaller: two digits, one layer."""
    done = call("experiment=addition", "data.digits=2", "data.problems=8_000", "data.val_problems=2_000", "model.n_layer=1",
                "model.n_embd=64", "model.seq_len=9", "batch.global_tokens=1152", "schedule.warmup_tokens=23_040",
                "trainer.max_steps=400", "trainer.eval_every=460_800", "optimizer.lr=4e-3", "sample.prompt='12+34='", "device=cpu", "cluster.threads=1",
                f"data.cache_dir={cache}", f"hydra.run.dir={tmp_path}/run", cwd=tmp_path)  # fmt: skip
    assert done.returncode == 0, done.stderr
    result = json.loads((tmp_path / "run" / "result.json").read_text())
    assert result["exact_match"] >= 0.99
    assert f"exact match {result['exact_match']:.2%} of 2,000 documents" in done.stdout
    assert "12+34=64" in done.stdout
    evaluated = call(
        f"checkpoint={tmp_path}/run", "tasks=[val,exact_match]", "cluster.threads=1", script="eval.py", cwd=tmp_path
    )
    assert evaluated.returncode == 0, evaluated.stderr
    (entry,) = json.loads((tmp_path / "run" / "checkpoints" / "eval-step_00000400.json").read_text())
    assert entry["exact_match"]["exact_match"] == result["exact_match"]


def test_documents_must_be_known_to_be_kept_apart(small, files, tmp_path):
    for file, split in zip(files(), ("train", "val"), strict=True):
        with h5py.File(tmp_path / f"{split}.h5", "w") as made:
            made.create_dataset("tokens", data=file.reader()(0, file.n_tokens))
            made.attrs.update({"tokenizer": "bytes", "vocab_size": 257})
    config = compose([*small, f"data.dir={tmp_path}", "data.documents=masked"])
    with pytest.raises(InputError, match="does not say where documents start"):
        check_fits(config, *prepare(config.data))


def test_a_dataset_of_windows_is_sent_without_what_it_has_opened(files):
    file, _ = files()
    windows = open_windows(file, T, "separate", "mmap")
    dataset = TokenDataset(SampleOrder(1, windows))
    first = dataset[3]
    assert not any(key.startswith("_") for key in windows.__getstate__())
    assert torch.equal(first, dataset[3])
