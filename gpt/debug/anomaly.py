"""Detection of the first module or operation that is not finite (debug=anomaly)."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import nn

from gpt.errors import NotFinite


@contextmanager
def detect_anomaly(model: nn.Module, enabled: bool) -> Iterator[None]:
    """Raise NotFinite at the first module whose output, or operation whose gradient, is not finite."""
    if not enabled:
        yield
        return

    def check(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
            if not output.isfinite().all():
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
