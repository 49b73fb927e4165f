"""Presentation of validation metrics: rows of metrics.jsonl hold one as ``val/NAME``, result.json as ``NAME``.

A metric needs no entry here to be logged, compared and mirrored. An entry says how its numbers are shown.
"""

from typing import NamedTuple

PREFIX = "val/"


class Metric(NamedTuple):
    """Label and number format of a metric, and which direction is better, where that is known."""

    label: str
    format: str = ".4f"
    higher_is_better: bool | None = None

    @property
    def is_ratio(self) -> bool:
        """True if the values are shown in percent."""
        return self.format.endswith("%")


METRICS = {
    "loss": Metric("val loss", ".4f", higher_is_better=False),
    "exact_match": Metric("exact match", ".2%", higher_is_better=True),
}


def metric_of(name: str) -> Metric:
    """Return the entry of a metric; one without an entry gets its label from its name."""
    return METRICS.get(name) or Metric(name.replace("_", " "))
