"""What one looks through when a run is slow or goes wrong: torch's profiler, and the first thing that is not finite."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn
from torch.autograd import DeviceType
from torch.autograd.profiler_util import EventList

from gpt.errors import TrainingError

WAIT, WARM_UP, RECORDED = 1, 2, 3  # steps; the first ones allocate and compile


@contextmanager
def profiled(run_dir: Path, enabled: bool) -> Iterator[Callable[[], None]]:
    """Record some steps; gives a function to call after each. Writes profile.json (a trace) and profile.txt."""
    if not enabled:
        yield lambda: None
        return

    def write(profiler: torch.profiler.profile) -> None:
        profiler.export_chrome_trace(str(run_dir / "profile.json"))
        sort_by = "self_cuda_time_total" if torch.cuda.is_available() else "self_cpu_time_total"
        table = profiler.key_averages().table(sort_by=sort_by, row_limit=40, max_name_column_width=60)
        share = communication_share(profiler.events())
        (run_dir / "profile.txt").write_text(f"{share:.1%} of these steps had a collective under way\n{table}\n")

    schedule = torch.profiler.schedule(wait=WAIT, warmup=WARM_UP, active=RECORDED, repeat=1)
    with torch.profiler.profile(schedule=schedule, on_trace_ready=write, profile_memory=True) as profiler:
        yield profiler.step


def communication_share(events: EventList) -> float:
    """Share of the recorded steps with a collective (gloo's or nccl's) under way, be it beside other work or waiting
    for a slower rank."""
    steps = [event.time_range for event in events if event.name.startswith("ProfilerStep")]
    communicating = sorted(
        (event.time_range.start, event.time_range.end)
        for event in events
        if event.name.startswith("gloo:") or (event.device_type == DeviceType.CUDA and "nccl" in event.name.lower())
    )
    seconds, until = 0.0, -math.inf
    for begin, end in communicating:  # several at a time count once
        seconds += max(0.0, end - max(begin, until))
        until = max(until, end)
    return seconds / (max(step.end for step in steps) - min(step.start for step in steps))


@contextmanager
def finite(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Raises TrainingError at the first module whose output, or operation whose gradient, is not finite."""
    if not enabled:
        yield
        return

    def check(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if not output.isfinite().all():
                raise TrainingError(f"the output of {name} ({type(module).__name__}) is not finite")

        return hook

    hooks = [module.register_forward_hook(check(name)) for name, module in model.named_modules() if name]
    try:
        with torch.autograd.set_detect_anomaly(True):
            yield
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        raise TrainingError(f"a gradient is not finite: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()
