"""The door: what composes, what is refused, and in which words."""

import itertools
import re

import h5py
import numpy as np
import pytest
import torch

from data.tokenwriter import TokenWriter
from gpt import cli, config
from gpt.compose import compose
from gpt.config import Config, changed_keys, flatten
from gpt.errors import InputError
from gpt.machine import settle
from train import train

OPTIONS = [(group, option) for group in cli.GROUPS for option in cli.options(group)]


@pytest.mark.parametrize("group, option", OPTIONS)
def test_every_option_composes(group, option):
    assert isinstance(compose([f"{group}={option}"]), Config)


# Options that exclude each other, and why. All other pairs compose.
REFUSED = {
    ("model=bigram", "optimizer=muon"): "no blocks",
    ("schedule=inverse_sqrt", "experiment=shakespeare"): "warmup_tokens is 0",
    **{
        (f"model={size}", "experiment=shakespeare_char_cpu"): "batch.global_tokens=768 is not divisible"
        for size in cli.options("model")
        if size.startswith("gpt")
    },
}


# One model of each family is enough here, and the jobs of a sweep are composed where it runs.
LARGER = {"gpt2_355m", "gpt2_774m", "gpt2_1558m", "gpt3_medium", "gpt3_large", "gpt3_xl"}
PAIRED = {group: [o for o in cli.options(group) if o not in LARGER] for group in cli.GROUPS if group != "sweeps"}
PAIRS = [
    (f"{first}={a}", f"{second}={b}")
    for first, second in itertools.combinations(PAIRED, 2)
    for a, b in itertools.product(PAIRED[first], PAIRED[second])
]


def rows_of_pairs(pairs):
    """Sets of options, one of a group at most, that hold all pairs, and none of those that are refused."""
    left = dict.fromkeys(pairs)
    while left:
        row = list(next(iter(left)))
        for group in PAIRED:
            if group in {option.partition("=")[0] for option in row}:
                continue
            candidates = [f"{group}={option}" for option in PAIRED[group]]
            allowed = [c for c in candidates if not any({(c, o), (o, c)} & set(REFUSED) for o in row)]
            row += [max(allowed, key=lambda c: sum((c, o) in left or (o, c) in left for o in row))] if allowed else []
        held = {pair for pair in itertools.permutations(row, 2) if pair in left}
        for pair in held:
            del left[pair]
        yield row, held


@pytest.mark.slow
def test_every_pair_of_options_composes_or_is_refused_for_a_reason():
    for pair, reason in REFUSED.items():
        with pytest.raises(InputError, match=reason):
            compose(list(pair))
    rows = list(rows_of_pairs([pair for pair in PAIRS if pair not in REFUSED]))
    assert set().union(*(held for _, held in rows)) == set(PAIRS) - set(REFUSED)
    for row, held in rows:
        try:
            compose(row)
        except InputError:  # for three options that exclude one another
            for pair in held:
                assert isinstance(compose(list(pair)), Config), pair


def test_groups_are_all_there_is_in_conf():
    assert {path.name for path in cli.CONF.iterdir() if path.is_dir()} == {*cli.GROUPS, "hydra"}


def test_common_keys_exist():
    assert set(cli.COMMON_KEYS) <= set(flatten(compose([])))


def test_a_saved_config_reads_back_equal(tmp_path):
    original = compose(["experiment=shakespeare_char_cpu", "sample.prompt='a: b'", "tags=[x,y]"])
    config.save(original, tmp_path / "config.yaml")
    assert config.read(tmp_path / "config.yaml") == original


def test_the_recipe_is_nanogpts():
    recipe = compose(["experiment=shakespeare_char_cpu"])
    assert (recipe.stages, recipe.total_steps, recipe.total_tokens) == ([(0, 12 * 64)], 2000, 1_536_000)
    model = recipe.model
    assert (model.n_layer, model.n_head, model.n_embd, model.seq_len, model.bias) == (4, 4, 128, 64, False)
    assert (recipe.optimizer.lr, recipe.optimizer.betas, recipe.schedule.min_lr_ratio) == (1e-3, [0.9, 0.99], 0.1)


