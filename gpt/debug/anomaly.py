"""Numbers that are not finite: the error that ends a run, and the first module that has them (debug=anomaly)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import nn

from gpt.checkpoint.files import latest_checkpoint, resume_hint
from gpt.errors import NotFinite


@contextmanager
def detect_anomaly(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Raise NotFinite at the first module whose output, or operation whose gradient, is not finite."""
    if not enabled:
        yield
        return

    def check(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor | tuple[torch.Tensor, ...]) -> None:
            outputs = output if isinstance(output, tuple) else (output,)
            if not all(tensor.isfinite().all() for tensor in outputs):
                raise NotFinite(f"the output of {name} ({type(module).__name__}) is not finite")

        return hook

    # Hooks look at what goes forward, torch's own detection at what comes back.
    hooks = []
    for name, module in model.named_modules():
        if name:
            hooks.append(module.register_forward_hook(check(name)))
    try:
        with torch.autograd.set_detect_anomaly(True):
            yield
    except RuntimeError as error:
        if "returned nan values" not in str(error):
            raise
        raise NotFinite(f"a gradient is not finite: {error}") from error
    finally:
        for hook in hooks:
            hook.remove()


def not_finite(what: str, step: int, run_dir: Path) -> NotFinite:
    """Return the error of a run that has left the finite numbers, with what may help."""
    advice = "a lower optimizer.lr or a longer warm-up may help"
    if latest_checkpoint(run_dir) is None:
        cure = "nothing had been saved yet, and from the beginning it would end like this again\n"
        cure += f"  {advice}; debug=anomaly names the first module that is not finite"
    else:
        cure = f"{resume_hint(run_dir)}\n"
        cure += f"  debug=anomaly there names the first module that is not finite; {advice}"
    return NotFinite(f"step {step}: {what}\n  {cure}")
