"""The question that runs answer, and what they were made with, in words."""

from gpt.compare.provenance import code_of
from gpt.compare.runs import Selection
from gpt.compare.words import shorten

OF_SWEEP = ("question", "expected", "command")  # of sweep.json, in the order in which they are shown


def describe(selection: Selection) -> dict[str, str]:
    """Return question, expected answer and command of a sweep, and commit and date of the runs, where known."""
    about = {}
    of_sweep = selection.index.get("about", {})
    for name in OF_SWEEP:
        if name in of_sweep:
            about[name] = str(of_sweep[name])

    # Runs may have been made over days, and with several states of the code.
    commits: dict[str, None] = {}  # sets that keep their order
    dates: dict[str, None] = {}
    for run in selection.runs:
        for start in run.starts:
            commits[code_of(start) or ""] = None
            dates[start.get("date") or ""] = None
    known_commits = list(filter(None, commits))
    known_dates = sorted(filter(None, dates))
    if known_commits:
        about["commit"] = shorten(known_commits)
    if known_dates:
        ends = dict.fromkeys([known_dates[0], known_dates[-1]])
        about["date"] = " to ".join(ends)
    return about
