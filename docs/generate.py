"""Write the reference in docs/config.md from conf/, the results in docs/ablations.md from benchmarks/: make docs"""

import json
import re
import sys
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from gpt.cli.help import key_comments  # noqa: E402
from gpt.config.groups import CONF, GROUPS, options  # noqa: E402

PAGE = ROOT / "docs" / "config.md"
ABLATIONS = ROOT / "docs" / "ablations.md"
RESULTS = ROOT / "benchmarks" / "results" / "ablations.json"
WITH_SPEED = ("speed_ladder",)  # sweeps whose answer is one of speed
MARK = "<!-- from here on written by docs/generate.py -->\n"


def keys(group: str, option: str) -> dict[str, Any]:
    """The keys of an option below its group, dotted, with their values as the files have them."""
    merged = OmegaConf.merge(*loaded(CONF / group / f"{option}.yaml"))
    return flat(OmegaConf.to_container(merged, resolve=False))


def loaded(path: Path) -> list[Any]:
    """A file of a group, after those of the group that it builds on."""
    own = OmegaConf.load(path)
    below = [path.with_name(f"{name}.yaml") for name in own.get("defaults", []) if isinstance(name, str)]
    return [*(part for file in below if file.exists() for part in loaded(file)), own]


def flat(values: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        if key in ("defaults", "hydra"):
            continue
        nested = isinstance(value, dict) and value and f"{prefix}{key}" != "references"
        found |= flat(value, f"{prefix}{key}.") if nested else {prefix + key: value}
    return found


def shown(value: Any) -> str:
    words = {None: "null", True: "true", False: "false"}
    text = words[value] if value is None or isinstance(value, bool) else str(value)
    return f"`{text}`"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def key_table(group: str, comments: dict[str, str]) -> str:
    """Every key of a group, its value where it is the same in all options, else option by option."""
    by_key: dict[str, dict[str, Any]] = {}
    for option in options(group):
        for key, value in keys(group, option).items():
            by_key.setdefault(key, {})[option] = value
    rows = []
    for key, values in by_key.items():
        if key == "name":
            continue
        having: dict[str, list[str]] = {}
        for option, value in values.items():
            having.setdefault(shown(value), []).append(option)
        if having.keys() == {shown(next(iter(values.values())))} and len(values) == len(options(group)):
            default = next(iter(having))
        elif group == "model":
            default = "above"
        else:
            default = ", ".join(f"{value} ({' '.join(options)})" for value, options in having.items())
        rows.append([f"`{group}.{key}`", default, comments[f"{group}.{key}"]])
    return table(["key", "value", "meaning"], rows)


def reference() -> str:
    """All groups and keys."""
    comments, parts = key_comments(), []
    for group in GROUPS:
        parts.append(f"### {group}\n")
        parts.append(table(["option", ""], [[f"`{o}`", about] for o, about in options(group).items()]))
        if group == "model":
            sizes = {option: keys(group, option) for option in options(group)}
            differing = [k for k in sizes["tiny"] if k != "name" and len({str(s[k]) for s in sizes.values()}) > 1]
            rows = [[f"`{option}`", *(shown(s[k]).strip("`") for k in differing)] for option, s in sizes.items()]
            parts.append(table(["option", *differing], rows))
        if group not in ("experiment", "sweeps", "debug"):
            rows = key_table(group, comments)
            parts.append(rows) if rows.count("\n") > 2 else None
    root = flat(OmegaConf.to_container(OmegaConf.load(CONF / "config.yaml"), resolve=False))
    parts.append("### outside the groups\n")
    parts.append(table(["key", "value", "meaning"], [[f"`{k}`", shown(v), comments[k]] for k, v in root.items()]))
    return "\n".join(parts)


def results(name: str) -> str:
    """What a sweep said in benchmarks/ablations.py."""
    found = json.loads(RESULTS.read_text())["sweeps"][name]
    rows = []
    for label, arm in found["arms"].items():
        mean, difference = arm["val_loss"], arm["difference"]
        row = [f"`{label}`", f"{mean['mean']:.4f} ± {mean['stderr']:.4f}", "", "", "baseline"]
        if difference:
            bounds = "" if difference["low"] is None else f" [{difference['low']:+.4f}, {difference['high']:+.4f}]"
            p = "" if difference["p_holm"] is None else f"{difference['p_holm']:.3f}"
            row[2:] = [f"{difference['mean']:+.4f}{bounds}", p, difference["verdict"]]
        rows.append([*row, f"{arm['tokens_per_sec']:,.0f}"] if name in WITH_SPEED else row)
    head = ["arm", "validation loss", "difference [95 % interval]", "p", "verdict"]
    return table([*head, "tokens/s"] if name in WITH_SPEED else head, rows)


def with_results(page: str) -> str:
    """A page with the tables of results between its marks."""
    return re.sub(
        r"(<!-- results of (\w+) -->\n).*?(<!-- end -->)", lambda m: m[1] + results(m[2]) + m[3], page, flags=re.DOTALL
    )


if __name__ == "__main__":
    ABLATIONS.write_text(with_results(ABLATIONS.read_text()))
    PAGE.write_text(PAGE.read_text().partition(MARK)[0] + MARK + "\n" + reference())
