"""The answer to --help, from the files in conf/ and the text of the schema in gpt/config/."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

from gpt.config.counts import FORMS
from gpt.config.groups import CONF, GROUPS, options
from gpt.config.keys import COUNTS, Choice, Range, Text

COMMON_KEYS = """
    name tags seed device compile resume init_from plan
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
SCHEMA = [CONF.parent / "gpt" / "config" / name for name in ("schema.py", "model.py", "optimizer.py")]
WITHOUT_KEYS = ("experiment", "sweeps", "debug")  # groups whose files set keys of the others
KEY_AND_COMMENT = re.compile(r"^( *)(\w+):(.*?)(?: +# (.*))?$", re.MULTILINE)


def key_comments() -> dict[str, str]:
    """Return the comment behind every key in conf/, by dotted key: the first, where several files have one."""
    comments: dict[str, str] = {}
    for path in _files_with_keys():
        # A file of a group has the keys of its section, some in sections below it; config.yaml has sections only.
        group = [] if path.parent == CONF else [path.parent.name]
        sections: dict[int, str] = {}  # above the line, by their indentation
        for indent, name, value, comment in KEY_AND_COMMENT.findall(path.read_text()):
            depth = len(indent)
            sections = {above: section for above, section in sections.items() if above < depth} | {depth: name}
            if value.strip() and comment:
                comments.setdefault(".".join([*group, *sections.values()]), comment)
    return comments


def _files_with_keys() -> Iterator[Path]:
    """Yield the files of conf/ that give keys their defaults."""
    yield CONF / "config.yaml"
    for group in GROUPS:
        if group not in WITHOUT_KEYS:
            yield from sorted((CONF / group).glob("*.yaml"))


def common_limits() -> dict[str, str]:
    """Return the choices and ranges of the common keys, in words.

    The schema is read, and not imported: its dataclasses would double the time that --help takes.
    """
    # Find the declaration beside each key: choice(["a", "b"]), number(at_least=1) or text().
    tree = ast.parse("\n".join(path.read_text() for path in SCHEMA))
    classes = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    limits = {}
    for key, declaration in _declarations(classes, "Config"):
        if key in COMMON_KEYS and isinstance(declaration, ast.Call):
            allowed = _evaluated(declaration)
            if not isinstance(allowed, Text):
                limits[key] = allowed.in_words
    return limits


def _declarations(
    classes: dict[str, list[ast.stmt]],
    name: str,
    prefix: str = "",
) -> Iterator[tuple[str, ast.expr]]:
    """Yield the dotted keys of a class of the schema, each with the expression that declares what it may hold."""
    for node in classes[name]:
        if not isinstance(node, ast.AnnAssign):
            continue
        # A key whose type is a class of the schema is a section of keys.
        key = prefix + node.target.id
        kind = ast.unparse(node.annotation)
        if kind in classes:
            yield from _declarations(classes, kind, f"{key}.")
        else:
            yield key, node.value


def _evaluated(declaration: ast.Call) -> Choice | Range | Text:
    """The meaning of choice(…), number(…) or text(), all of whose arguments are literals."""
    kinds = {"choice": Choice, "number": Range, "text": Text}
    values = [ast.literal_eval(argument) for argument in declaration.args]
    named = {keyword.arg: ast.literal_eval(keyword.value) for keyword in declaration.keywords}
    named.pop(COUNTS, None)
    return kinds[declaration.func.id](*values, **named)


def help_text(more: list[Path]) -> str:
    """Return the answer to --help; ``more`` are the directories of --config-dir, with options of one's own."""
    # Every option of every group, with the line that opens its file.
    lines = ["Train a GPT:  python train.py [GROUP=OPTION] [KEY=VALUE] …"]
    for group in GROUPS:
        lines.append("")
        described = {}
        for directory in (CONF, *more):
            described |= options(group, directory)
        for option, about in described.items():
            choice = f"{group}={option}"
            lines.append(f"{choice:<33}{about}")

    # The keys that people reach for, with their comments and what they may hold.
    comments = key_comments()
    limits = common_limits()
    lines += ["", "common keys (all: conf/; as composed: --cfg job):"]
    for key in COMMON_KEYS:
        line = f"  {key:<30}{comments[key]}"
        if key in limits:
            line += f" [{limits[key]}]"
        lines.append(line)

    lines.append(f"  tokens and steps are counted as {FORMS}")
    lines += ["", "options of your own: --config-dir DIR, with files DIR/GROUP/OPTION.yaml; --help lists them too"]
    lines += ["", "examples:", EXAMPLES]
    return "\n".join(lines)
