"""Profile of the first steps of a run, by torch's profiler (debug=profile)."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList, FunctionEvent

# Steps. The first ones allocate and compile.
WAIT = 1
WARM_UP = 2
RECORDED = 3


@contextmanager
def profile_steps(run_dir: Path, enabled: bool) -> Iterator[Callable[[], None]]:
    """Record some steps; yields a function to call after each. Writes profile.json (a trace) and profile.txt."""
    if not enabled:
        yield lambda: None
        return

    def write(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(run_dir / "profile.json"))
        sort_by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=sort_by, row_limit=40, max_name_column_width=60)
        share = communication_share(profiler.events())
        (run_dir / "profile.txt").write_text(f"{share:.1%} of these steps had a collective under way\n{table}\n")

    # One window of a few steps, written as soon as it ends.
    schedule = torch.profiler.schedule(wait=WAIT, warmup=WARM_UP, active=RECORDED, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step


def communication_share(events: EventList) -> float:
    """Share of the recorded steps during which a collective is under way, beside other work or in wait for a rank."""
    steps = []
    collectives = []
    for event in events:
        if event.name.startswith("ProfilerStep"):
            steps.append(event.time_range)
        elif _is_collective(event):
            collectives.append((event.time_range.start, event.time_range.end))

    # Collectives that overlap count once: each adds the time after the end of all earlier ones.
    busy = 0.0
    latest_end = -math.inf
    for start, end in sorted(collectives):
        busy += max(0.0, end - max(start, latest_end))
        latest_end = max(latest_end, end)
    recorded = max(step.end for step in steps) - min(step.start for step in steps)
    return busy / recorded


def _is_collective(event: FunctionEvent) -> bool:
    """True for an operation of gloo or a kernel of nccl."""
    if event.name.startswith("gloo:"):
        return True
    return event.device_type == DeviceType.CUDA and "nccl" in event.name.lower()
