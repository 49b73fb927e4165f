"""The loop that runs the jobs of a sweep: they start where a slot is free, are watched, and end or are stopped."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

from gpt.errors import InputError, TrainingError
from gpt.signals import Interrupt
from gpt.sweep.board import Board
from gpt.sweep.jobs import Job, State, in_state
from gpt.sweep.slots import Process, Slot

if TYPE_CHECKING:
    from gpt.cluster.slurm import Submitted

POLL = 0.1  # seconds between two looks at the jobs


def _must_stop(jobs: list[Job], on_failure: str, is_interrupted: bool) -> bool:
    """Return whether no further job may start, and those that run are to stop."""
    has_failed = bool(in_state(jobs, State.FAILED))
    return is_interrupted or (has_failed and on_failure == "stop")


def _next_starts(jobs: list[Job], slots: list[Slot]) -> list[tuple[Job, Slot | None]]:
    """Return the waiting jobs that can start now, in order, each with its slot: None for those that SLURM runs."""
    # A slot is free unless a running job is in it.
    in_use = [job.slot for job in in_state(jobs, State.RUNNING)]
    free = [slot for slot in slots if slot not in in_use]

    # SLURM has a queue of its own.
    starts: list[tuple[Job, Slot | None]] = []
    for job in in_state(jobs, State.WAITING):
        if job.on_slurm:
            starts.append((job, None))
        elif free:
            starts.append((job, free.pop(0)))
    return starts


def _is_over(jobs: list[Job], is_stopping: bool) -> bool:
    """Return whether no job runs, and none will start."""
    if in_state(jobs, State.RUNNING):
        return False
    return is_stopping or not in_state(jobs, State.WAITING)


class Scheduler:
    """Runs the jobs of a sweep in its slots, and those of SLURM beside them.

    ``start`` starts a job in a slot, or submits it to SLURM where the slot is None, and returns the handle.
    """

    def __init__(
        self,
        jobs: list[Job],
        slots: list[Slot],
        on_failure: str,
        start: "Callable[[Job, Slot | None], Process | Submitted]",
        board: Board,
    ):
        self.jobs = jobs
        self.slots = slots
        self.on_failure = on_failure
        self.start_job = start
        self.board = board

    def run(self, interrupt: Interrupt) -> None:
        """Run the jobs until none is left, or the sweep must stop. A second signal kills them."""
        # These do not run, and are reported once.
        for job in self.jobs:
            if job.state in (State.KEPT, State.LEFT_OUT):
                self.board.report(job)
        try:
            self._loop(interrupt)
        except KeyboardInterrupt:
            self._kill()
            raise

    def _loop(self, interrupt: Interrupt) -> None:
        was_asked_to_stop = False
        while True:
            is_interrupted = interrupt.received
            is_stopping = _must_stop(self.jobs, self.on_failure, is_interrupted)

            # Running jobs are asked once; asked again, they would end without saving.
            if is_stopping and not was_asked_to_stop:
                self._ask_to_stop(is_interrupted)
                was_asked_to_stop = True
            if not is_stopping:
                for job, slot in _next_starts(self.jobs, self.slots):
                    self._start(job, slot)

            # Those that have ended make room for the next.
            self._collect()
            if _is_over(self.jobs, is_stopping):
                return
            self.board.refresh()
            time.sleep(POLL)

    def _start(self, job: Job, slot: Slot | None) -> None:
        job.started = time.monotonic()
        job.slot = slot
        try:
            job.handle = self.start_job(job, slot)
            job.state = State.RUNNING
            job.note = ""
        except (InputError, TrainingError, OSError) as error:
            job.end(State.FAILED, str(error))
        self.board.report(job)

    def _ask_to_stop(self, is_interrupted: bool) -> None:
        """Ask the running jobs to end after their step. An interrupted sweep leaves those of SLURM running."""
        for job in in_state(self.jobs, State.RUNNING):
            if job.on_slurm and is_interrupted:
                job.end(State.INTERRUPTED, f"goes on as SLURM job {job.handle.job_id}")
                self.board.report(job)
            else:
                job.handle.stop()

    def _collect(self) -> None:
        """Record the jobs that have ended."""
        for job in in_state(self.jobs, State.RUNNING):
            ended = job.handle.ended()
            if ended is not None:
                state, note = ended
                job.end(State(state), note)
                self.board.report(job)

    def _kill(self) -> None:
        """Kill the running jobs of this machine, and wait until they are gone."""
        for job in in_state(self.jobs, State.RUNNING):
            if not job.on_slurm:
                job.handle.kill()
