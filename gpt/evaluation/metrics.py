"""The metrics of evaluation tasks as readers see them. Imports nothing, so that reports can use it."""

from typing import NamedTuple

OTHER = ("step", "tokens", "train", "optim", "perf")  # keys of a row, and their prefixes, that no task has measured


class Metric(NamedTuple):
    """The presentation of a metric: its name and the format of its values."""

    label: str
    format: str = ".4f"


METRICS = {
    "val/loss": Metric("val"),
    "val/exact_match": Metric("exact match", ".2%"),
}


def presentation(key: str) -> Metric:
    """Return how a metric is shown; one that the table does not have bears its key's name."""
    return METRICS.get(key) or Metric(key.rpartition("/")[2].replace("_", " "))


def evaluated(row: dict[str, float]) -> list[str]:
    """Return the keys of a row that evaluation tasks have measured."""
    return [key for key in row if key.partition("/")[0] not in OTHER]
