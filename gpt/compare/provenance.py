"""Differences between runs that stand in no config: code, versions, and the machines that computed them."""

from collections.abc import Callable, Iterator
from typing import Any

from gpt.compare.arms import Arm
from gpt.compare.runs import Run
from gpt.compare.words import name_groups

SHORT = 7  # digits of a commit or a hash

Start = dict[str, Any]  # of about.json


def check_provenance(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield a warning for each fact of about.json, and for compiling, in which finished runs differ."""
    for what, fact in FACTS.items():
        groups: dict[str, list[Run]] = {}
        for run in finished:
            value = _over_starts(run, fact)
            # Runs from before a fact was recorded may be as the others.
            if value is not None:
                groups.setdefault(value, []).append(run)
        if len(groups) > 1:
            yield f"different {what}: {name_groups(arms, groups)}"

    # Whether a run was compiled may be the question itself.
    compiled: dict[str, list[Run]] = {}
    for run in finished:
        compiled.setdefault(_compiled(run), []).append(run)
    is_as_asked = compiled.keys() <= {"compiled", "not compiled"}
    is_question = is_as_asked and all(_names_compile(arm) for arm in arms)
    if len(compiled) > 1 and not is_question:
        yield f"not all compiled: {name_groups(arms, compiled)}"


def code_of(start: Start) -> str | None:
    """Return the commit of a start in words."""
    code = start.get("git")
    if not code or "commit" not in code:
        return None
    commit = code["commit"][:SHORT]
    if not code.get("changed"):
        return commit
    # The hash of the changes tells one state of the code from the next.
    changes = code.get("diff_sha256") or ""
    words = f"uncommitted changes {changes[:SHORT]}".rstrip()
    return f"{commit} with {words}"


def _over_starts(run: Run, fact: Callable[[Run, Start], Any]) -> str | None:
    """Return a fact of a run in words: where it changed as the run went on, one value after the other."""
    values: dict[str, None] = {}  # a set that keeps its order
    for start in run.starts:
        value = fact(run, start)
        if value is not None:
            values[str(value)] = None
    return " then ".join(values) or None


def _code(_: Run, start: Start) -> str | None:
    return code_of(start)


def _torch(_: Run, start: Start) -> str | None:
    return start.get("versions", {}).get("torch")


def _processor(run: Run, start: Start) -> str | None:
    """Return the name of what computes: the GPU, or the processor."""
    machine = start.get("machine", {})
    gpus = machine.get("gpus") or []
    if _is_on_gpu(run, start):
        kinds = dict.fromkeys(gpus)
        return " and ".join(kinds)
    return machine.get("cpu")


def _threads(run: Run, start: Start) -> int | None:
    if _is_on_gpu(run, start):
        return None
    return start.get("torch", {}).get("threads")


def _ranks(_: Run, start: Start) -> int | None:
    return start.get("world_size")


def _determinism(_: Run, start: Start) -> str | None:
    settings = start.get("torch", {})
    if "deterministic" not in settings:
        return None
    return "only deterministic ones" if settings["deterministic"] else "any"


def _is_on_gpu(run: Run, start: Start) -> bool:
    gpus = start.get("machine", {}).get("gpus")
    return bool(gpus) and run.config["device"] in ("auto", "cuda")


def _compiled(run: Run) -> str:
    """Return whether a run was compiled; older results do not say whether that succeeded."""
    is_asked = run.config["compile"]
    is_done = run.result.get("compiled", is_asked)
    if is_asked and not is_done:
        return "asked to, but not compiled"
    return "compiled" if is_done else "not compiled"


def _names_compile(arm: Arm) -> bool:
    """Return whether the name of an arm says how it was compiled, or is the sweep's own for all that it changes."""
    return "sweep.arm" in arm.values or "compile=" in arm.label


FACTS = {
    "code": _code,
    "versions of torch": _torch,
    "processors": _processor,
    "numbers of threads": _threads,
    "numbers of ranks": _ranks,
    "algorithms": _determinism,
}
