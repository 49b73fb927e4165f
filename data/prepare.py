"""Turn text into token files.

    python -m data.prepare data=stdlib
    python -m data.prepare data=text data.files=[a.txt,'books/*.txt'] data.tokenizer=gpt2

Takes the overrides of train.py, and writes train.h5, val.h5 and manifest.json to a directory below data.cache_dir
that is named after the source, the tokenizer and a hash of all that went in. Given once, it is not made again.
Interrupted, it goes on where it was when the command is given again.
"""

import sys

from data.preparation import check_fits, describe_tokenizer, prepare
from gpt.cli import command
from gpt.cli.compose import compose
from gpt.console import say


def main() -> None:
    config = compose(sys.argv[1:])
    line = describe_tokenizer(config)
    if line:
        say(line)
    train, val = prepare(config.data)
    check_fits(config, train, val)
    for file in (train, val):
        if file is not None:
            say(f"{file.path}: {file.n_tokens:,} tokens, {file.tokenizer}, vocabulary {file.vocab_size:,}")


if __name__ == "__main__":
    sys.exit(command.script(main, __doc__))
