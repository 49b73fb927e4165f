"""Wrong input of train.py: exit code 2 and a few lines with problem and cure, at once, and nothing left behind."""

import re

import h5py
import numpy as np
import pytest
import torch

from data.tokenwriter import TokenWriter
from gpt.cli import command as cli
from train import train

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
    (["trainer.max_steps=1.5"], "trainer.max_steps=1.5: Value '1.5'", "a whole number of steps, such as 1000, 1_000, 1e6, 300k, 5M, 1.5M or 10B, or null"),
    (["compile=maybe"], "compile=maybe: Value 'maybe'", "true or false"),
    (["optimizer.lr=fast"], "optimizer.lr=fast: Value 'fast'", "a number, such as 0.1 or 6e-4"),
    (["data.files=a.txt"], "data=stdlib reads no files, and data.files=['a.txt'] is given", "data=text data.files=['a.txt']"),
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
    (["cluster=multinode", "cluster.rdzv_endpoint=localhost:65536"], "cluster.rdzv_endpoint=localhost:65536 is no address", "1 to 65535"),
    (["cluster=multinode", "cluster.rdzv_endpoint=localhost:0"], "cluster.rdzv_endpoint=localhost:0 is no address", "1 to 65535"),
    ([*READY, "cluster=multinode", "cluster.nproc=1", "cluster.rdzv_endpoint=no.such.host.invalid:29400"], "there is no machine no.such.host.invalid", "machine 0's name"),
    ([*READY, "cluster=multinode", "cluster.nproc=1", "cluster.node_rank=1", "cluster.rdzv_endpoint=a..b:29400"], "there is no machine a..b", "machine 0's name"),
    (["cluster=slurm", "cluster.sbatch.qos=high"], "cluster.sbatch.qos is not there yet", "+cluster.sbatch.qos="),
    ([*READY, "optimizer=custom", "+optimizer.options.fused=true"], "torch.optim.NAdam takes no fused", "it takes: lr, betas"),
    ([*READY, "optimizer=custom", "optimizer._target_=torch.optim.Rprop"], "torch.optim.Rprop takes no weight_decay", "it takes: lr, etas"),
    ([*READY, "optimizer=custom", "optimizer._target_=torch.optim.LBFGS", "optimizer.weight_decay=0"], "optimizer=custom does not work on cpu: LBFGS", "change its options"),
    (["plan=true", "optimizer=custom", "+optimizer.options.fused=true"], "torch.optim.NAdam takes no fused", "it takes: lr, betas"),
    ([*READY, "precision=fp16"], "precision=fp16 is not supported on cpu", "allowed here: fp32, bf16"),
    ([*READY, "precision=tf32"], "precision=tf32 is not supported on cpu", "allowed here: fp32, bf16"),
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
    (["model.position=relative"], "model.position=relative", "allowed: learned, none, rotary, sinusoidal"),
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
    (["data.val_fraction=0"], "data.val_fraction=0.0", "more than 0, up to 1"),
    (["trainer.eval_every=100"], "trainer.eval_every=100 counts tokens", "every 100 steps would be trainer.eval_every=102400"),
    (["batch.global_tokens=1024000", "trainer.max_tokens=10000000"], "trainer.eval_every=786432 counts tokens, and one step has 1024000", "allowed: trainer.eval_every=1024000 or more"),
    (["model.attention=flash"], "model.attention=flash", "allowed: naive, sdpa"),
    (["device=gpu"], "device=gpu", "allowed: auto, cpu, cuda, mps; did you mean cuda?"),
    (["model=gpt2"], "model=gpt2: no such option", "did you mean gpt2_124m?"),
    (["batch_size=12"], "unknown key batch_size", "did you mean batch.micro_batch_size?"),
    (["block_size=64"], "unknown key block_size", "did you mean model.seq_len?"),
    (["learning_rate=1e-3"], "unknown key learning_rate", "did you mean optimizer.lr?"),
    (["--batch_size=12"], "unrecognized arguments: --batch_size=12", "did you mean batch.micro_batch_size=12?"),
    (["--out_dir=out"], "unrecognized arguments: --out_dir=out", "did you mean hydra.run.dir=out?"),
    (["lr=3"], "unknown key lr", "did you mean optimizer.lr?"),
    (["max_token=5"], "unknown key max_token", "did you mean trainer.max_tokens?"),
    (["--seed", "3"], "unrecognized arguments: --seed", "did you mean seed=3?"),
    (["--max-tokens=5M"], "unrecognized arguments: --max-tokens=5M", "did you mean trainer.max_tokens=5M?"),
    (["--compile"], "unrecognized arguments: --compile", "did you mean compile=…?"),
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
    # resume
    (["+resume=run"], "+resume=run: resume is there already", "leave the plus out"),
    (["++resume=run"], "++resume=run: resume is there already", "leave the plus out"),
    (["++resume=run", "hydra.run.dir=run"], "++resume=run: resume is there already", "leave the plus out"),
    (["resume=a", "resume=b"], "resume=a and resume=b: a command continues one run", "give one directory"),
    (["resume=[a]"], "no run there", "give the output directory"),
    (["resume=short.txt"], "resume=short.txt: no run there", "give the output directory"),
    (["resume=" + "x" * 300], "cannot be a path here: File name too long", "correct the path"),
    (["resume=a", "hydra.run.dir=b"], "hydra.run.dir=b is another directory than resume=a", "leave it out"),
    (["resume=a", "sweeps=lr"], "resume continues one run, and sweeps= starts many", "leave one of them out"),
    (["resume=ü ~(a"], "resume=ü ~(a: no run there", "give the output directory"),
    (["plan=true", "data.dir=nowhere"], "no token file at nowhere/train.h5", "correct data.dir"),
    # Hydra's own keys
    (["hydra.output_subdir=null"], "hydra.output_subdir=null: runs and sweeps rely on Hydra as it is", "hydra.run.dir"),
    (["hydra.job.chdir=true"], "hydra.job.chdir=true: runs and sweeps rely on Hydra", "allowed: hydra.run.dir"),
    (["hydra.sweep.subdir=x"], "hydra.sweep.subdir=x: runs and sweeps rely on Hydra", "hydra.sweep.dir"),
    (["hydra.callbacks.check_first=null"], "hydra.callbacks.check_first=null: runs and sweeps rely on Hydra", "allowed"),
    (["~hydra.callbacks"], "~hydra.callbacks: runs and sweeps rely on Hydra", "allowed"),
    (["+hydra.mine=1"], "+hydra.mine=1: runs and sweeps rely on Hydra", "allowed"),
    (["+hydra.launcher.mine=1"], "+hydra.launcher.mine=1: runs and sweeps rely on Hydra", "hydra.launcher.slots"),
    (["hydra=null"], "hydra=null: runs and sweeps rely on Hydra", "allowed"),
    (["hydra/launcher=joblib"], "hydra/launcher=joblib: no such option", "allowed: basic, local"),
    (["hydra/launcher=null"], "Config group override must be a string", "the name of one of its options"),
    (["hydra/mine=x"], "hydra/mine=x: runs and sweeps rely on Hydra", "allowed"),
    (["hydra.run.dir="], "hydra.run.dir= names no directory", "for a new one in outputs/"),
    (["hydra.run.dir=''"], "hydra.run.dir='' names no directory", "for a new one in outputs/"),
    (["hydra.run.dir=" + "x" * 300], "hydra.run.dir: 'xxx", "correct the path"),
    (["hydra.run.dir=null"], "hydra.run.dir=null: field 'hydra.run.dir' is not Optional", "what Hydra takes there"),
    (["hydra.run.dir=a,b"], "hydra.run.dir=a,b: several values", "give one: hydra.run.dir=…"),
    (["hydra.run.dir=${nope}"], "Interpolation key 'nope' not found", "${…} holds the name of a key"),
    ([*READY, "hydra.run.dir=/dev/null/x"], "the output directory cannot be made", "hydra.run.dir=DIR"),
    ([*READY, "hydra.run.dir=short.txt"], "the output directory cannot be made", "hydra.run.dir=DIR"),
    (["hydra.mode=BOTH"], "hydra.mode=BOTH is not known", "allowed: RUN, MULTIRUN"),
    (["hydra.mode=null"], "hydra.mode=None is not known", "allowed: RUN, MULTIRUN"),
    (["hydra.searchpath=[nowhere]"], "hydra.searchpath=[nowhere]: no such directory", "hydra.searchpath=[file://DIR]"),
    (["hydra.searchpath=[file://nowhere]"], "no such directory", "hydra.searchpath=[file://DIR]"),
    (["hydra.verbose=[a"], "cannot read 'hydra.verbose=[a'", "KEY=VALUE"),
    # flags
    (["--precision=bf16"], "unrecognized arguments: --precision=bf16", "anything else is KEY=VALUE"),
    (["--hlep"], "unrecognized arguments: --hlep", "did you mean --help?"),
    (["-x"], "unrecognized arguments: -x", "flags: --help, --cfg"),
    (["--multi", "seed=1,2"], "unrecognized arguments: --multi", "did you mean --multirun?"),
    (["--cfg"], "argument --cfg/-c: expected one argument", "flags: --help, --cfg"),
    (["--cfg", "all_of_it"], "argument --cfg/-c: invalid choice", "flags: --help, --cfg"),
    (["--cfg", "job", "model.n_layr=3"], "unknown key model.n_layr", "did you mean n_layer?"),
    (["--cfg", "job", "--resolve", "name=${nope}"], "Interpolation key 'nope' not found", "${…} holds the name of a key"),
    (["--info", "everything"], "argument --info/-i: invalid choice", "flags: --help, --cfg"),
    (["--resolve"], "--resolve and --package say how --cfg prints", "--cfg job --resolve"),
    (["--package", "model"], "--resolve and --package say how --cfg prints", "--cfg job --resolve"),
    (["--config-name", "mine"], "--config-name=mine is not for train.py", "--config-dir DIR"),
    (["--config-path", "mine"], "--config-path=mine is not for train.py", "--config-dir DIR"),
    (["--config-dir", "nowhere"], "--config-dir=nowhere: no such directory", "give one that has options"),
    (["--config-dir", "short.txt"], "--config-dir=short.txt: no such directory", "give one that has options"),
    (["--experimental-rerun", "job.pickle"], "--experimental-rerun=job.pickle is not for train.py", "--config-dir DIR"),
    (["--cfg", "job", "--multirun"], "--multirun and --cfg exclude each other", "give one of them"),
    # what cannot be read
    ([""], "cannot read ''", "KEY=VALUE"),
    (["="], "Could not override ''", "groups and keys"),
    (["=5"], "Config group override must be a string", "--help"),
    (["seed = 5"], "cannot read 'seed = 5'", "KEY=VALUE"),
    (["seed:5"], "cannot read 'seed:5'", "KEY=VALUE"),
    (["seed=−1"], "cannot read 'seed=−1': '−' is no ASCII character", "KEY='VALUE'"),
    (["seed=１"], "cannot read 'seed=１': '１' is no ASCII character", "KEY='VALUE'"),
    (["name=\udcff"], r"cannot read 'name=\udcff'", "KEY='VALUE'"),
    (["name=a\0b"], r"cannot read 'name=a\x00b'", "KEY=VALUE"),
    (["name='a\nb'"], r"name='a\nb' cannot name a directory", "letters, digits"),
    (["x=" + "[" * 3000], "cannot read 'x=[[[[", "KEY=VALUE"),
    (["tags=" + "[" * 2000 + "]" * 2000], "it is nested too deeply", "a few brackets"),
    (["tags=" + "[" * 200 + "]" * 200], "", ""),  # in which words depends on the stack that is left
    # ^ the parser or the composition gives up first, as the stack of the day has it
    (["name=" + "a" * 2**20], "an argument of 1,048,581 characters", "allowed: up to 100,000"),
    (["trainer.max_tokens=1" + "0" * 5000], "cannot read 'trainer.max_tokens=1000", "KEY=VALUE"),
    # groups
    (["~model"], "~model: every run has the groups that there are", "model=OPTION takes another option: bigram"),
    (["~data"], "~data: every run has the groups that there are", "data=OPTION takes another option"),
    (["+model=tiny"], "+model=tiny: every run has the groups that there are", "model=OPTION takes another option"),
    (["model@mine=tiny"], "model@mine=tiny: every run has the groups that there are", "model=OPTION"),
    (["+model@mine=tiny"], "+model@mine=tiny: every run has the groups that there are", "model=OPTION"),
    (["model=[tiny]"], "model=[tiny]: a group takes the name of one", "allowed: bigram"),
    (["model={name: tiny}"], "a group takes the name of one", "allowed: bigram"),
    (["tracker=[wandb,tensorboard]"], "tracker=[wandb,tensorboard]: a group takes the name of one", "allowed: local"),
    (["model=../tiny"], "model=../tiny is not known", "did you mean tiny?"),
    (["model=_common"], "model=_common is not known", "allowed: bigram"),
    (["model=tiny.yaml"], "model=tiny.yaml is not known", "did you mean tiny?"),
    (["model=true"], "model=true: Config group override must be a string", "the name of one of its options"),
    (["experiment=null"], "experiment=null: Config group override must be a string", "the name of one of its options"),
    (["model=tiny", "model=nope"], "model=nope: no such option", "allowed: bigram"),
    (["model=${name}"], "Error resolving interpolation '${name}'", "--help"),
    (["model=glob(*)"], "Sweep parameters 'model=glob(*)' requires --multirun", "add --multirun"),
    (["seed=choice(1,2)"], "Sweep parameters 'seed=choice(1,2)' requires --multirun", "add --multirun"),
    # values
    (["name=${name}"], "name: Recursive interpolation detected", "${…} holds the name of a key"),
    (["name=${nope}"], "name: Interpolation key 'nope' not found", "${…} holds the name of a key"),
    (["seed=${oc.env:NOPE_NOPE}"], "Environment variable 'NOPE_NOPE' not found", "${…} holds the name of a key"),
    (["seed=${mine:1}"], "seed: Unsupported interpolation type mine", "a resolver: ${oc.env:HOME}"),
    (["model.n_embd=${model.n_embd}"], "model.n_embd: Recursive interpolation detected", "${…} holds"),
    (["seed=${max:}"], "seed: ValueError raised while resolving interpolation", "${…} holds"),
    (["seed=1" + "0" * 30], "seed=1000000000000000000000000000000 does not fit into 64 bits", "up to 9223372036854775807"),
    (["trainer.log_every=1" + "0" * 19], "trainer.log_every=10000000000000000000 does not fit into 64 bits", "allowed"),
    (["trainer.max_tokens=1" + "0" * 400], "trainer.max_tokens=1000", "allowed: up to 9223372036854775807"),
    (["batch=ramp_steps", f"batch.ramp.stages=[[{10**20},64]]"], "does not fit into 64 bits", "allowed: up to"),
    (["optimizer.lr=1" + "0" * 400], "a number is too large", "64 bits"),
    (["seed="], "seed=: Value '' of type 'str'", "a whole number"),
    (["seed=true"], "seed=true: Value 'True' of type 'bool'", "a whole number"),
    (["sample.temperature=nan"], "sample.temperature=nan makes no sense", "more than 0"),
    (["sample.temperature=1e-320"], "is too small", "at least 0.01"),
    (["trainer.grad_clip=inf"], "trainer.grad_clip=inf makes no sense", "0 or more"),
    (["data.val_fraction=nan"], "data.val_fraction=nan leaves a part empty", "more than 0, up to 1"),
    (["tags=[[a]]"], "tags=[['a']]: lists in a list", "a list: [a,b]"),
    (["tags={a: 1}"], "tags={a: 1}: Cannot merge DictConfig with ListConfig", "a list: [a,b]"),
    (["tags=[{a: 1}]"], "lists in a list", "a list: [a,b]"),
    (["data.files=[[a]]", "data=text"], "data.files=[['a']]: lists in a list", "a list: [a,b]"),
    (["batch=ramp_steps", "batch.ramp.stages=[[[1],2]]"], "batch.ramp.stages=[[[1], 2]]: lists in a list", "batch.ramp.stages takes a list of pairs"),
    (["~model.n_layer"], "model.n_layer: ModelConfig (DictConfig) does not support deletion", "a whole number"),
    (["~trainer"], "trainer.max_steps has no value", "give one: trainer.max_steps=…"),
    (["trainer=[1]"], "trainer=[1]: Cannot merge DictConfig with ListConfig", "single keys below it"),
    (["name=../x"], "name='../x' cannot name a directory", "letters, digits"),
    (["name=" + "a" * 300], "name='aaa", "up to 100 characters"),
    (["device=cuda:0"], "device=cuda:0 is not known", "did you mean cuda?"),
    (["tracker=wandb", "tracker.project="], "tracker.project='' is no name in W&B", "1 to 128 characters"),
    (["tracker=wandb", "tracker.project=a/b"], "tracker.project='a/b' is no name in W&B", "1 to 128 characters"),
    (["tracker=wandb", "tracker.entity=' '"], "tracker.entity=' ' is no name in W&B", "1 to 128 characters"),
    (["tracker.project=mine"], "unknown key tracker.project", "it is a key of tracker=wandb"),
    # what nobody means, or this machine cannot hold
    (["plan=true", "model.n_layer=100000"], "model.n_layer=100000 is too much", "allowed: up to 1,000"),
    (["plan=true", "model.n_embd=1" + "0" * 9, "model.n_head=1"], "model.n_embd=1000000000 is too much", "up to 100,000"),
    (["plan=true", "model.seq_len=1" + "0" * 9], "model.seq_len=1000000000 is too much", "up to 10,000,000"),
    (["plan=true", "model.vocab_multiple=1" + "0" * 12], "model.vocab_multiple=1000000000000 is too much", "1,000,000"),
    (["plan=true", "batch.global_tokens=64" + "0" * 13], "batch.global_tokens=640000000000000 is too much", "100,000,000"),
    (["plan=true", "plan_mfu=1e-320"], "is too small", "at least 0.001"),
    (["plan=true", "batch=ramp", "model.seq_len=1", "batch.global_tokens=50000000", "trainer.eval_every=50000000", "batch.ramp.multiple_of=1"], "the batch ramp has 46,875,000 sizes", "raise batch.ramp.multiple_of"),
    (["optimizer=muon", "optimizer.ns_steps=100"], "optimizer.ns_steps=100 is too much", "up to 99"),
    (["sample.tokens=1" + "0" * 9], "sample.tokens=1000000000 is too much", "up to 100,000"),
    (["data.num_workers=1000000"], "data.num_workers=1000000 is too much", "up to 1,024"),
    (["cluster.threads=100000"], "cluster.threads=100000 is too much", "up to 1,024"),
    (["cluster.timeout=1" + "0" * 18], "is too much", "up to 2,147,483"),
    ([*READY, "model.n_embd=100000", "model.n_head=100"], "GB of memory at least, and this machine has", "n_embd"),
    ([*READY, "cluster=ddp", "cluster.nproc=10000", "batch.global_tokens=160000", "trainer.eval_every=160000"], "training needs 1,0", "cluster.nproc"),
    ([*READY, "batch.micro_batch_size=5000000", "batch.global_tokens=80000000", "trainer.eval_every=80000000", "model.n_layer=20"], "GB of memory at least", "batch.micro_batch_size"),
    ([*READY, "cluster=torchrun"], "it has started none", "torchrun --nproc_per_node=N"),
    (["cluster=ddp", "cluster.nproc=0"], "cluster.nproc=0 makes no sense", "at least 1"),
    (["cluster=multinode", "cluster.rdzv_endpoint=localhost:0"], "cluster.rdzv_endpoint=localhost:0 is no address", "HOST:PORT"),
    (["cluster=multinode", "cluster.rdzv_endpoint=localhost:99999"], "is no address", "HOST:PORT"),
]  # fmt: skip


