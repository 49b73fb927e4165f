"""Arms of an ablation: runs that differ in nothing but the seed, and the names of arms."""

import json
import re
from dataclasses import dataclass, field
from typing import Any

from gpt.compare.runs import Run

ABSENT = "–"  # in place of a value that is not known, or that an option has no key for

# Keys that name the run or its place, and do not change what it computes.
# data.seed is left out where it follows the seed.
ADMINISTRATIVE = re.compile(
    r"seed|name|tags|resume|plan|plan_mfu|tracker\..*|checkpoint\..*|sweep\.(?!arm$).*"
    r"|data\.(dir|cache_dir|files|processes|references)|trainer\.log_every"
)

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
        return [run for run in self.runs if run.is_counted and not self.counts(run)]

    def counts(self, run: Run) -> bool:
        """Return whether a run of the arm enters the statistics."""
        return self.counted.get(run.seed) is run


def all_runs(arms: list[Arm]) -> list[Run]:
    """Return the runs of all arms."""
    runs: list[Run] = []
    for arm in arms:
        runs += arm.runs
    return runs


def find_arms(runs: list[Run]) -> list[Arm]:
    """Group runs that agree in all keys but the seed, in the order of their first runs."""
    groups: dict[tuple[str, ...], Arm] = {}
    for run, values in zip(runs, _differing(runs), strict=True):
        key = tuple(values.values())
        if key not in groups:
            groups[key] = Arm(run.config["name"], values)
        groups[key].runs.append(run)
    arms = list(groups.values())
    if len(arms) > 1:
        for arm, label in zip(arms, _labels([arm.values for arm in arms]), strict=True):
            arm.label = label
    return arms


def _differing(runs: list[Run]) -> list[Values]:
    """Return, for each run, the values of the keys that differ between runs, without seeds and administrative keys."""
    configs = [_computing_values(run) for run in runs]
    _settle_data_seeds(runs, configs)
    # Options of one group have different keys: take those of all configs, in their order.
    keys: dict[str, None] = {}
    for config in configs:
        keys |= dict.fromkeys(config)
    # Fill the values in key by key, where they differ.
    differing: list[Values] = [{} for _ in runs]
    for key in keys:
        values = [config.get(key, ABSENT) for config in configs]
        if len(set(values)) == 1:
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


def _settle_data_seeds(runs: list[Run], configs: list[Values]) -> None:
    """Replace data.seed by ``${seed}`` in runs that are alike otherwise, if it equals the seed in all of them."""
    # Group runs by the rest of their config.
    data_seeds = [config.pop("data.seed") for config in configs]
    alike: dict[tuple, list[int]] = {}
    for i, config in enumerate(configs):
        key = tuple(config.items())
        alike.setdefault(key, []).append(i)
    # A single run whose data.seed equals its seed may do so by chance; in its whole group it follows.
    for group in alike.values():
        unlike = [i for i in group if data_seeds[i] != str(runs[i].seed)]
        for i in group:
            configs[i]["data.seed"] = data_seeds[i] if unlike else "${seed}"


def _as_text(value: Any) -> str:
    """Return a value of the config as one would type it."""
    if isinstance(value, str):
        return value
    return json.dumps(value, separators=(",", ":")).replace('"', "")


def _labels(arms: list[Values]) -> list[str]:
    """Return short and unique names of arms, made of the keys that tell them apart."""
    keys = _telling_keys(arms)
    last_parts = [key.rpartition(".")[2] for key in keys]
    labels = []
    for arm in arms:
        words = []
        for key, last_part in zip(keys, last_parts, strict=True):
            value = arm[key]
            if key == "sweep.arm":
                # The sweep's own name for the arm; a run outside of it has none.
                if value != "null":
                    words.append(value)
            elif last_part == "name":
                # An option of a group: optimizer=muon for optimizer.name.
                words.append(f"{key.removesuffix('.name')}={value}")
            else:
                # A single key: its last part, if no other key ends in the same.
                is_unique = last_parts.count(last_part) == 1
                words.append(f"{last_part if is_unique else key}={value}")
        labels.append(" ".join(words) or "no arm")
    return labels


def _telling_keys(arms: list[Values]) -> list[str]:
    """Return the keys, in the order of their rank, of which each tells more arms apart than those before it."""
    keys: list[str] = []
    n_groups = 1
    for key in sorted(arms[0], key=_rank):  # stable: keys of one rank stay in the order of the config
        groups = set()
        for arm in arms:
            values = [arm[name] for name in (*keys, key)]
            groups.add(tuple(values))
        if len(groups) > n_groups:
            keys.append(key)
            n_groups = len(groups)
    return keys


def _rank(key: str) -> int:
    """Return the rank of a key in the names of arms: the sweep's own names, the options of groups, single keys."""
    if key == "sweep.arm":
        return 0
    return 1 if re.fullmatch(r"\w+\.name", key) else 2
