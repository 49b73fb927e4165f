"""Write what docs/ have from elsewhere: make docs

The reference in config.md is made from conf/, the results in ablations.md from benchmarks/, the ladder in speedrun.md
from speedrun/.
"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gpt.cli.help import WITHOUT_KEYS, key_comments  # noqa: E402
from gpt.config.explain import allowed_values  # noqa: E402
from gpt.config.groups import CONF, GROUPS, options  # noqa: E402
from gpt.speedrun.records import RECORDS, read  # noqa: E402
from gpt.speedrun.standings import SEEDS  # noqa: E402

PAGE = ROOT / "docs" / "config.md"
ABLATIONS = ROOT / "docs" / "ablations.md"
SPEEDRUN = ROOT / "docs" / "speedrun.md"
RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"
WITH_SPEED = ("speed_ladder",)  # sweeps whose answer is one of speed
MARK = "<!-- from here on written by docs/generate.py -->\n"
KEY_COLUMNS = ["key", "value", "allowed", "meaning"]


def keys(group: str, option: str) -> dict[str, Any]:
    """Return the keys of an option below its group, dotted, with their values as the files have them."""
    # Without the schema and without the rest of the config, so that interpolations stay as they are written.
    merged = OmegaConf.merge(*_loaded(CONF / group / f"{option}.yaml"))
    return _flat(OmegaConf.to_container(merged, resolve=False))


def _loaded(path: Path) -> list[Any]:
    """A file of a group, after those of the group that it builds on."""
    own = OmegaConf.load(path)
    parts = []
    for name in own.get("defaults", []):
        # Not what it says of another group: override /schedule: constant.
        if isinstance(name, str) and (below := path.with_name(f"{name}.yaml")).exists():
            parts += _loaded(below)
    return [*parts, own]


def _flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Values by dotted key; a key that holds a dict is one key where the dict is a value of its own."""
    flat = {}
    for name, value in values.items():
        key = prefix + name
        if name in ("defaults", "hydra"):
            continue
        if isinstance(value, dict) and value and name not in ("references", "options"):
            flat |= _flat(value, f"{key}.")
        else:
            flat[key] = value
    return flat


def _shown(value: Any) -> str:
    """A value as one would type it."""
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return f"`{text}`"