@pytest.mark.parametrize(
    "overrides, steps",
    [
        (["trainer.max_steps=7", "trainer.max_tokens=null"], 7),
        (["trainer.max_steps=null", "trainer.max_tokens=2049"], 3),
        (["trainer.max_steps=7", "trainer.max_tokens=2048"], 2),
    ],
)
def test_the_first_limit_reached_ends_the_run(overrides, steps):
    assert compose(["batch.global_tokens=1024", *overrides]).total_steps == steps


@pytest.mark.parametrize(
    "seq_len, global_tokens, given, expected",
    [
        (64, 1024, "null", 16),
        (1024, 8192, "null", 4),
        (1024, 7 * 1024, "null", 1),
        (8192, 16384, "null", 1),
        (64, 1024, "2", 2),
    ],
)
def test_micro_batch_size(seq_len, global_tokens, given, expected):
    overrides = [f"model.seq_len={seq_len}", f"batch.global_tokens={global_tokens}", f"batch.micro_batch_size={given}"]
    assert compose(overrides).micro_batch_size == expected


def test_what_may_change_on_resume():
    saved = compose(["data=text"])
    free = ["data=text", "cluster.threads=1", "batch.micro_batch_size=1", "trainer.max_steps=5", "checkpoint.keep=3", "data.files=[x]",
            "data.num_workers=2", "trainer.log_every=1", "tracker.plot=false", "resume=somewhere"]  # fmt: skip
    assert changed_keys(saved, compose(free)) == {}
    bound = ["seed=2", "model.n_layer=5", "optimizer.lr=1", "trainer.eval_every=9999999", "data.tokenizer=chars"]
    keys = {override.partition("=")[0] for override in bound}
    assert set(changed_keys(compose([]), compose(bound))) == {*keys, "data.seed"}  # which follows the seed
    longer = changed_keys(saved, compose(free), any_length=False)
    assert longer == {"trainer.max_steps": (None, 5)}  # another job of a sweep


@pytest.mark.parametrize(
    "given, keys",
    [
        ([], ["schedule.decay_until=1572864"]),
        (["schedule=wsd", "trainer.max_steps=100"], ["schedule.decay_until=102400"]),
        (["batch=ramp"], ["schedule.decay_until=1572864", "batch.ramp.over_tokens=20971"]),
        (["batch=ramp_steps"], ["schedule.decay_until=1572864", "batch.ramp.stages=[[6991,128],[13982,256],[20972,512]]"]),
    ],
)  # fmt: skip
def test_a_longer_run_may_be_given_what_null_meant_and_keeps_its_curves(given, keys):
    saved, longer = compose(given), [*given, "trainer.max_steps=null", "trainer.max_tokens=150_000_000"]
    kept, stretched = compose([*longer, *keys]), compose(longer)
    assert set(changed_keys(saved, kept)) == set()
    assert set(changed_keys(saved, kept, any_length=False)) > {key.partition("=")[0] for key in keys}
    assert kept.stages == saved.stages and (len(keys) == 1 or stretched.stages != saved.stages)
    for tokens in (1000, 50_000, saved.total_tokens):
        expected = saved.schedule.multiplier(tokens, saved.total_tokens)
        assert kept.schedule.multiplier(tokens, kept.total_tokens) == expected
    for key in keys:  # as nothing else
        other = key.replace("6991", "6912") if "stages" in key else f"{key}0"
        assert set(changed_keys(saved, compose([*longer, other]))) == {key.partition("=")[0]}


