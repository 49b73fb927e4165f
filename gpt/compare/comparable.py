"""Checks whether runs can be compared: what they must have in common, in words where they have not."""

from collections.abc import Iterator
from typing import Any

from gpt.compare.arms import Arm
from gpt.compare.provenance import check_provenance
from gpt.compare.runs import Run, Selection
from gpt.compare.statistics import SEEDS, are_paired, have_no_spread
from gpt.compare.words import SHOWN_OF_GROUP, group, name_groups, name_others, name_runs, shorten

Groups = dict[Any, list[Run]]  # runs by what they have in common


def check_alike(arms: list[Arm], reference: Arm) -> list[str]:
    """Return warnings about what the finished runs of arms should share with each other, and do not."""
    finished = []
    for arm in arms:
        finished += arm.finished
    return [
        *_check_order(arms, finished, reference),
        *_check_seeds(arms, reference),
        *_check_data(arms, finished),
        *_check_masks(arms, finished),
        *_check_documents(arms, finished),
        *_check_targets(arms, finished),
        *_check_tokenizers(arms, finished),
        *_check_first_weights(arms, finished),
        *_check_budgets(arms, finished),
        *check_provenance(arms, finished),
    ]


def _check_order(arms: list[Arm], finished: list[Run], reference: Arm) -> Iterator[str]:
    """Yield a warning unless runs of equal seed and tokens have equal hashes: the same samples in the same order."""
    unlike: list[Run] = []
    expected_of = reference.label
    groups = group(finished, _seed_and_tokens)
    for alike in groups.values():
        # Compare with the reference where it has a run of this seed and length.
        first = alike[0]
        for run in alike:
            if run in reference.runs:
                first = run
                break
        expected = _order_hash(first)
        for run in alike:
            if _order_hash(run) != expected:
                unlike.append(run)
                if first not in reference.runs:
                    expected_of = "the first of them"
    if not unlike:
        return

    # Windows of another length cannot be the same, which explains it.
    why = ""
    lengths = {run.config["model.seq_len"] for run in finished}
    if len(lengths) > 1:
        why = "; with another model.seq_len the windows necessarily differ"
    names = name_runs(arms, unlike)
    condition = f"as {expected_of} at equal seed and tokens"
    yield f"not the same data in the same order {condition}: {names}{why}"


def _seed_and_tokens(run: Run) -> tuple[int, int]:
    return run.seed, run.tokens


def _order_hash(run: Run) -> str | None:
    return run.result.get("data_order_hash")


def _check_seeds(arms: list[Arm], reference: Arm) -> Iterator[str]:
    """Yield warnings about arms that share no or few seeds with the reference, and arms with different seeds."""
    # Arms with too few common seeds cannot be paired with the reference.
    reference_seeds = set(reference.counted)
    apart = []
    few = []
    rest = []
    for arm in arms:
        seeds = arm.counted.keys()
        have_seeds = reference_seeds and seeds
        if have_seeds and reference_seeds.isdisjoint(seeds):
            apart.append(arm.label)
        elif have_seeds and not are_paired(seeds, reference_seeds):
            few.append(arm.label)
        else:
            rest.append(arm)
    if apart:
        labels = shorten(apart)
        yield f"no seed in common with {reference.label}, so other weights and other data: {labels}"
    if few:
        labels = shorten(few)
        yield f"fewer than {SEEDS} seeds in common with {reference.label}, so Welch's test over all of them: {labels}"

    # The other arms may still have different seeds.
    groups = group(rest, _seeds)
    if len(groups) <= 1:
        return
    parts = []
    for seeds, alike in groups.items():
        labels = shorten([arm.label for arm in alike], shown=SHOWN_OF_GROUP)
        numbers = shorten(map(str, seeds))
        parts.append(f"{numbers} ({labels})")
    listed = shorten(parts, "; ")
    yield f"not the same seeds in every arm (tests take those in common): {listed}"


def _seeds(arm: Arm) -> tuple[int, ...]:
    seeds = {run.seed for run in arm.runs}
    return tuple(sorted(seeds))


