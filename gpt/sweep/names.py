"""Names of jobs, which are the names of their directories: made of the keys and values that differ."""

import re
from collections import Counter
from hashlib import sha256
from typing import Any

from omegaconf import DictConfig

from gpt.cli.arguments import parse
from gpt.config.layouts import rename_override
from gpt.config.load import SAME_RUN

LONGEST_NAME = 100
UNNAMED = re.compile(rf"{SAME_RUN.pattern}|cluster|tracker|name|tags|plan|sweeps")  # keys that name no job
NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9.+_-]+")


def swept_keys(config: DictConfig, jobs: list[list[str]]) -> list[str]:
    """Return the keys that name the jobs: those with several values on the command line, and those of the sweep's file.

    Where there are none, return all keys of the command that make a difference. The seed comes last.
    """
    overrides = parse(list(config.hydra.overrides.task))
    present = set()
    for job in jobs:
        for override in job:
            key, _, _ = override.partition("=")
            present.add(key)

    # The keys with several values: arms, those of the file, those of the command.
    params = config.hydra.sweeper.get("params") or {}
    keys = ["sweep.arm", *params]
    for override in overrides:
        if override.is_sweep_override():
            keys.append(override.get_key_element())

    # A job alone is named by all that the command gives.
    if present.isdisjoint(keys):
        keys = []
        for override in overrides:
            key = override.get_key_element()
            if not UNNAMED.fullmatch(key):
                keys.append(key)

    # Each once, in this order but for the seed.
    different = dict.fromkeys(keys)
    ordered = sorted(different, key=lambda key: key == "seed")
    return [key for key in ordered if key in present]


def job_names(jobs: list[list[str]], keys: list[str], default: str) -> list[str]:
    """Return a name such as ``vocab_multiple-64_seed-1`` for each job, equal for equal overrides.

    Names have no = , or spaces, and differ where values do, also in characters that a name cannot have.
    """
    labels = _labels(keys)
    names = []
    for job in jobs:
        name = _name(job, labels) or default
        if len(name) > LONGEST_NAME:
            head = name[:LONGEST_NAME]
            name = f"{head}-{_short_hash(name)}"
        names.append(name)

    # Different jobs get different names, by a hash of their overrides.
    times = Counter(names)
    different = []
    for name, job in zip(names, jobs, strict=True):
        if times[name] > 1:
            digits = _short_hash(" ".join(job))
            name = f"{name}-{digits}"
        different.append(name)
    return different


def _labels(keys: list[str]) -> dict[str, str]:
    """Return the part of a name that stands for each key: its last word, or the whole key where two end alike."""
    last_words = {}
    for key in keys:
        words = re.split(r"[./]", key)
        last_words[key] = words[-1]
    times = Counter(last_words.values())

    labels = {}
    for key, word in last_words.items():
        is_unique = times[word] == 1
        label = word if is_unique else key.replace("/", ".")
        labels[key] = f"{label}-"
    if "sweep.arm" in labels:
        labels["sweep.arm"] = ""  # the value, a name itself, is enough
    return labels


def _name(job: list[str], labels: dict[str, str]) -> str:
    """Return the name of a job, with its parts in the order of ``labels``; empty where no key names it."""
    order = list(labels)
    parts = []
    for override in job:
        key, _, value = override.partition("=")
        if key in labels:
            position = order.index(key)
            part = labels[key] + _plain(value)
            parts.append((position, part))

    # In the order of the labels.
    parts.sort()
    return "_".join(part for _, part in parts)


def _plain(value: str) -> str:
    """Return a value as it can stand in the name of a directory."""
    if value in ("True", "False"):
        return value.lower()
    # A sign at either end stays, unless other characters are replaced.
    if NOT_IN_NAMES.search(value):
        replaced = NOT_IN_NAMES.sub("-", value)
        return replaced.strip("-")
    return value


def known_names(names: list[str], jobs: list[list[str]], index: dict[str, Any]) -> list[str]:
    """Return the names of jobs; for one that an earlier command has named by other keys, return that name."""
    entries = index.get("jobs", {})
    earlier_names = {}
    for name, entry in entries.items():
        overrides = entry.get("overrides")
        if not overrides:
            continue
        # Keys may have been renamed or removed since.
        current = filter(None, map(rename_override, overrides))
        same_overrides = frozenset(current)
        earlier_names[same_overrides] = name

    # A name that is taken stays: whether its run is the same is checked later.
    known = []
    for name, job in zip(names, jobs, strict=True):
        is_new = name not in entries
        if is_new:
            same_overrides = frozenset(job)
            name = earlier_names.get(same_overrides, name)
        known.append(name)
    return known


def _short_hash(text: str) -> str:
    """Return six digits that tell similar names apart."""
    digest = sha256(text.encode())
    return digest.hexdigest()[:6]
