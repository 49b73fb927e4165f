"""The weights of a new run: drawn, or read."""

from pathlib import Path
from typing import Any

from gpt.checkpoint.files import latest_checkpoint
from gpt.config.schema import Config
from gpt.interop.load import load_pretrained, weights_hash
from gpt.interop.pretrained import check_same_model
from gpt.interop.read import read_pretrained
from gpt.model import GPT, init_weights
from gpt.rundir import read_about

HASH = "init_sha256"  # of the weights that a run started from, in about.json and result.json


def start_weights(config: Config, model: GPT, run_dir: Path) -> dict[str, Any]:
    """Give the model of a run its first weights, and return what is recorded of them.

    A run that goes on gets those of its checkpoint afterwards. Raises InputError.
    """
    if config.init_from is None:
        init_weights(model, config.seed)
        return {}

    # What a run once started from may be gone by the time that it goes on.
    if config.resume and latest_checkpoint(run_dir) is not None:
        about = read_about(run_dir) or {}
        return {HASH: about[HASH]} if HASH in about else {}
    pretrained = read_pretrained(config.init_from)
    check_same_model(config.model, pretrained)  # once more: a name on the hub has been fetched since
    load_pretrained(model, pretrained)
    return {HASH: weights_hash(pretrained)}
