"""Checks whether runs can be compared: what they must have in common, in words where they have not."""

from collections.abc import Callable, Hashable, Iterable, Iterator
from typing import Any

from gpt.compare.arms import Arm
from gpt.compare.runs import Run, Selection
from gpt.compare.statistics import have_no_spread

SHOWN = 8  # names in a warning


def check_alike(arms: list[Arm], reference: Arm) -> list[str]:
    """Return warnings about what the finished runs of arms should share with each other, and do not."""
    finished = []
    for arm in arms:
        finished += arm.finished
    warnings = [
        *_check_order(arms, finished, reference),
        *_check_seeds(arms, reference),
        *_check_data(arms, finished),
        *_check_targets(arms, finished),
        *_check_tokenizers(arms, finished),
    ]
    budgets = _group(finished, lambda run: run.tokens)
    if len(budgets) > 1:
        warnings.append(f"different numbers of tokens: {_list_counts(arms, budgets)}")
    return warnings


def _check_order(arms: list[Arm], finished: list[Run], reference: Arm) -> Iterator[str]:
    """Yield a warning unless runs of equal seed and tokens have equal hashes: the same samples in the same order."""
    unlike: list[Run] = []
    for alike in _group(finished, lambda run: (run.seed, run.tokens)).values():
        # Compare with the reference where it has a run of this seed and length.
        of_reference = [run for run in alike if run in reference.runs]
        first = of_reference[0] if of_reference else alike[0]
        expected = _order_hash(first)
        for run in alike:
            if _order_hash(run) != expected:
                unlike.append(run)
    if not unlike:
        return
    # Windows of another length cannot be the same, which explains it.
    why = ""
    lengths = {run.config["model.seq_len"] for run in finished}
    if len(lengths) > 1:
        why = "; with another model.seq_len the windows necessarily differ"
    names = _name(arms, unlike)
    yield f"not the same data in the same order as {reference.label} at equal seed and tokens: {names}{why}"


def _order_hash(run: Run) -> str | None:
    return run.result.get("data_order_hash")


def _check_seeds(arms: list[Arm], reference: Arm) -> Iterator[str]:
    """Yield warnings about arms that share no seed with the reference, and arms with different seeds."""
    # Arms without a common seed cannot be paired with the reference.
    reference_seeds = set(reference.counted)
    apart = []
    rest = []
    for arm in arms:
        seeds = arm.counted.keys()
        if reference_seeds and seeds and not reference_seeds & seeds:
            apart.append(arm.label)
        else:
            rest.append(arm)
    if apart:
        yield f"no seed in common with {reference.label}, so other weights and other data: {_shorten(apart)}"
    # The other arms may still have different seeds.
    groups = _group(rest, _seeds)
    if len(groups) > 1:
        listed = []
        for seeds, alike in groups.items():
            labels = _shorten(arm.label for arm in alike)
            numbers = ", ".join(map(str, seeds))
            listed.append(f"{numbers} ({labels})")
        yield f"not the same seeds in every arm (tests take those in common): {'; '.join(listed)}"


def _seeds(arm: Arm) -> tuple[int, ...]:
    seeds = {run.seed for run in arm.runs}
    return tuple(sorted(seeds))


def _check_data(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield warnings about different training data and validation sets: the halves of the fingerprint."""
    known = [run for run in finished if "data_fingerprint" in run.result]
    for half, what in enumerate(("training data", "validation sets")):
        groups: dict[str, list[Run]] = {}
        for run in known:
            halves = run.result["data_fingerprint"].split("-")
            groups.setdefault(halves[half], []).append(run)
        if len(groups) > 1:
            names = [_name(arms, runs) for runs in groups.values()]
            yield f"different {what}: {'; another for '.join(names)}"


def _check_targets(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield a warning about different numbers of validation tokens."""
    known = [run for run in finished if run.result.get("val_targets")]
    groups = _group(known, lambda run: run.result["val_targets"])
    if len(groups) > 1:
        yield f"validated on different numbers of tokens: {_list_counts(arms, groups)}"


def _check_tokenizers(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield a warning about different tokenizers."""
    groups: dict[tuple, list[Run]] = {}
    for run in finished:
        tokenizer = run.result.get("tokenizer")
        if tokenizer:
            key = tuple(sorted(tokenizer.items()))
            groups.setdefault(key, []).append(run)
    if len(groups) > 1:
        listed = []
        for runs in groups.values():
            tokenizer = runs[0].result["tokenizer"]
            n_tokens = tokenizer["vocab_size"]
            names = _name(arms, runs)
            listed.append(f"{tokenizer['name']} with {n_tokens:,} tokens ({names})")
        yield f"different tokenizers, so losses per token mean different things: {'; '.join(listed)}"


def check_counted(selection: Selection, arms: list[Arm]) -> list[str]:
    """Return warnings about runs that the statistics leave out, and about seeds that make no difference."""
    warnings = []
    # Runs that have not ended, or not well.
    not_done = [run for run in selection.runs if run.state != "done"]
    for state, runs in _group(not_done, lambda run: run.state).items():
        names = _shorten(run.name for run in runs)
        warnings.append(f"{state}, so left out of the statistics: {names}")
    if selection.not_started:
        warnings.append(f"not started: {_shorten(selection.not_started)}")
    without_loss = []
    for run in selection.runs:
        if run.state == "done" and run.val_loss is None:
            without_loss.append(run.name)
    if without_loss:
        warnings.append(f"no validation loss, so left out of the statistics: {_shorten(without_loss)}")
    # Seeds that are there twice, or make no difference.
    for arm in arms:
        counted = arm.counted
        for run in arm.repeated:
            warnings.append(
                f"seed {run.seed} of {arm.label} is there twice: {run.name} is left out of the statistics, "
                f"{counted[run.seed].name} counts"
            )
        if len(counted) > 1 and have_no_spread([run.val_loss for run in counted.values()]):
            warnings.append(f"all seeds of {arm.label} end at the same loss, which says nothing about chance")
    return warnings


def agreement(arms: list[Arm]) -> str | None:
    """Return what runs without a warning have in common, in words; None for a single run."""
    first = arms[0].runs[0]
    if len(arms) == 1 and len(arms[0].runs) == 1:
        return None
    same_data = "same data in the same order, " if len(arms) > 1 else ""
    return f"comparable: {same_data}{first.tokens:,} tokens each, same validation set and tokenizer"


def _group(items: Iterable, key: Callable[..., Hashable]) -> dict[Any, list]:
    """Group items that have a key in common, in the order in which they come."""
    groups: dict[Any, list] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def _name(arms: list[Arm], runs: list[Run]) -> str:
    """Name runs in words: an arm all of whose finished runs are meant by its label."""
    names = []
    for arm in arms:
        meant = [run.name for run in arm.finished if run in runs]
        is_whole = len(meant) == len(arm.finished)
        names += [arm.label] if meant and is_whole else meant
    return _shorten(names)


def _list_counts(arms: list[Arm], groups: dict[int, list[Run]]) -> str:
    """Return numbers of tokens in words, each with its runs."""
    listed = []
    for count, runs in groups.items():
        names = _name(arms, runs)
        listed.append(f"{count:,} ({names})")
    return "; ".join(listed)


def _shorten(names: Iterable[str]) -> str:
    """Return a list in words that does not fill the screen."""
    names = list(names)
    text = ", ".join(names[:SHOWN])
    if len(names) > SHOWN:
        text += f" and {len(names) - SHOWN} more"
    return text
