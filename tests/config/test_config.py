"""The door: what composes, what is refused, and in which words."""

import itertools

import pytest

from gpt.cli import command as cli
from gpt.cli.compose import compose
from gpt.cli.help import COMMON_KEYS, help_text
from gpt.cluster.machine import resolve_ranks
from gpt.config import load as config
from gpt.config.groups import CONF, GROUPS, options
from gpt.config.load import changed_keys, flatten
from gpt.config.schema import Config
from gpt.errors import InputError

OPTIONS = [(group, option) for group in GROUPS for option in options(group)]


@pytest.mark.slow
@pytest.mark.parametrize("group, option", OPTIONS)
def test_every_option_composes(group, option):
    assert isinstance(compose([f"{group}={option}"]), Config)


# One model of each family is enough in pairs, and one data set of those with the same keys.
ALIKE = {"model": "gpt2_355m gpt2_774m gpt2_1558m gpt3_medium gpt3_large gpt3_xl",
         "data": "fineweb_10bt fineweb_edu_10bt openwebtext wikitext shakespeare addition"}  # fmt: skip
# Options that exclude each other, and why. All other pairs compose.
REFUSED = {
    ("model=bigram", "optimizer=muon"): "no blocks",
    ("model=bigram", "optimizer=normuon"): "no blocks",
    **{("model=bigram", f"experiment={name}"): "no blocks" for name in ("modern", "quickstart", "speedrun_gpu")},
    **{
        ("optimizer=schedule_free", f"experiment={name}"): "in place of a learning rate that falls"
        for name in ("modern", "quickstart", "speedrun_gpu")
    },
    **{
        (f"optimizer={name}", "experiment=speedrun"): "experiment=speedrun sets optimizer.adamw_lr"
        for name in ("adamw", "custom", "lion", "schedule_free", "soap")
    },
    ("schedule=inverse_sqrt", "experiment=shakespeare"): "warmup_tokens is 0",
    **{
        ("optimizer=schedule_free", f"schedule={name}"): "in place of a learning rate that falls"
        for name in options("schedule")
        if name != "constant"
    },
    **{
        (f"model={size}", f"experiment={name}"): "batch.global_tokens=768 is not divisible"
        for size in options("model")
        for name in ("shakespeare_char_cpu", "speedrun")
        if size.startswith("gpt") and size not in ALIKE["model"].split()
    },
    ("model=bigram", "model.value_embeddings=1"): "up to model.value_embeddings=0",
    ("model=bigram", "model.value_residual=true"): "model.n_layer=0 has none",
    ("model=bigram", "model.parallel_block=true"): "model.norm=post one after each",
}


# The jobs of a sweep are composed where it runs.
PAIRED = {
    group: [option for option in options(group) if option not in ALIKE.get(group, "").split()]
    for group in GROUPS
    if group != "sweeps"
}
# Switches of the model, beside the options; all pairs of them are computed in tests/layers/test_switches.py.
PAIRED |= {f"model.{key}": [value] for key, value in (switch.split("=") for switch in """
    position=rotary norm_type=rmsnorm norm_weight=false qk_norm=true n_kv_head=1 window=8 attention_softcap=50
    logit_softcap=30 z_loss=1e-4 value_embeddings=1 value_residual=true activation=swiglu
    parallel_block=true residual_lambdas=true x0_lambdas=true zero_init_projections=true
""".split())}  # fmt: skip
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
            gains = {c: sum((c, o) in left or (o, c) in left for o in row) for c in allowed}
            best = max(gains, key=gains.get, default=None)
            # A switch that is in all its pairs already would only be read once more.
            if best and (gains[best] or not group.startswith("model.")):
                row.append(best)
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
    assert {path.name for path in CONF.iterdir() if path.is_dir()} == {*GROUPS, "hydra"}


def test_common_keys_exist():
    assert set(COMMON_KEYS) <= set(flatten(compose([])))


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


def test_a_python_too_new_for_hydra_is_refused_at_once(monkeypatch, capsys):
    monkeypatch.setattr("sys.version_info", (3, 14, 0))
    assert cli._guard(lambda: None) == 2
    assert "needs Python 3.11 to 3.13" in capsys.readouterr().err


def test_help_names_groups_options_keys_and_examples():
    text = help_text([])
    assert all(f"{group}={option}" in text for group, option in OPTIONS)
    assert all(key in text for key in COMMON_KEYS)
    assert text.count("python train.py") >= 4


def test_ranks_are_counted_by_gpus(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 4)
    counted = compose(["cluster=ddp"])
    resolve_ranks(counted)
    assert (counted.cluster.nproc, counted.world_size) == (4, 4)
    with pytest.raises(InputError) as refused:
        resolve_ranks(compose(["cluster=ddp", "cluster.nproc=8"]))
    assert str(refused.value).startswith(
        "cluster.nproc=8 is more ranks than there are GPUs here: 4\n  allowed: up to 4"
    )
    with pytest.raises(InputError, match=r"=1024 is not divisible by model.seq_len=512 × 4 ranks"):
        resolve_ranks(compose(["cluster=ddp", "model.seq_len=512"]))
    resolve_ranks(compose(["cluster=ddp", "cluster.nproc=8", "device=cpu"]))


def test_ranks_of_torchrun_find_a_gpu_each(monkeypatch):
    monkeypatch.setattr("torch.cuda.device_count", lambda: 2)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    monkeypatch.setenv("WORLD_SIZE", "8")
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "4")
    config = ["cluster=torchrun", "batch.global_tokens=4096"]
    with pytest.raises(
        InputError, match="torchrun --nproc-per-node=4 is more ranks than there are GPUs here: 2\n  allow"
    ):
        resolve_ranks(compose(config))
    resolve_ranks(compose([*config, "device=cpu"]))
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    resolve_ranks(compose(config))
