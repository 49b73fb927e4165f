"""The scheduler of a sweep: what it starts next, when it stops, and how jobs end, without running any."""

from types import SimpleNamespace

import pytest

from gpt.errors import InputError
from gpt.rundir import write_result
from gpt.sweep import scheduler
from gpt.sweep.jobs import Job, State
from gpt.sweep.scheduler import Scheduler, _is_over, _must_stop, _next_starts
from gpt.sweep.slots import Slot

FIRST = Slot(cores=(0,))
SECOND = Slot(cores=(1,))


def build(name, state="waiting", slot=None, cluster="single", run_dir=None):
    config = SimpleNamespace(cluster=SimpleNamespace(name=cluster))
    return Job(name, [], None, config, run_dir, State(state), slot=slot)


def starts(jobs, slots):
    return [(job.name, slot) for job, slot in _next_starts(jobs, slots)]


def test_jobs_start_in_order_in_the_slots_that_are_free():
    jobs = [build("a", "kept"), build("b", "running", FIRST), build("c"), build("d")]
    assert starts(jobs, [FIRST, SECOND]) == [("c", SECOND)]
    assert starts(jobs, [FIRST]) == []
    jobs[1].state = State.DONE
    assert starts(jobs, [FIRST, SECOND]) == [("c", FIRST), ("d", SECOND)]
    assert starts([build("a"), build("b")], [Slot()]) == [("a", Slot())]


def test_jobs_of_slurm_need_no_slot():
    jobs = [build("a"), build("b", cluster="slurm"), build("c"), build("d", cluster="slurm")]
    assert starts(jobs, [FIRST]) == [("a", FIRST), ("b", None), ("d", None)]
    jobs[0].state = State.RUNNING
    jobs[0].slot = FIRST
    assert starts(jobs, [FIRST]) == [("b", None), ("d", None)]


@pytest.mark.parametrize(
    "states, on_failure, is_interrupted, expected",
    [
        ("waiting running done", "stop", False, False),
        ("waiting running failed", "stop", False, True),
        ("waiting running failed", "continue", False, False),
        ("waiting running", "continue", True, True),
    ],
)
def test_a_sweep_stops_when_it_is_told_or_a_job_has_failed(states, on_failure, is_interrupted, expected):
    jobs = [build(state, state) for state in states.split()]
    assert _must_stop(jobs, on_failure, is_interrupted) is expected


@pytest.mark.parametrize(
    "states, is_stopping, expected",
    [
        ("done kept failed interrupted", False, True),
        ("done waiting", False, False),
        ("done waiting", True, True),
        ("running", False, False),
        ("running", True, False),
        ("", False, True),
    ],
)
def test_a_sweep_is_over_when_nothing_runs_and_nothing_will(states, is_stopping, expected):
    assert _is_over([build(state, state) for state in states.split()], is_stopping) is expected


class Handle:
    """A job that ends after it has been polled ``polls`` times."""

    job_id = "17"

    def __init__(self, end, polls=1):
        self.end = end
        self.polls = polls
        self.stops = 0
        self.kills = 0

    def ended(self):
        self.polls -= 1
        return self.end if self.polls < 0 else None

    def stop(self):
        self.stops += 1
        self.end = ("interrupted", "")
        self.polls = 0

    def kill(self):
        self.kills += 1


class Reports:
    """A board that keeps its lines."""

    def __init__(self, at_refresh=lambda: None):
        self.lines = []
        self.refresh = at_refresh

    def report(self, job):
        self.lines.append(f"{job.name} {job.state}")


def run(jobs, handles, on_failure="continue", slots=(FIRST,), interrupt=None, board=None):
    """Run jobs by their handles; a handle that is an error is raised. Return the lines of the board."""
    board = board or Reports()

    def start(job, slot):
        handle = handles[job.name]
        if isinstance(handle, Exception):
            raise handle
        return handle

    interrupt = interrupt or SimpleNamespace(received=False)
    Scheduler(jobs, list(slots), on_failure, start, board).run(interrupt)
    return board.lines


@pytest.fixture(autouse=True)
def at_once(monkeypatch):
    monkeypatch.setattr(scheduler, "POLL", 0)


def test_all_jobs_run_and_what_they_leave_decides(tmp_path):
    jobs = [build("kept", "kept"), *(build(name, run_dir=tmp_path / name) for name in "abc")]
    (tmp_path / "a").mkdir()
    write_result(tmp_path / "a", {"status": "done", "val_loss": 1.5})
    handles = {"a": Handle(("done", "")), "b": Handle(("done", "")), "c": InputError("no room", "make some")}
    assert run(jobs, handles) == ["kept kept", "a running", "a done", "b running", "b failed", "c failed"]
    assert jobs[1].result["val_loss"] == 1.5
    assert jobs[2].note == f"ended without a result; see {tmp_path / 'b'}"
    assert jobs[3].note == "no room\n  make some" and jobs[3].handle is None


def test_a_failure_stops_the_others_once_and_starts_no_more():
    jobs = [build("a"), build("b"), build("c")]
    handles = {"a": Handle(("failed", "loss nan")), "b": Handle(("done", ""), polls=99), "c": None}
    lines = run(jobs, handles, on_failure="stop", slots=(FIRST, SECOND))
    assert lines == ["a running", "b running", "a failed", "b interrupted"]
    assert handles["b"].stops == 1 and jobs[2].state == State.WAITING


def test_a_signal_stops_the_jobs_of_this_machine_and_leaves_those_of_slurm():
    jobs = [build("a"), build("b", cluster="slurm")]
    handles = {"a": Handle(("done", ""), polls=99), "b": Handle(("done", ""), polls=99)}
    interrupt = SimpleNamespace(received=False)
    board = Reports(at_refresh=lambda: setattr(interrupt, "received", True))
    assert run(jobs, handles, interrupt=interrupt, board=board)[2:] == ["b interrupted", "a interrupted"]
    assert (handles["a"].stops, handles["b"].stops) == (1, 0)
    assert jobs[1].note == "goes on as SLURM job 17"


def test_a_second_signal_kills_the_jobs_of_this_machine():
    def insist():
        raise KeyboardInterrupt

    jobs = [build("a"), build("b", cluster="slurm"), build("c")]
    handles = {"a": Handle(None, polls=99), "b": Handle(None, polls=99), "c": None}
    with pytest.raises(KeyboardInterrupt):
        run(jobs, handles, board=Reports(at_refresh=insist))
    assert (handles["a"].kills, handles["b"].kills) == (1, 0)
