"""The answer to --help, from the files in conf/."""

import re

from gpt.config.groups import CONF, GROUPS, options

COMMON_KEYS = """
    name tags seed device compile resume plan
    data.files data.tokenizer data.documents data.val_fraction data.num_workers
    model.seq_len model.vocab_multiple model.attention optimizer.lr schedule.warmup_tokens
    batch.global_tokens batch.micro_batch_size
    trainer.max_steps trainer.max_tokens trainer.eval_every trainer.log_every trainer.grad_clip
    checkpoint.every checkpoint.keep sweep.on_failure sweep.on_change
""".split()
EXAMPLES = """
  python train.py
  python train.py model=gpt2_124m precision=bf16 data=text data.files=[book.txt] data.tokenizer=gpt2
  python train.py sweeps=vocab_padding experiment=ablation_toy
  python train.py resume=outputs/2026-11-21/19-49-08-tiny trainer.max_tokens=16_000_000
""".strip("\n")


def key_comments() -> dict[str, str]:
    """The comment behind every key in conf/, by dotted key."""
    comments = {}
    for path in [CONF / "config.yaml", *(p for group in GROUPS[:-3] for p in sorted((CONF / group).glob("*.yaml")))]:
        parents = [] if path.parent == CONF else [path.parent.name]
        for indent, key, value, comment in re.findall(
            r"^( *)(\w+):(.*?)(?: +# (.*))?$", path.read_text(), re.MULTILINE
        ):
            if not indent:
                section = key
            if value.strip() and comment:
                comments.setdefault(".".join([*parents, *([section] if indent else []), key]), comment)
    return comments


def help_text() -> str:
    """The answer to --help, from the files in conf/."""
    lines = ["Train a GPT:  python train.py [GROUP=OPTION] [KEY=VALUE] …"]
    for group in GROUPS:
        lines += ["", *(f"{f'{group}={option}':<33}{about}" for option, about in options(group).items())]
    comments = key_comments()
    lines += ["", "common keys (all: conf/; as composed: --cfg job):"]
    lines += [f"  {key:<30}{comments[key]}" for key in COMMON_KEYS]
    lines += ["", "examples:", EXAMPLES]
    return "\n".join(lines)
