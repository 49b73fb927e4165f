"""The environment variables that torch reads when it is loaded, and the values that every command gives them."""

import os

DEFAULTS = {
    # Pages of 2 MB where a tensor fills them (Linux, CPU): touching new memory costs half.
    "THP_MEM_ALLOC_ENABLE": "1",
    # Threads sleep while they wait for work. By default they spin, and take the cores from other commands.
    "OMP_WAIT_POLICY": "PASSIVE",
}


def set_environment() -> None:
    """Set the variables that the user has not set. To be called before torch is imported."""
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def as_shell() -> list[str]:
    """Return the lines of a shell script that do the same."""
    return [f'export {name}="${{{name}:-{value}}}"' for name, value in DEFAULTS.items()]
