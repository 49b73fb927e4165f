"""What a signal does to a command that has no step to finish."""

import importlib
import time

import pytest

from gpt.signals import ending_at_once


def test_a_signal_during_an_import_waits_for_its_end(tmp_path, monkeypatch):
    """An exception inside the imports of torch aborts the process, or is swallowed."""
    signalled = (
        "import os, signal\nos.kill(os.getpid(), signal.SIGTERM)\nfor _ in range(1000):\n    pass\nis_whole = True\n"
    )
    (tmp_path / "signalled_here.py").write_text(signalled)
    monkeypatch.syspath_prepend(tmp_path)
    imported = []
    with pytest.raises(KeyboardInterrupt), ending_at_once():
        imported.append(importlib.import_module("signalled_here"))
        time.sleep(30)
    assert imported[0].is_whole