def _table(head: list[str], rows: list[list[str]]) -> str:
    """A table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def _values_of_options(group: str) -> dict[str, dict[str, Any]]:
    """The values of each key of a group by the options that have it."""
    by_key: dict[str, dict[str, Any]] = {}
    for option in options(group):
        for key, value in keys(group, option).items():
            by_key.setdefault(key, {})[option] = value
    return by_key


def _default_of(group: str, values: dict[str, Any]) -> str:
    """The value of a key where it is the same in all options, else option by option."""
    options_of: dict[str, list[str]] = {}
    for option, value in values.items():
        options_of.setdefault(_shown(value), []).append(option)
    if len(options_of) == 1 and len(values) == len(options(group)):
        return next(iter(options_of))
    if group == "model":
        return "above"  # in the table of sizes
    return ", ".join(f"{value} ({' '.join(names)})" for value, names in options_of.items())


def _key_table(group: str, comments: dict[str, str]) -> str | None:
    """Every key of a group; None where it has none beside its name."""
    rows = []
    by_key = _values_of_options(group)
    # The keys of sections after those beside them.
    for name, values in sorted(by_key.items(), key=lambda item: item[0].count(".")):
        key = f"{group}.{name}"
        if name != "name":
            rows.append([f"`{key}`", _default_of(group, values), allowed_values(key), comments[key]])
    return _table(KEY_COLUMNS, rows) if rows else None


def _size_table() -> str:
    """The keys in which the options of model differ, option by option."""
    sizes = {option: keys("model", option) for option in options("model")}
    # Leave out the keys that all sizes share: they are in the table of keys.
    differing = []
    for key in sizes["tiny"]:
        values = {str(size[key]) for size in sizes.values()}
        if key != "name" and len(values) > 1:
            differing.append(key)
    rows = []
    for option, size in sizes.items():
        rows.append([f"`{option}`", *(_shown(size[key]).strip("`") for key in differing)])
    return _table(["option", *differing], rows)


def reference() -> str:
    """Return all groups and keys, for the end of docs/config.md."""
    comments = key_comments()
    # A section for each group: its options, then its keys.
    parts = []
    for group in GROUPS:
        parts.append(f"### {group}\n")
        parts.append(_table(["option", ""], [[f"`{option}`", about] for option, about in options(group).items()]))
        if group == "model":
            parts.append(_size_table())
        if group not in WITHOUT_KEYS and (rows := _key_table(group, comments)):
            parts.append(rows)

    # The keys of conf/config.yaml.
    parts.append("### outside the groups\n")
    root = _flat(OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False))
    rows = [[f"`{key}`", _shown(value), allowed_values(key), comments[key]] for key, value in root.items()]
    parts.append(_table(KEY_COLUMNS, rows))
    return "\n".join(parts)


def results(name: str) -> str:
    """Return what a sweep measured in benchmarks/ablations.py, as a table."""
    arms = json.loads(RESULTS.read_text())["sweeps"][name]["arms"]
    is_ladder = name not in WITH_SPEED and any("step" in arm for arm in arms.values())
    rows = []
    for label, arm in arms.items():
        mean = arm["val_loss"]
        difference = arm.get("step") if is_ladder else arm["difference"]
        row = [f"`{label}`", f"{mean['mean']:.4f} ± {mean['stderr']:.4f}", *_difference_cells(difference)]
        if name in WITH_SPEED:
            row.append(f"{arm['tokens_per_sec']:,.0f}")
        rows.append(row)
    from_what = "difference from the arm before" if is_ladder else "difference"
    head = ["arm", "validation loss", f"{from_what} [95 % interval]", "p", "verdict"]
    return _table([*head, "tokens/s"] if name in WITH_SPEED else head, rows)


def _difference_cells(difference: dict[str, Any] | None) -> list[str]:
    """The difference from the baseline with its interval, p and the verdict; None for the baseline itself."""
    if not difference:
        return ["", "", "baseline"]
    bounds = ""
    if difference["low"] is not None:
        bounds = f" [{difference['low']:+.4f}, {difference['high']:+.4f}]"
    p = ""
    if difference["p_holm"] is not None:
        p = f"{difference['p_holm']:.3f}" if difference["p_holm"] >= 0.001 else "< 0.001"
    return [f"{difference['mean']:+.4f}{bounds}", p, difference["verdict"]]


def ladder(track: str) -> str:
    """Return what each rung of a speedrun has reached, by the newest line of its records with enough seeds."""
    newest = {}
    for record in read(RECORDS):
        if record["track"] == track and len(record["losses"]) >= SEEDS:
            newest[record["arm"]] = record
    rows = []
    for arm, record in newest.items():
        loss = record["val_loss"]
        seconds = record["seconds"]
        rows.append(
            [
                f"`{arm}`",
                f"{loss['mean']:.4f} [{loss['low']:.4f}, {loss['high']:.4f}]",
                str(len(record["losses"])),
                "" if record["p"] > 0.5 else f"{record['p']:.0e}",
                f"{seconds['mean']:.1f} ({seconds['min']:.1f} to {seconds['max']:.1f})",
                f"{record['seconds_ratio']:.1%}",
                f"{record['tokens']:,}",
                f"{record['tokens_ratio']:.1%}",
            ]
        )
    return _table(["rung", "loss [95 % interval]", "seeds", "p", "seconds", "of nanoGPT's", "tokens", "of its"], rows)


def filled_in(page: str) -> str:
    """Return a page with the tables between its marks."""
    marked = r"(<!-- (results|ladder) of (\w+) -->\n).*?(<!-- end -->)"
    make = {"results": results, "ladder": ladder}
    return re.sub(marked, lambda match: match[1] + make[match[2]](match[3]) + match[4], page, flags=re.DOTALL)


if __name__ == "__main__":
    for path in (ABLATIONS, SPEEDRUN):
        path.write_text(filled_in(path.read_text()))
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n" + reference())
