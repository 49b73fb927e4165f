"""Fingerprints of what all ranks must have in common."""

import shutil

import pytest

from gpt.cluster import rank
from gpt.cluster.rank import _fingerprints
from gpt.files import ROOT


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A copy of the project's code, of which fingerprints are taken."""
    ignored = shutil.ignore_patterns("__pycache__", "cache")
    for name in ("gpt", "data", "hydra_plugins"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    shutil.copy(ROOT / "train.py", tmp_path)
    monkeypatch.setattr(rank, "ROOT", tmp_path)
    return tmp_path


def code():
    from gpt.cli.compose import compose

    return _fingerprints(compose([]), "a text")["code"]


@pytest.mark.slow
def test_a_changed_byte_of_any_code_of_a_run_changes_its_fingerprint(project):
    before = code()
    files = [project / "train.py"]
    for name in ("gpt", "data", "hydra_plugins"):
        inside = sorted((project / name).rglob("*.py"))
        deepest = max(inside, key=lambda path: len(path.parts))
        files += [inside[0], inside[-1], deepest]
    for path in files:
        content = path.read_bytes()
        path.write_bytes(content + b"\n")
        assert code() != before, path
        path.write_bytes(content)
        assert code() == before


def test_a_moved_file_of_code_changes_the_fingerprint(project):
    before = code()
    (project / "data" / "sources" / "text.py").rename(project / "data" / "sources" / "texts.py")
    assert code() != before


@pytest.mark.parametrize(
    "name", ["gpt/__pycache__/model.pyc", "tests/test_model.py", "eval.py", "data/cache/text/a.py"]
)
def test_what_is_no_code_of_a_run_does_not_change_the_fingerprint(project, name):
    before = code()
    path = project / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"1")
    assert code() == before
