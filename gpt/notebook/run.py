"""A run as an object. Needs no torch until a model is loaded."""

import functools
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt.checkpoint.files import WHEN_SAVED, check_no_sweep, find_average, find_checkpoint, list_checkpoints
from gpt.compare.runs import read_rows
from gpt.config.load import read
from gpt.config.schema import Config
from gpt.errors import InputError
from gpt.files import as_path
from gpt.rundir import SAMPLES, read_result
from gpt.tracker.logs import parse_samples

if TYPE_CHECKING:
    from gpt.notebook.model import LanguageModel


def load_run(directory: str | Path) -> "Run":
    """The run in an output directory. Raises InputError where there is none."""
    path = as_path("load_run", str(directory))
    if (path / "config.yaml").is_file():
        return Run(path)
    # Sweeps are in outputs/ too, so one may be given by mistake.
    check_no_sweep("load_run", path)
    raise InputError(
        f"no run in {path}: it has no config.yaml", "give the output directory of a run, such as outputs/DATE/TIME-NAME"
    )


class Run:
    """The output directory of a run: its files as Python objects, each read when it is first asked for."""

    def __init__(self, path: Path):
        self.path = path

    def __repr__(self) -> str:
        return f"<Run {self.path}>"

    @functools.cached_property
    def config(self) -> Config:
        """The resolved config, typed: ``run.config.model.n_embd``."""
        return read(self.path / "config.yaml")

    @functools.cached_property
    def metrics(self) -> dict[str, list[float | None]]:
        """A column for each metric, one value per logged step; None at steps that do not have the metric."""
        rows = read_rows(self.path)
        # The names of all rows, in the order of their first appearance.
        names = {}
        for row in rows:
            names |= row
        return {name: [row.get(name) for row in rows] for name in names}

    @functools.cached_property
    def result(self) -> dict[str, Any] | None:
        """The contents of result.json; None before the end of the run."""
        return read_result(self.path)

    @property
    def checkpoints(self) -> dict[int, Path]:
        """The directories of the checkpoints by step, oldest first."""
        return {int(path.name.removeprefix("step_")): path for path in list_checkpoints(self.path)}

    @functools.cached_property
    def samples(self) -> list[tuple[int, str]]:
        """The sampled texts, each with its step."""
        path = self.path / SAMPLES
        return parse_samples(path.read_text(encoding="utf-8")) if path.is_file() else []

    def load_model(
        self, checkpoint: int | str | Path = "best", device: str = "cpu", weights: str | None = None
    ) -> "LanguageModel":
        """The model of a checkpoint: a step, ``best`` (lowest validation loss), ``last``, or the path of a directory.

        ``weights`` names an average of the weights that the run has kept, ``ema`` or ``average``. Raises InputError
        where the checkpoint does not exist, is damaged or holds another model, or has no such average.
        """
        from gpt.notebook.model import load_model

        path = self._find_checkpoint(checkpoint)
        return load_model(find_average(path, weights) if weights else path, device)

    def _find_checkpoint(self, checkpoint: int | str | Path) -> Path:
        if checkpoint not in ("best", "last") and not isinstance(checkpoint, int):
            return find_checkpoint(Path(checkpoint).expanduser())
        # best and last are links; a step is looked up by its number.
        path = self.path / "checkpoints" / str(checkpoint)
        if isinstance(checkpoint, int):
            path = self.checkpoints.get(checkpoint, path)
        if not path.is_dir():
            steps = ", ".join(map(str, self.checkpoints))
            cure = f"allowed: best, last, a step of {steps}"
            if not steps:
                cure = f"it has saved nothing: {WHEN_SAVED}"
            raise InputError(f"{self.path} has no checkpoint {checkpoint}", cure)
        return find_checkpoint(path)
