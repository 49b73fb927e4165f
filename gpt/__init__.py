"""gptlab from Python, in a notebook for instance; docs/python.md shows it.

``load_run(DIR)`` reads a run and its models, ``load_model(SOURCE)`` weights from elsewhere, and ``open_tokens(PATH)`` a
token file; all refuse with ``InputError``.
Importing the package loads nothing: a name loads its module, and torch if it needs it, when it is first used.
"""

TYPE_CHECKING = False  # as in typing, whose import would take longer than all of this
if TYPE_CHECKING:
    from gpt.errors import InputError
    from gpt.notebook.dataset import open_tokens
    from gpt.notebook.model import load_model
    from gpt.notebook.run import load_run

__all__ = ["InputError", "load_model", "load_run", "open_tokens"]
_MODULES = {
    "InputError": "gpt.errors",
    "load_model": "gpt.notebook.model",
    "load_run": "gpt.notebook.run",
    "open_tokens": "gpt.notebook.dataset",
}


def __getattr__(name: str) -> object:
    """Import a name of the package when it is first used (PEP 562)."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    # Kept, so that Python finds it without this function from then on.
    value = getattr(importlib.import_module(_MODULES[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
