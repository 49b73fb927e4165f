"""The environment variables that torch reads when it is loaded, and the values that every command gives them."""

import os

DEFAULTS = {
    # Pages of 2 MB where a tensor fills them (Linux, CPU): touching new memory costs half.
    "THP_MEM_ALLOC_ENABLE": "1",
    # Threads sleep while they wait for work. By default they spin, and take the cores from other commands.
    "OMP_WAIT_POLICY": "PASSIVE",
}
# With that policy, libgomp's threads first look so many times for work: some microseconds. To sleep at once would cost
# a command alone a quarter of its speed; more looks take the cores from others again (benchmarks/side_by_side.py).
SPIN_COUNT = "1000"


def set_environment() -> None:
    """Set the variables that the user has not set. To be called before torch is imported."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", SPIN_COUNT)
    for name, value in DEFAULTS.items():
        os.environ.setdefault(name, value)


def as_shell() -> list[str]:
    """Return the lines of a shell script that do the same."""
    lines = [f'[ -n "${{OMP_WAIT_POLICY:-}}" ] || export GOMP_SPINCOUNT="${{GOMP_SPINCOUNT:-{SPIN_COUNT}}}"']
    for name, value in DEFAULTS.items():
        lines.append(f'export {name}="${{{name}:-{value}}}"')
    return lines
