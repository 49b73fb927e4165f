"""Presentation of validation metrics: rows of metrics.jsonl hold one as ``val/NAME``, result.json as ``NAME``.

A metric needs no entry here to be logged, compared and mirrored. An entry says how its numbers are shown.
"""

from dataclasses import dataclass, field

PREFIX = "val/"


@dataclass(frozen=True)
class Metric:
    """Label and number format of a metric, which direction is better, where that is known, and values to compare with.

    ``references`` are lines in plots: values that others have published, by name.
    """

    label: str
    format: str = ".4f"
    higher_is_better: bool | None = None
    references: dict[str, float] = field(default_factory=dict)

    @property
    def is_ratio(self) -> bool:
        """True if the values are shown in percent."""
        return self.format.endswith("%")


# Brown et al. 2020, appendix H; GPT-2's as build-nanogpt's hellaswag.py finds them in completion style.
HELLASWAG = {"GPT-2 124M": 0.2955, "GPT-3 small": 0.337}

METRICS = {
    "loss": Metric("val loss", ".4f", higher_is_better=False),
    "bpb": Metric("bpb", ".4f", higher_is_better=False),
    **{f"{name}_loss": Metric(f"{name} loss", ".4f", higher_is_better=False) for name in ("ema", "average")},
    **{f"{name}_bpb": Metric(f"{name} bpb", ".4f", higher_is_better=False) for name in ("ema", "average")},
    "exact_match": Metric("exact match", ".2%", higher_is_better=True),
    "hellaswag_acc_norm": Metric("HellaSwag", ".2%", higher_is_better=True, references=HELLASWAG),
    "hellaswag_acc": Metric("HellaSwag acc", ".2%", higher_is_better=True),
}


def metric_of(name: str) -> Metric:
    """Return the entry of a metric; one without an entry gets its label from its name."""
    return METRICS.get(name) or Metric(name.replace("_", " "))
