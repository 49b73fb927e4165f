"""Everything around the training of a run: locks, signals, logs, the mirror, result.json, and failures in words."""

import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt.checkpoint import state as checkpoint
from gpt.checkpoint.files import checkpoint_dir, resume_hint
from gpt.checkpoint.state import Progress
from gpt.config.schema import Config, WandbConfig
from gpt.device import cpu_threads
from gpt.distributed import World, delayed, is_lost_rank
from gpt.errors import Interrupted, LostRank, NotFinite, TrainingError
from gpt.rundir import NOT_FINITE, lock_logs, write_result
from gpt.signals import Interrupt
from gpt.tracker.mirror import Mirror
from gpt.tracker.provenance import write_about
from gpt.tracker.tracker import NullTracker, Tracker


@dataclass
class Session:
    """The means of a training that is under way. ``result`` is what result.json will hold."""

    tracker: Tracker | NullTracker
    interrupt: Interrupt
    result: dict[str, Any]


@contextmanager
def open_session(
    config: Config,
    run_dir: Path,
    world: World,
    progress: Progress,
    logs: dict[str, int],
    facts: dict[str, Any],
) -> Iterator[Session]:
    """Hold the run's logs and handle signals for one training, and write result.json at its end.

    ``logs`` is how many bytes of each log belong to the step where the training starts; ``facts`` go into about.json.
    Raises TrainingError when the run cannot go on, and Interrupted if a signal ended it at once.
    """
    begin = time.perf_counter()
    result = {"status": "failed"}
    with ExitStack() as stack:
        stack.enter_context(_failures_in_words(config, run_dir, world, progress))
        if world.is_main:
            stack.enter_context(lock_logs(run_dir))
        stack.enter_context(cpu_threads(config.cluster.threads))
        interrupt = stack.enter_context(Interrupt(world.stop, listens=world.stop is None))
        # The mirror outlives the tracker and result.json, which it copies.
        mirror = stack.enter_context(_mirror(config, run_dir)) if world.is_main else None
        try:
            with _tracker(config, run_dir, world, progress, mirror, logs, facts) as tracker:
                yield Session(tracker, interrupt, result)
        except KeyboardInterrupt:
            result["status"] = "interrupted"
            raise
        except NotFinite:
            result["cause"] = NOT_FINITE
            raise
        finally:
            result["seconds"] = round(time.perf_counter() - begin, 3)
            if world.is_main:
                with suppress(OSError):  # the failure to write has been reported
                    write_result(run_dir, result)


def _mirror(config: Config, run_dir: Path) -> Mirror:
    """Return what copies the logs elsewhere."""
    tracker = config.tracker
    uploads_files = isinstance(tracker, WandbConfig) and tracker.artifacts != "none"
    return Mirror(tracker.name, run_dir, may_stay=uploads_files)


def _tracker(
    config: Config,
    run_dir: Path,
    world: World,
    progress: Progress,
    mirror: Mirror | None,
    logs: dict[str, int],
    facts: dict[str, Any],
) -> Tracker | NullTracker:
    """Return the tracker of rank 0, with the logs brought to where the run goes on; other ranks print nothing."""
    if mirror is None:
        return NullTracker()
    rebuilt = []
    # The result of an earlier end, which this training goes beyond.
    (run_dir / "result.json").unlink(missing_ok=True)
    if progress.step:
        rebuilt = checkpoint.restore_logs(checkpoint_dir(run_dir, progress.step), run_dir, logs)
        checkpoint.prune(run_dir, progress.best_step, config.checkpoint.keep)
    write_about(run_dir, facts, progress.step, world.size)
    with_histograms = config.tracker.histograms_every is not None
    tracker = Tracker(run_dir, logs, progress.step, facts["total_steps"], mirror, with_histograms)
    for name in rebuilt:
        tracker.say(f"{name} was not what it was when step {progress.step:,} was saved: rebuilt from the checkpoint")
    return tracker


@contextmanager
def _failures_in_words(config: Config, run_dir: Path, world: World, progress: Progress) -> Iterator[None]:
    """Name the cause of what ends a run before its time, and how the run goes on.

    Raises TrainingError and Interrupted.
    """
    try:
        yield
    except KeyboardInterrupt as error:
        raise Interrupted(f"stopped at once\n  {resume_hint(run_dir)}") from error
    except OSError as error:
        raise TrainingError(
            f"step {progress.step}: {run_dir} cannot be written: {error}\n"
            f"  mend that, or make room; {resume_hint(run_dir)}"
        ) from error
    except RuntimeError as error:
        step = progress.step + 1
        reason = str(error).partition("\n")[0]
        if reason.startswith("DataLoader worker"):
            raise TrainingError(
                f"step {step}: one of data.num_workers={config.data.num_workers} is gone: {reason}\n"
                f"  if memory is short, take fewer; {resume_hint(run_dir)}"
            ) from error
        if world.size == 1 or not is_lost_rank(error):
            raise
        raise delayed(
            LostRank(
                f"step {step}: another rank is gone, or did not answer within "
                f"cluster.timeout={config.cluster.timeout} s ({reason})\n"
                f"  see {run_dir}/logs; {resume_hint(run_dir)}"
            )
        ) from error
