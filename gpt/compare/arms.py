"""Arms of an ablation: runs that differ in nothing but the seed, and the names of arms."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from gpt.compare.runs import Run

ABSENT = "–"  # in place of a value that is not known, or that an option has no key for

LONGEST = 45  # characters of a name that is made of keys; longer ones tell less than the names of runs

# Keys that name the run or its place, or are of evaluation tasks, and do not change what it trains, but for rounding.
# data.seed is left out where it follows the seed, and PLACES where the same data lies there.
ADMINISTRATIVE = re.compile(
    r"seed|name|tags|resume|plan|plan_mfu|cluster\..*|tracker\..*|checkpoint\..*|sweep\.(?!arm$).*"
    r"|data\.(dir|cache_dir|files|processes|references)|trainer\.(log_every|tasks|tasks_every)"
    r"|(sample|hellaswag|perplexity|arithmetic|inspect|lm_eval)\..*"
)

PLACES = ("data.dir", "data.files")
MAIN_KEYS = (*PLACES, "trainer.max_tokens", "trainer.max_steps")  # what differs most between unlike runs

Values = dict[str, str]  # of config keys, as one would type them


@dataclass(slots=True)
class Arm:
    """Runs that differ in nothing but the seed."""

    label: str
    values: Values  # of the keys that differ between arms
    runs: list[Run] = field(default_factory=list)

    @property
    def finished(self) -> list[Run]:
        return [run for run in self.runs if run.state == "done"]

    @property
    def counted(self) -> dict[int, Run]:
        """Runs that enter the statistics, by seed and in that order: of several with one seed the first."""
        first: dict[int, Run] = {}
        for run in self.runs:
            if run.is_counted:
                first.setdefault(run.seed, run)
        return dict(sorted(first.items()))

    @property
    def repeated(self) -> list[Run]:
        """Runs that could enter the statistics, if the arm had not another one with their seed."""
        counted = self.counted.values()
        return [run for run in self.runs if run.is_counted and run not in counted]

    def counts(self, run: Run) -> bool:
        """Return whether a run of the arm enters the statistics."""
        return self.counted.get(run.seed) is run


def all_runs(arms: list[Arm]) -> list[Run]:
    """Return the runs of all arms."""
    runs: list[Run] = []
    for arm in arms:
        runs += arm.runs
    return runs


def find_arms(runs: list[Run], is_sweep: bool = False) -> list[Arm]:
    """Group runs that agree in all keys but the seed, in the order of their first runs.

    Arms of a sweep are named by the keys that it sweeps over.
    """
    groups: dict[tuple[str, ...], Arm] = {}
    differing = _differing(runs)
    for run, values in zip(runs, differing, strict=True):
        key = tuple(values.values())
        if key not in groups:
            name = run.config["name"]
            groups[key] = Arm(name, values)
        groups[key].runs.append(run)
    arms = list(groups.values())

    # An arm alone keeps the name of its run.
    if len(arms) > 1:
        labels = _labels([arm.values for arm in arms])
        longest = max(map(len, labels))
        if longest > LONGEST and not is_sweep:
            labels = _names_of_runs(arms)
        for arm, label in zip(arms, labels, strict=True):
            arm.label = label
    return arms


def _names_of_runs(arms: list[Arm]) -> list[str]:
    """Return the names that the first runs of arms were given, or those of their directories if some are equal."""
    firsts = [arm.runs[0] for arm in arms]
    names = [run.config["name"] for run in firsts]
    if len(set(names)) == len(names):
        return names
    return [run.name for run in firsts]


def _differing(runs: list[Run]) -> list[Values]:
    """Return, for each run, the values of the keys that differ between runs, without seeds and administrative keys."""
    configs = []
    for run in runs:
        configs.append(_computing_values(run))
    _settle_places(runs, configs)
    _settle_data_seeds(runs, configs)
    # Options of one group have different keys: take those of all configs, in their order.
    keys: dict[str, None] = {}
    for config in configs:
        keys |= dict.fromkeys(config)

    # Fill the values in key by key, where they differ.
    differing: list[Values] = [{} for _ in runs]
    for key in keys:
        values = [config.get(key, ABSENT) for config in configs]
        is_common = len(set(values)) == 1
        if is_common:
            continue
        for row, value in zip(differing, values, strict=True):
            row[key] = value
    return differing


def _computing_values(run: Run) -> Values:
    """Return the values of the keys that may change what a run computes."""
    values: Values = {}
    for key, value in run.config.items():
        if not ADMINISTRATIVE.fullmatch(key):
            values[key] = _as_text(value)
    return values


def _settle_places(runs: list[Run], configs: list[Values]) -> None:
    """Add where its data lies to the values of each run; runs on the same data have the place of the first of them."""
    first: dict[str, Values] = {}
    for run, config in zip(runs, configs, strict=True):
        own = {key: _as_text(run.config.get(key)) for key in PLACES}
        fingerprint = run.result.get("data_fingerprint") or str(own)
        config |= first.setdefault(fingerprint, own)


def _settle_data_seeds(runs: list[Run], configs: list[Values]) -> None:
    """Replace data.seed by ``${seed}`` in runs that are alike otherwise, if it equals the seed in all of them."""
    # Group runs by the rest of their config.
    data_seeds = [config.pop("data.seed") for config in configs]
    alike: dict[tuple, list[int]] = {}
    for i, config in enumerate(configs):
        key = tuple(config.items())
        group = alike.setdefault(key, [])
        group.append(i)

    # A single run whose data.seed equals its seed may do so by chance; in its whole group it follows.
    for group in alike.values():
        follows = True
        for i in group:
            if data_seeds[i] != str(runs[i].seed):
                follows = False
        for i in group:
            configs[i]["data.seed"] = "${seed}" if follows else data_seeds[i]


def _as_text(value: Any) -> str:
    """Return a value of the config as one would type it."""
    if isinstance(value, str):
        return value
    text = json.dumps(value, separators=(",", ":"), ensure_ascii=False)
    return text.replace('"', "")


def _labels(arms: list[Values]) -> list[str]:
    """Return short and unique names of arms, made of the keys that tell them apart."""
    # All arms are named by the same keys.
    keys = _telling_keys(arms)
    short_keys = _short_keys(keys)
    labels = []
    for arm in arms:
        words = []
        for key, short in zip(keys, short_keys, strict=True):
            value = arm[key]
            if key != "sweep.arm":
                words.append(f"{short}={value}")
            elif value != "null":
                # The sweep's own name for the arm; a run outside of it has none.
                words.append(value)
        label = " ".join(words)
        labels.append(label or "no arm")
    return labels


def _short_keys(keys: list[str]) -> list[str]:
    """Return keys as they stand in the names of arms."""
    last_parts = []
    for key in keys:
        _, _, last_part = key.rpartition(".")
        last_parts.append(last_part)
    short_keys = []
    for key, last_part in zip(keys, last_parts, strict=True):
        if last_part == "name":
            # An option of a group: optimizer=muon for optimizer.name.
            short_keys.append(key.removesuffix(".name"))
        elif last_parts.count(last_part) == 1:
            # A single key: its last part, if no other key ends in the same.
            short_keys.append(last_part)
        else:
            short_keys.append(key)
    return short_keys


def _telling_keys(arms: list[Values]) -> list[str]:
    """Return the keys, in the order of their rank, of which each tells more arms apart than those before it."""
    keys: list[str] = []
    n_groups = 1
    own = {key for key in arms[0] if any(arm[key] == ABSENT for arm in arms)}  # keys of some options alone
    for key in sorted(arms[0], key=lambda key: _rank(key, own)):  # stable: those of one rank stay in their order
        # Arms that agree in the keys so far, and in this one, are one group.
        longer = [*keys, key]
        groups = set()
        for arm in arms:
            values = [arm[name] for name in longer]
            groups.add(tuple(values))
        if len(groups) > n_groups:
            keys.append(key)
            n_groups = len(groups)
    return keys


def _rank(key: str, own: set[str]) -> int:
    """Return the rank of a key in the names of arms: the sweep's own names, options, what differs most, other keys.

    Keys of an option's ``own`` come last: the name of the option says more.
    """
    if key == "sweep.arm":
        return 0
    if re.fullmatch(r"\w+\.name", key):
        return 1
    if key in MAIN_KEYS:
        return 2
    return 4 if key in own else 3
