"""Whether runs can be compared: what they must have in common, in words where they have not."""

from collections.abc import Callable, Hashable, Iterable

from gpt.compare.runs import Arm, Found, Run
from gpt.compare.statistics import same

SHOWN = 8  # names in a warning


def check_alike(arms: list[Arm], reference: Arm) -> list[str]:
    """What the finished runs of arms should share with each other, and do not."""
    runs = [run for arm in arms for run in arm.runs if run.state == "done"]
    found = [check_order(arms, runs, reference), *check_seeds(arms, reference), *check_data(arms, runs)]
    budgets = by(runs, lambda run: run.tokens)
    if len(budgets) > 1:
        listed = "; ".join(f"{tokens:,} ({name(arms, group)})" for tokens, group in budgets.items())
        found.append(f"different numbers of tokens: {listed}")
    return [warning for warning in found if warning]


def check_order(arms: list[Arm], runs: list[Run], reference: Arm) -> str | None:
    """At equal seed and tokens, equal hashes of the data order: the same samples in the same order."""
    unlike: list[Run] = []
    for cell in by(runs, lambda run: (run.seed, run.tokens)).values():
        first = next((run for run in cell if run in reference.runs), cell[0])
        unlike += [run for run in cell if run.result.get("data_order_hash") != first.result.get("data_order_hash")]
    if not unlike:
        return None
    why = ""
    if len(by(runs, lambda run: run.config["model.seq_len"])) > 1:
        why = "; with another model.seq_len the windows necessarily differ"
    return (
        f"not the same data in the same order as {reference.label} at equal seed and tokens: {name(arms, unlike)}{why}"
    )


def check_seeds(arms: list[Arm], reference: Arm) -> Iterable[str]:
    """Arms are compared seed by seed."""
    seeds = {arm.label: {run.seed for run in arm.runs} for arm in arms}
    theirs = set(reference.counted)
    apart = [arm.label for arm in arms if theirs and arm.counted and not theirs & arm.counted.keys()]
    if apart:
        yield f"no seed in common with {reference.label}, so other weights and other data: {shorten(apart)}"
    groups = by((label for label in seeds if label not in apart), lambda label: tuple(sorted(seeds[label])))
    if len(groups) > 1:
        listed = "; ".join(f"{', '.join(map(str, numbers))} ({shorten(labels)})" for numbers, labels in groups.items())
        yield f"not the same seeds in every arm (tests take those in common): {listed}"


def check_data(arms: list[Arm], runs: list[Run]) -> Iterable[str]:
    """The same training data, validation set and tokenizer; a run says so once it has ended."""
    known = [run for run in runs if "data_fingerprint" in run.result]
    for half, what in enumerate(("training data", "validation sets")):
        groups = by(known, lambda run, half=half: run.result["data_fingerprint"].split("-")[half])
        if len(groups) > 1:
            yield f"different {what}: {'; another for '.join(name(arms, group) for group in groups.values())}"
    targets = by((run for run in runs if run.result.get("val_targets")), lambda run: run.result["val_targets"])
    if len(targets) > 1:
        listed = "; ".join(f"{n:,} ({name(arms, group)})" for n, group in targets.items())
        yield f"validated on different numbers of tokens: {listed}"
    read = [run for run in runs if run.result.get("tokenizer")]
    tokenizers = by(read, lambda run: tuple(sorted(run.result["tokenizer"].items())))
    if len(tokenizers) > 1:
        named = ((group[0].result["tokenizer"], name(arms, group)) for group in tokenizers.values())
        listed = "; ".join(f"{of['name']} with {of['vocab_size']:,} tokens ({names})" for of, names in named)
        yield f"different tokenizers, so losses per token mean different things: {listed}"


def check_counted(found: Found, arms: list[Arm]) -> list[str]:
    """Runs that the statistics leave out, and seeds that are none."""
    warnings = []
    for state, runs in by((run for run in found.runs if run.state != "done"), lambda run: run.state).items():
        warnings.append(f"{state}, so left out of the statistics: {shorten(run.name for run in runs)}")
    if found.not_started:
        warnings.append(f"not started: {shorten(found.not_started)}")
    if blind := [run.name for run in found.runs if run.state == "done" and run.val_loss is None]:
        warnings.append(f"no validation loss, so left out of the statistics: {shorten(blind)}")
    for arm in arms:
        counted = arm.counted
        for run in arm.repeated:
            warnings.append(
                f"seed {run.seed} of {arm.label} is there twice: {run.name} is left out of the statistics, "
                f"{counted[run.seed].name} counts"
            )
        if len(counted) > 1 and same([run.val_loss for run in counted.values()]):
            warnings.append(f"all seeds of {arm.label} end at the same loss, which says nothing about chance")
    return warnings


def agreement(arms: list[Arm]) -> str | None:
    """What is said where nothing is wrong; None of a single run."""
    runs = [run for arm in arms for run in arm.runs]
    if len(runs) == 1:
        return None
    same_data = "same data in the same order, " if len(arms) > 1 else ""
    return f"comparable: {same_data}{runs[0].tokens:,} tokens each, same validation set and tokenizer"


def by(items: Iterable, key: Callable[..., Hashable]) -> dict:
    """Items in groups that have a key in common, in the order in which they come."""
    groups: dict = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def name(arms: list[Arm], runs: list[Run]) -> str:
    """Runs in words: an arm of which all finished runs are meant by its label."""
    named = []
    for arm in arms:
        finished = [run for run in arm.runs if run.state == "done"]
        meant = [run for run in finished if run in runs]
        named += [arm.label] if meant and len(meant) == len(finished) else [run.name for run in meant]
    return shorten(named)


def shorten(names: Iterable[str]) -> str:
    """A list in words that does not fill the screen."""
    names = list(names)
    rest = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + rest