READY = ["data=text", "data.files=[short.txt]", "model.seq_len=16", "device=cpu"]  # right but for what follows
# Wrong input: arguments, and what the message must say of key, value and cure.
WRONG = [
    (["precison=bf16"], "unknown key precison", "did you mean precision?"),
    (["model.n_layr=3"], "unknown key model.n_layr", "did you mean n_layer?"),
    (["+model.n_layr=3"], "unknown key model.n_layr", "did you mean n_layer?"),
    (["++model.n_layr=3"], "unknown key model.n_layr", "did you mean n_layer?"),
    (["+optimiser=adamw"], "unknown key optimiser", "did you mean optimizer?"),
    (["model=gpt2_124"], "model=gpt2_124: no such option", "did you mean gpt2_124m?"),
    (["data=web"], "data=web: no such option", "fineweb_10bt, fineweb_edu_10bt, hf, jsonl"),
    (["model=null"], "model=null: Config group override must be a string", "the name of one of its options"),
    (["bf16"], "cannot read 'bf16'", "KEY=VALUE"),
    (["data.files=[a"], "cannot read 'data.files=[a'", "KEY=VALUE"),
    (["model.n_layer=four"], "model.n_layer=four: Value 'four'", "a whole number"),
    (["trainer.max_steps=1e9"], "trainer.max_steps=1e9: Value '1000000000.0'", "a whole number, such as 1000 or 1_000, or null"),
    (["compile=maybe"], "compile=maybe: Value 'maybe'", "true or false"),
    (["optimizer.lr=fast"], "optimizer.lr=fast: Value 'fast'", "a number, such as 0.1 or 6e-4"),
    (["data.files=a.txt"], "data.files=a.txt", "a list: [a,b]"),
    (["optimizer.betas=[0.9,x]"], "optimizer.betas=[0.9,x]: Value 'x'", "optimizer.betas[1] takes a number"),
    (["seed=1,2"], "Ambiguous value for argument 'seed=1,2'", "add --multirun"),
    (["hydra.run.dir=/proc/none", "data=text", "data.files=[short.txt]", "model.seq_len=16"], "cannot be made", "hydra.run.dir=DIR"),
    (["resume="], "resume= names no directory", "give the output directory"),
    (["seed=null"], "seed", "a whole number"),
    (["model.n_embd=130"], "model.n_embd=130 is not divisible by model.n_head=4", "128 or 132"),
    (["batch.global_tokens=1000"], "batch.global_tokens=1000 is not divisible by model.seq_len=64", "960 or 1024"),
    (["batch.micro_batch_size=3"], "batch.global_tokens=1024 is not divisible by", "960 or 1152"),
    (["trainer.max_steps=null", "trainer.max_tokens=null"], "neither trainer.max_steps nor trainer.max_tokens", "give one"),
    (["trainer.max_steps=0"], "trainer.max_steps=0 makes no sense", "at least 1"),
    (["trainer.max_tokens=-5"], "trainer.max_tokens=-5 makes no sense", "at least 1"),
    (["model.n_layer=-1"], "model.n_layer=-1 makes no sense", "0 or more"),
    (["model.seq_len=0"], "model.seq_len=0 makes no sense", "at least 1"),
    (["batch.micro_batch_size=0"], "batch.micro_batch_size=0 makes no sense", "at least 1"),
    (["batch.global_tokens=-64"], "batch.global_tokens=-64 makes no sense", "at least 1"),
    (["trainer.log_every=0"], "trainer.log_every=0 makes no sense", "at least 1"),
    (["checkpoint.every=0"], "checkpoint.every=0 makes no sense", "at least 1"),
    (["data.num_workers=-1"], "data.num_workers=-1 makes no sense", "0 or more"),
    (["optimizer.lr=0"], "optimizer.lr=0.0 makes no sense", "more than 0"),
    (["optimizer.lr=nan"], "optimizer.lr=nan makes no sense", "more than 0"),
    (["optimizer.weight_decay=-1"], "optimizer.weight_decay=-1.0 makes no sense", "0 or more"),
    (["optimizer.betas=[0.9]"], "optimizer.betas=[0.9]", "two numbers"),
    (["optimizer.betas=[0.9,1.0]"], "optimizer.betas=[0.9, 1.0] makes no sense", "0 up to, not including, 1"),
    (["optimizer.momentum=0.9"], "unknown key optimizer.momentum", "it is a key of optimizer=muon"),
    (["optimizer._target_=torch.optim.NAdam"], "unknown key optimizer._target_", "it is a key of optimizer=custom"),
    (["optimizer=muon", "model=bigram"], "model=bigram has no blocks", "take optimizer=adamw"),
    ([*READY, "optimizer=custom", "optimizer._target_=torch.optim.Nadam"], "optimizer._target_=torch.optim.Nadam cannot be imported", "package.Class"),
    ([*READY, "optimizer=custom", "optimizer._target_=torch.nn.Linear"], "torch.nn.Linear is no torch.optim.Optimizer", "give a class"),
    (["cluster=slurm", "cluster.gpus=0"], "cluster.gpus=0 does not say how many ranks there are", "or cluster.nproc"),
    (["cluster=slurm", "cluster.nproc=2"], "cluster.nproc=2 is more ranks than cluster.gpus=1", "as many GPUs as ranks"),
    (["cluster=slurm", 'cluster.partition="a\n#SBATCH --uid=0"'], r"cluster.partition='a\n#SBATCH --uid=0' holds a line break", "one line"),
    (["cluster=slurm", 'cluster.account="a\n"'], r"cluster.account='a\n' holds a line break", "one line"),
    (["cluster=slurm", 'cluster.time="1\n"'], r"cluster.time='1\n' holds a line break", "one line"),
    (["cluster=slurm", 'cluster.memory="1G\r"'], r"cluster.memory='1G\r' holds a line break", "one line"),
    (["cluster=slurm", '+cluster.sbatch.qos="a\nb"'], r"cluster.sbatch.qos='a\nb' holds a line break", "one line"),
    (["cluster=slurm", "+cluster.sbatch={a wrap:id}"], "cluster.sbatch has 'a wrap', which is no option", "constraint=a100"),
    (["cluster=slurm", 'name="a\nb"'], r"name='a\nb' cannot name", "letters, digits"),
    ([f"cluster.timeout={10**15}"], "cluster.timeout=1000000000000000 makes no sense", "1 to 2147483"),
    ([f"cluster.threads={10**15}"], "cluster.threads=1000000000000000 makes no sense", "1 to 1024"),
    (["cluster=multinode", "cluster.rdzv_endpoint=localhost:65536"], "cluster.rdzv_endpoint=localhost:65536 is no address", "1 to 65535"),
    (["cluster=multinode", "cluster.rdzv_endpoint=localhost:0"], "cluster.rdzv_endpoint=localhost:0 is no address", "1 to 65535"),
    ([*READY, "cluster=multinode", "cluster.nproc=1", "cluster.rdzv_endpoint=no.such.host.invalid:29400"], "there is no machine no.such.host.invalid", "machine 0's name"),
    ([*READY, "cluster=multinode", "cluster.nproc=1", "cluster.node_rank=1", "cluster.rdzv_endpoint=a..b:29400"], "there is no machine a..b", "machine 0's name"),
    (["cluster=slurm", "cluster.sbatch.qos=high"], "cluster.sbatch.qos is not there yet", "+cluster.sbatch.qos="),
    ([*READY, "optimizer=custom", "+optimizer.options.fused=true"], "torch.optim.NAdam takes no fused", "it takes: lr, betas"),
    ([*READY, "optimizer=custom", "optimizer._target_=torch.optim.Rprop"], "torch.optim.Rprop takes no weight_decay", "it takes: lr, etas"),
    ([*READY, "optimizer=custom", "optimizer._target_=torch.optim.LBFGS", "optimizer.weight_decay=0"], "optimizer=custom does not work on cpu: LBFGS", "change its options"),
    ([*READY, "precision=fp16"], "precision=fp16 is not to be had on cpu", "allowed here: fp32, bf16"),
    ([*READY, "precision=tf32"], "precision=tf32 is not to be had on cpu", "allowed here: fp32, bf16"),
    (["batch.ramp.start_tokens=64"], "unknown key batch.ramp", "it is a key of batch=ramp and batch=ramp_steps"),
    (["batch=ramp", "batch.ramp.over_tokens=2_000_000"], "the batch ramp of 2000000 tokens is longer than the run of 1573184", "raise trainer.max_steps"),
    (["batch=ramp", "batch.ramp.start_tokens=96", "batch.ramp.multiple_of=64"], "batch.ramp.start_tokens=96 is no multiple of batch.ramp.multiple_of=64", "64 or 128"),
    (["batch=ramp", "batch.ramp.start_tokens=128", "batch.ramp.multiple_of=384"], "batch.ramp.start_tokens=128 is no multiple of batch.ramp.multiple_of=384", "that are: 384"),
    (["batch=ramp", "batch.ramp.multiple_of=96"], "batch.ramp.multiple_of=96 is not divisible by model.seq_len=64", "64 or 128"),
    (["batch=ramp", "batch.micro_batch_size=4", "batch.ramp.multiple_of=64"], "batch.ramp.multiple_of=64 is not divisible by model.seq_len=64 × batch.micro_batch_size=4", "256"),
    (["batch=ramp", "batch.ramp.start_tokens=2048", "batch.ramp.multiple_of=64"], "the batch ramp goes above batch.global_tokens=1024", "sizes up to"),
    (["batch=ramp_steps", "batch.ramp.stages=[[1000,128,3]]"], "batch.ramp.stages=[[1000, 128, 3]] are not pairs", "[[until_tokens, tokens_per_step], …]"),
    (["batch=ramp_steps", "batch.ramp.stages=[[2000,128],[1000,256]]"], "do not ascend", "until so many tokens"),
    (["batch=ramp_steps", "batch.ramp.stages=[[1000,100]]"], "batch.ramp.stages: 100 is not divisible by model.seq_len=64", "64 or 128"),
    (["batch=ramp_steps", "batch.ramp.stages=[[9_000_000,128]]"], "the batch ramp of 9000000 tokens is longer than the run", "shorten it"),
    (["batch=ramp_steps", "batch.ramp.stages=64"], "batch.ramp.stages=64", "a list of pairs"),
    (["schedule.warmup_tokens=2_000_000"], "schedule.warmup_tokens=2000000 is longer than the run of 1572864 tokens", "null is 2 % of the run"),
    (["schedule.decay_until=1000", "schedule.warmup_tokens=1000"], "schedule.decay_until=1000 is not after the warm-up", "the end of the run"),
    (["schedule.decay_fraction=1.5"], "schedule.decay_fraction=1.5 makes no sense", "0 to 1"),
    (["schedule=inverse_sqrt", "schedule.warmup_tokens=0"], "schedule=inverse_sqrt falls from the end of the warm-up", "at least 1"),
    (["schedule.name=triangle"], "schedule.name=triangle is not known", "allowed: constant, cosine"),
    (["model.position=rotary"], "model.position=rotary", "allowed: learned, none, sinusoidal"),
    (["model.position=sinusoidal", "model.n_embd=33", "model.n_head=3"], "model.n_embd=33 is odd", "32 or 34"),
    (["model.norm=last"], "model.norm=last", "allowed: post, pre"),
    (["data.order=random", "data.shuffle=false"], "data.order=random with data.shuffle=false", "from its beginning"),
    (["data.files=[a.txt]"], "data=stdlib reads no files", "data=text data.files=['a.txt']"),
    (["data.order=random", "data.documents=separate"], "data.order=random starts anywhere", "data.documents=packed"),
    (["plan=true", "plan_mfu=40"], "plan_mfu=40.0 makes no sense", "0 to 1"),
    (["trainer.grad_clip=-1"], "trainer.grad_clip=-1.0 makes no sense", "0 or more"),
    (["schedule.warmup_tokens=-1"], "schedule.warmup_tokens=-1 makes no sense", "0 or more"),
    (["schedule.min_lr_ratio=2"], "schedule.min_lr_ratio=2.0 makes no sense", "0 to 1"),
    (["model.dropout=1.0"], "model.dropout=1.0", "allowed: 0 up to"),
    (["data.val_fraction=0"], "data.val_fraction=0.0", "between 0 and 1"),
    (["trainer.eval_every=100"], "trainer.eval_every=100 counts tokens", "every 100 steps would be trainer.eval_every=102400"),
    (["model.attention=flash"], "model.attention=flash", "allowed: naive, sdpa"),
    (["device=gpu"], "device=gpu", "allowed: auto, cpu, cuda, mps"),
    (["data.tokenizer=gpt4"], "data.tokenizer=gpt4", "did you mean gpt2?"),
    (["name=a/b"], "name='a/b'", "letters, digits"),
    (["data=text"], "data=text has no text to read", "data.files=[a.txt"),
    (["data=text", "data.files=[nothing.txt]"], "no file matches nothing.txt", "correct the path"),
    (["data=text", "data.files=[short.txt]", "model.seq_len=128"], "model.seq_len=128 is too long", "at most"),
    (["data=text", "data.files=[empty.txt]"], "would be empty", "give more text"),
    (["data.dir=nowhere"], "no token file at nowhere/train.h5", "correct data.dir"),
    (["data.dir=truncated"], "truncated/train.h5", "prepare it again"),
    (["data.dir=foreign"], "foreign/train.h5 is not a token file", "prepare it again"),
    (["data.dir=ids_too_high"], "holds token id 999, and its vocabulary ends at 256", "vocab_size"),
    (["data=text", "data.files=[short.txt]", "data.tokenizer=chars", "sample.prompt=Qx", "model.seq_len=16"], "character 'Q' is not", "its 8 characters"),
    (["data=text", "data.url=http://127.0.0.1:9/input.txt"], "http://127.0.0.1:9/input.txt cannot be reached", "data.files=["),
    (["resume=nothing"], "resume=nothing: no run there", "give the output directory"),
    (["resume=finished", "--multirun"], "resume continues one run", "leave one of them out"),
]  # fmt: skip


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """A directory with texts and token files, some of them spoilt, as the user's working directory."""
    (tmp_path / "short.txt").write_text("some words " * 20)
    (tmp_path / "empty.txt").write_text("")
    for name in ("truncated", "foreign", "ids_too_high"):
        (tmp_path / name).mkdir()
        for split in ("train", "val"):
            about = {"tokenizer": "bytes", "vocab_size": 257, "chars": None, "source": "test", "split": split}
            with TokenWriter(tmp_path / name / f"{split}.h5", **about) as writer:
                writer.add_document(np.arange(10_000) % 256)
    whole = (tmp_path / "truncated" / "train.h5").read_bytes()
    (tmp_path / "truncated" / "train.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(tmp_path / "foreign" / "train.h5", "w") as file:
        file["images"] = np.zeros((3, 3))
    with h5py.File(tmp_path / "ids_too_high" / "train.h5", "w") as file:
        file["tokens"] = np.arange(1000, dtype="u2")
        file.attrs.update(tokenizer="bytes", vocab_size=257)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(arguments, monkeypatch, capsys):
    """Run the command in this process; returns what it said on stderr."""
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    code = cli.run(train)
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert 2 <= len(said.strip().splitlines()) <= 3, said
    return said


@pytest.mark.parametrize("arguments, problem, cure", WRONG, ids=[" ".join(arguments) for arguments, *_ in WRONG])
def test_wrong_input_is_refused(arguments, problem, cure, workplace, cache, monkeypatch, capsys):
    before = sorted(workplace.rglob("*"))
    said = refused([f"data.cache_dir={cache}", *arguments], monkeypatch, capsys)
    first, _, rest = said.partition("\n")
    assert problem in first
    assert cure in rest
    assert sorted(workplace.rglob("*")) == before


@pytest.mark.skipif(torch.cuda.is_available(), reason="cuda is there")
def test_a_missing_device_is_refused(workplace, small, monkeypatch, capsys):
    said = refused([*small, "device=cuda"], monkeypatch, capsys)
    assert re.search(r"device=cuda is not on this machine\n.*allowed here: auto, .*cpu", said)
    assert not (workplace / "outputs").exists()


def test_a_python_too_new_for_hydra_is_refused_at_once(monkeypatch, capsys):
    monkeypatch.setattr("sys.version_info", (3, 14, 0))
    assert cli.guard(lambda: None) == 2
    assert "needs Python 3.11 to 3.13" in capsys.readouterr().err


def test_help_names_groups_options_keys_and_examples():
    text = cli.help_text()
    assert all(f"{group}={option}" in text for group, option in OPTIONS)
    assert all(key in text for key in cli.COMMON_KEYS)
    assert text.count("python train.py") >= 4


def test_imports_flow_one_way():
    """A room imports only rooms below it."""
    layers = [
        ["train", "eval"],
        ["wandb_workspace"],
        ["wandb_mirror", "tensorboard_mirror"],
        ["sweep"],
        ["compose"],
        ["data"],
        ["trainer", "plan", "slurm"],
        ["compare", "summary"],
        ["evaluate", "generate", "launch", "mirror"],
        ["dataset", "optim", "checkpoint", "tracker", "plot", "debug", "compile", "about", "wandb_file"],
        ["loss", "windows", "memory", "histogram"],
        ["rundir", "machine"],
        ["model", "order", "precision", "tokenfile", "tokenizer", "distributed", "rendezvous"],
        ["config", "cli"],
        ["checks"],
        ["schema"],
        ["schedule", "files", "interrupt", "layouts"],
        ["errors"],
    ]
    height = {room: i for i, rooms in enumerate(layers) for room in rooms}
    files = [*(cli.ROOT / "gpt").rglob("*.py"), *(cli.ROOT / "data").glob("*.py"), *cli.ROOT.glob("*.py")]
    for path in files:
        room = path.stem if path.parent in (cli.ROOT, cli.ROOT / "gpt") else path.parent.name
        if room == "__init__":
            continue
        for line in path.read_text().splitlines():
            if line.startswith(("import ", "from ")):  # at the top: what is imported when used may look up
                match = re.match(r"(?:from|import) gpt(?:\.(\w+)| import (\w+))|from (data)\b", line)
                if match:
                    imported = next(filter(None, match.groups()))
                    assert imported == room or height[imported] > height[room], f"{path.name}: {line}"


def test_ranks_are_counted_by_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    counted = compose(["cluster=ddp"])
    settle(counted)
    assert (counted.cluster.nproc, counted.world_size) == (4, 4)
    with pytest.raises(InputError) as refused:
        settle(compose(["cluster=ddp", "cluster.nproc=8"]))
    assert str(refused.value).startswith(
        "cluster.nproc=8 is more ranks than there are GPUs here: 4\n  allowed: up to 4"
    )
    with pytest.raises(InputError, match=r"=1024 is not divisible by model.seq_len=512 × 4 ranks"):
        settle(compose(["cluster=ddp", "model.seq_len=512"]))
    settle(compose(["cluster=ddp", "cluster.nproc=8", "device=cpu"]))


def test_ranks_of_torchrun_find_a_gpu_each(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    config = ["cluster=torchrun", "batch.global_tokens=4096"]
    with pytest.raises(
        InputError, match="torchrun --nproc-per-node=4 is more ranks than there are GPUs here: 2\n  allow"
    ):
        settle(compose(config))
    settle(compose([*config, "device=cpu"]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    settle(compose(config))