def _check_data(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield warnings about different training data and validation sets: the halves of the fingerprint."""
    by_train: Groups = {}
    by_val: Groups = {}
    unknown = []
    for run in finished:
        fingerprint = run.result.get("data_fingerprint")
        if fingerprint is None:
            unknown.append(run)
        else:
            train, _, val = fingerprint.partition("-")
            alike_in_train = by_train.setdefault(train, [])
            alike_in_train.append(run)
            alike_in_val = by_val.setdefault(val, [])
            alike_in_val.append(run)

    # One group where all are equal.
    halves = {"training data": by_train, "validation sets": by_val}
    for what, groups in halves.items():
        if len(groups) <= 1:
            continue
        yield f"different {what}: {name_others(arms, groups)}"
    if unknown:
        yield f"result.json does not say which data, so it may be another: {name_runs(arms, unknown)}"


def _check_masks(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield warnings about other targets among the same tokens: loss masks, and where documents start."""
    kinds = {"loss_mask": "loss masks", "documents": "starts of documents"}
    for key, what in kinds.items():
        groups: Groups = {}
        for run in finished:
            # Runs from before masks were recorded may have the same.
            masks = run.result.get("data_masks", {})
            if key in masks:
                groups.setdefault(masks[key], []).append(run)
        if len(groups) > 1:
            yield f"different {what}: {name_others(arms, groups)}"


def _check_documents(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield a warning about windows that are cut or masked in another way, in validation too."""
    groups = group(finished, lambda run: run.config["data.documents"])
    if len(groups) > 1:
        yield f"validated with different data.documents, so on other contexts: {name_groups(arms, groups)}"


def _check_targets(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield a warning about different numbers of validation tokens."""
    groups: Groups = {}
    for run in finished:
        n_targets = run.result.get("val_targets")
        if n_targets:
            groups.setdefault(n_targets, []).append(run)
    if len(groups) > 1:
        counts = name_groups(arms, groups)
        yield f"validated on different numbers of tokens: {counts}"


def _check_budgets(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield a warning about different numbers of training tokens."""
    groups = group(finished, lambda run: run.tokens)
    if len(groups) > 1:
        counts = name_groups(arms, groups)
        yield f"different numbers of tokens: {counts}"


def _check_tokenizers(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield a warning about different tokenizers."""
    groups: Groups = {}
    for run in finished:
        tokenizer = run.result.get("tokenizer")
        if tokenizer:
            # A dictionary cannot be a key.
            key = tuple(sorted(tokenizer.items()))
            groups.setdefault(key, []).append(run)
    if len(groups) <= 1:
        return

    # Each tokenizer with its runs.
    parts = []
    for runs in groups.values():
        tokenizer = runs[0].result["tokenizer"]
        name = tokenizer["name"]
        n_tokens = tokenizer["vocab_size"]
        run_names = name_runs(arms, runs, SHOWN_OF_GROUP)
        parts.append(f"{name} with {n_tokens:,} tokens ({run_names})")
    listed = shorten(parts, "; ")
    yield f"different tokenizers, so compare bits per byte (bpb), not losses per token: {listed}"


def _check_first_weights(arms: list[Arm], finished: list[Run]) -> Iterator[str]:
    """Yield warnings about runs that started from weights of one name, and not from the same ones."""
    started = [run for run in finished if run.config["init_from"] is not None]
    for source, runs in group(started, lambda run: run.config["init_from"]).items():
        groups = group(runs, lambda run: run.result.get("init_sha256"))
        if len(groups) > 1:
            yield f"init_from={source} were other weights: {name_others(arms, groups)}"


def check_counted(selection: Selection, arms: list[Arm]) -> list[str]:
    """Return warnings about runs that the statistics leave out, and about seeds that make no difference."""
    warnings = []
    # Runs that have not ended, or not well.
    not_done = []
    for run in selection.runs:
        if run.state != "done":
            not_done.append(run)
    by_state = group(not_done, lambda run: run.state)
    for state, runs in by_state.items():
        names = shorten(run.name for run in runs)
        warnings.append(f"{state}, so left out of the statistics: {names}")
    if selection.not_started:
        names = shorten(selection.not_started)
        warnings.append(f"not started: {names}")

    # Runs that have ended well, and were never validated.
    without_loss = []
    for run in selection.runs:
        is_done = run.state == "done"
        if is_done and run.val_loss is None:
            without_loss.append(run.name)
    if without_loss:
        names = shorten(without_loss)
        warnings.append(f"no validation loss, so left out of the statistics: {names}")
    return [*warnings, *_check_chance(arms)]


def _check_chance(arms: list[Arm]) -> Iterator[str]:
    """Yield warnings about seeds that are there twice, or make no difference."""
    repeated = []
    without_effect = []
    for arm in arms:
        counted = arm.counted
        for run in arm.repeated:
            first = counted[run.seed]
            repeated.append(f"{run.name} ({first.name} counts)")
        losses = [run.val_loss for run in counted.values()]
        if len(losses) > 1 and have_no_spread(losses):
            without_effect.append(arm.label)
    if repeated:
        names = shorten(repeated)
        yield f"a seed is there twice in an arm, so left out of the statistics: {names}"
    if without_effect:
        labels = shorten(without_effect)
        yield f"all seeds end at the same loss, which says nothing about chance: {labels}"


def agreement(arms: list[Arm]) -> str | None:
    """Return what runs without a warning have in common, in words; None for a single run."""
    runs = arms[0].runs
    has_arms = len(arms) > 1
    if not has_arms and len(runs) == 1:
        return None
    same_data = "same data in the same order, " if has_arms else ""
    n_tokens = runs[0].tokens
    return f"comparable: {same_data}{n_tokens:,} tokens each, same validation set and tokenizer"
