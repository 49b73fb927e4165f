"""What the task lm_eval needs before it starts. Imports neither torch nor lm-evaluation-harness."""

from importlib.util import find_spec

from gpt.config.schema import Config
from gpt.errors import InputError
from gpt.files import as_path


def check(config: Config) -> None:
    """Check that lm-evaluation-harness is installed, and that its tasks have names. Raises InputError."""
    if find_spec("lm_eval") is None:
        raise InputError(
            "the task lm_eval needs lm-evaluation-harness, which is not installed", "pip install lm_eval==0.4.13"
        )
    if not config.lm_eval.tasks:
        raise InputError("the task lm_eval has no tasks to run", "name some: lm_eval.tasks=[lambada_openai,piqa]")
    path = config.lm_eval.include_path
    if path is not None and not as_path("lm_eval.include_path", path).is_dir():
        raise InputError(f"lm_eval.include_path={path}: no such directory", "give one that has YAML files of tasks")
