"""Results of the arms of a speedrun, and whether they are records."""

import statistics
from typing import NamedTuple

from gpt.compare.arms import ADMINISTRATIVE, Arm
from gpt.compare.provenance import FACTS
from gpt.compare.runs import Run, Selection
from gpt.compare.statistics import have_no_spread
from gpt.errors import InputError

BASELINE = "nanogpt"  # arm of every speedrun
SEEDS = 5  # of a record, at least
LARGEST_P = 0.01  # of a record (modded-nanogpt's rule)
# Tiny Shakespeare by character, its last tenth for validation, as gpt.tokens.tokenfile.data_fingerprint has it.
DATA = (
    "6ec305602a99ac2802745a134e1f5e33e2231b4855525b00b9aebb730ac2626f"
    "-d37d30cc0c8327c270d493299c3dca54135f6d5f1c9ef60cda78076e311204b1"
)
TARGETS = 111_539  # characters of the validation split that are predicted


class Track(NamedTuple):
    """A speedrun, named after its sweep."""

    target: float  # nats per character
    about: str
    command: str  # that runs enough seeds for a record


TRACKS = {
    "speedrun": Track(1.898, "what nanoGPT's recipe for a CPU reaches", "make speedrun SEEDS=1,2,3,4,5"),
    "speedrun_gpu": Track(1.4697, "what nanoGPT's recipe for a GPU reaches", "python train.py sweeps=speedrun_gpu"),
}


class Standing(NamedTuple):
    """Result of an arm."""

    arm: str
    overrides: list[str]  # from which its runs are composed, without their seeds
    losses: dict[int, float]  # on the whole validation split at the end, by seed
    seconds: list[float]  # of training, without evaluation and saving
    tokens: int
    seconds_ratio: float  # over the mean seconds of nanoGPT's recipe
    tokens_ratio: float
    p: float | None  # probability of such losses if their mean were the target, one-sided; None for less than two
    facts: dict[str, str]  # code, torch, processor and threads of the runs

    @property
    def mean_loss(self) -> float:
        return statistics.fmean(self.losses.values())

    @property
    def is_record(self) -> bool:
        """Return whether the arm has reached the target, as the rules ask for it."""
        return len(self.losses) >= SEEDS and self.p is not None and self.p < LARGEST_P


def track_of(selection: Selection) -> tuple[str, Track]:
    """Return the name of the speedrun that a sweep is, and its target. Raises InputError."""
    name = selection.index.get("name")
    if name not in TRACKS:
        raise InputError(
            f"{selection.sweep or selection.runs[0].path} is no speedrun",
            f"give the directory of a sweep: python train.py sweeps={next(iter(TRACKS))}",
        )
    return name, TRACKS[name]


def rank(selection: Selection, arms: list[Arm], track: Track) -> list[Standing]:
    """Return the result of every arm with finished runs, in their order. Raises InputError."""
    # Only runs on the fixed data count.
    counted = _counted(selection, arms)
    for runs in counted.values():
        for run in runs.values():
            _check(run)
    if BASELINE not in counted:
        raise InputError(
            f"{selection.sweep} has no finished run of {BASELINE}, whose time is the measure",
            f"run it in the same sweep: sweep.arm={BASELINE},ARM",
        )

    # Seconds depend on the machine, so that those of nanoGPT's recipe in the same sweep are their measure.
    baseline = counted[BASELINE]
    usual_seconds = statistics.fmean(run.seconds for run in baseline.values())
    usual_tokens = next(iter(baseline.values())).tokens
    standings = []
    for label, runs in counted.items():
        seconds = [run.seconds for run in runs.values()]
        first = next(iter(runs.values()))
        losses = {seed: run.val_loss for seed, run in runs.items()}
        standings.append(
            Standing(
                arm=label,
                overrides=_overrides(selection, first),
                losses=losses,
                seconds=seconds,
                tokens=first.tokens,
                seconds_ratio=statistics.fmean(seconds) / usual_seconds,
                tokens_ratio=first.tokens / usual_tokens,
                p=_p_below(list(losses.values()), track.target),
                facts=_facts(first),
            )
        )
    return standings


def _counted(selection: Selection, arms: list[Arm]) -> dict[str, dict[int, Run]]:
    """Return the finished runs of every arm by the sweep's name for it, and by seed. Raises InputError."""
    named: dict[str, Arm] = {}
    for arm in arms:
        if not arm.counted:
            continue
        name = arm.runs[0].config["sweep.arm"] or arm.label  # the label of an arm alone is the name of its run
        other = named.setdefault(name, arm)
        if other is not arm:
            keys = [key for key, value in arm.values.items() if value != other.values[key]]
            raise InputError(
                f"{selection.sweep} has several recipes of {name}, which differ in {', '.join(keys)}",
                "an arm is one recipe: only sweep.arm and seed may be lists",
            )
    return {name: arm.counted for name, arm in named.items()}


def _check(run: Run) -> None:
    """Check that a run was trained from nothing, and measured, on the fixed data. Raises InputError."""
    if run.config["init_from"] is not None:
        raise InputError(
            f"{run.path}: it starts from the weights of {run.config['init_from']}",
            "a speedrun takes no weights from elsewhere: init_from=null",
        )
    if run.result.get("data_fingerprint") != DATA:
        raise InputError(
            f"{run.path}: its data is not Tiny Shakespeare by character",
            "leave data=shakespeare_char as it is; data.files may name another copy of the text",
        )
    n_targets = run.result.get("val_targets") or 0
    if n_targets != TARGETS:
        raise InputError(
            f"{run.path}: its loss is over {n_targets:,} characters",
            f"a speedrun measures all {TARGETS:,}: trainer.eval_tokens=null",
        )


def _p_below(losses: list[float], target: float) -> float | None:
    """Return the p of a one-sided t-test that the mean of losses is below the target."""
    if len(losses) < 2:
        return None
    if have_no_spread(losses):
        return 0.0 if losses[0] < target else 1.0
    from scipy import stats  # a second, so only when there is something to compute

    return float(stats.ttest_1samp(losses, target, alternative="less").pvalue)


def _overrides(selection: Selection, run: Run) -> list[str]:
    """Return the recipe of a run: what it is composed from, without seeds and places."""
    job = selection.index["jobs"].get(run.path.name, {"overrides": []})
    overrides = []
    for override in job["overrides"]:
        key = override.partition("=")[0]
        if key != "sweep.arm" and not ADMINISTRATIVE.fullmatch(key):
            overrides.append(override)
    return overrides


def _facts(run: Run) -> dict[str, str]:
    """Return the code and the machine of a run, as far as they are known."""
    facts = {}
    for start in run.starts[:1]:
        for name, fact in FACTS.items():
            value = fact(run, start)
            if value is not None:
                facts[name] = str(value)
    return facts
