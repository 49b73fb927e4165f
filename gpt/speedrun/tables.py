"""Standings of a speedrun as a table and in words."""

import statistics

from gpt.compare.arms import ABSENT
from gpt.compare.statistics import summarize
from gpt.compare.tables import Grid
from gpt.speedrun.standings import BASELINE, LARGEST_P, SEEDS, Standing, Track

HEADER = ["arm", "seeds", "val loss", "95 % interval", "p", "seconds", "of nanoGPT's", "tokens", "of nanoGPT's tokens"]


def standings_grid(standings: list[Standing], track: Track) -> Grid:
    """Return the table of all arms."""
    rows = []
    for standing in standings:
        losses = summarize(list(standing.losses.values()))
        interval = ABSENT if losses.low is None else f"[{losses.low:.4f}, {losses.high:.4f}]"
        rows.append(
            [
                standing.arm,
                str(losses.n),
                f"{standing.mean_loss:.4f}",
                interval,
                ABSENT if standing.p is None else f"{standing.p:.2g}",
                f"{statistics.fmean(standing.seconds):.1f}",
                f"{standing.seconds_ratio:.1%}",
                f"{standing.tokens:,}",
                f"{standing.tokens_ratio:.1%}",
            ]
        )
    title = f"target: a mean validation loss below {track.target} nats per character, {track.about}"
    return Grid(title, HEADER, rows, {"arm"})


def verdict(standing: Standing, track: Track) -> str:
    """Return in words what an arm has reached, and what a record lacks."""
    seconds = statistics.fmean(standing.seconds)
    n = len(standing.losses)
    if standing.mean_loss >= track.target:
        return f"{standing.arm}: {standing.mean_loss:.4f} is not below {track.target} after {seconds:.1f} s of training"
    words = f"{standing.arm}: below {track.target} after {seconds:.1f} s of training"
    if standing.arm != BASELINE:
        words += f", in {standing.seconds_ratio:.1%} of the time of nanoGPT's recipe"
    # Below the target, and counted where it is certain enough.
    if standing.is_record:
        return f"{words}; counts as a record"
    if n < SEEDS:
        return f"{words}; a record needs {SEEDS} seeds: {track.command}"
    return f"{words}; a record needs p < {LARGEST_P}"