def short(case):
    """A name for a case, of characters that every terminal and environment takes."""
    return ascii(" ".join(case[0]))[1:60].replace("\\", "")


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory):
    """A directory with texts and token files, some of them spoilt, which no refused command changes."""
    directory = tmp_path_factory.mktemp("spoilt")
    (directory / "short.txt").write_text("some words " * 20)
    (directory / "empty.txt").write_text("")
    for name in ("truncated", "foreign", "ids_too_high"):
        (directory / name).mkdir()
        for split in ("train", "val"):
            about = {"tokenizer": "bytes", "vocab_size": 257, "chars": None, "source": "test", "split": split}
            with TokenWriter(directory / name / f"{split}.h5", **about) as writer:
                writer.add_document(np.arange(10_000) % 256)
    whole = (directory / "truncated" / "train.h5").read_bytes()
    (directory / "truncated" / "train.h5").write_bytes(whole[: len(whole) // 2])
    with h5py.File(directory / "foreign" / "train.h5", "w") as file:
        file["images"] = np.zeros((3, 3))
    with h5py.File(directory / "ids_too_high" / "train.h5", "w") as file:
        file["tokens"] = np.arange(1000, dtype="u2")
        file.attrs.update(tokenizer="bytes", vocab_size=257)
    return directory


@pytest.fixture
def workplace(spoilt, monkeypatch):
    """The spoilt files' directory as the user's working directory."""
    monkeypatch.chdir(spoilt)
    return spoilt


def refused(arguments, monkeypatch, capsys):
    """Run the command in this process; returns what it said on stderr."""
    monkeypatch.setattr("sys.argv", ["train.py", *arguments])
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    code = cli.run(train)
    said = capsys.readouterr().err
    assert code == 2, said
    assert "Traceback" not in said
    assert 2 <= len(said.strip().splitlines()) <= 4, said
    assert max(map(len, said.splitlines())) <= cli.LONGEST_LINE + 20
    return said


@pytest.mark.parametrize("arguments, problem, cure", WRONG, ids=map(short, WRONG))
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
