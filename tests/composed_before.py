"""Composing the same options again takes a fifth of the time: Hydra's part that depends on options alone is kept.

Which files a choice of options reads, what they hold together, and whether they ask for a sweep, are a function of the
files and of the choice. Hydra reads, copies and merges some thirty of them each time, and all of it twice; here it does
so once in a session for each choice. Keys that are overridden are applied, and the result is checked, as ever; that the
same values have passed the checks is kept too. Importing this module turns it on.
"""

import contextlib
import copy
import hashlib
import itertools
import os
import pickle  # copies a config in an eighth of copy.deepcopy's time
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins
from warm import COMPOSED

from gpt.config import load
from gpt.config.groups import CONF, GROUPS

# What listing the files learns about the choices.
_LEARNT = ("override_choices", "override_metadata", "known_choices", "known_choices_per_group")

Plugins.instance()  # registers the source of files
_File = SourcesRegistry.instance().resolve("file")
_read = _File.load_config
_mode = Hydra.get_mode
_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_list = defaults_list._create_defaults_list
_map = defaults_list._create_interpolation_map
_typed = load._typed
_directory = os.environ.get(COMPOSED)
_kept: dict[str, bytes] = {}


def _once(kind: str, key: tuple, make: Callable[[], Any]) -> Any:
    """What ``make()`` returned for this key when a process of the session first asked: a copy for whoever asks."""
    name = hashlib.sha256(repr((kind, key)).encode()).hexdigest()
    if name not in _kept:
        path = Path(_directory, name) if _directory else None
        if path and path.exists():
            _kept[name] = path.read_bytes()
        else:
            _kept[name] = pickle.dumps(make())
            if path:
                _write(path, _kept[name])
    return pickle.loads(_kept[name])


def _write(path: Path, content: bytes) -> None:
    """Write a file for other processes, whole or not at all."""
    unfinished = path.with_name(f"{path.name}.{os.getpid()}")
    with contextlib.suppress(OSError):  # a test may limit the size of files
        unfinished.write_bytes(content)
        unfinished.rename(path)


def _sources(repository) -> tuple:
    """Where the files are, and, of those that a test may have written, their content."""
    sources = [(source.provider, source.scheme(), source.path) for source in repository.get_sources()]
    others = [Path(path) for _, scheme, path in sources if scheme == "file" and path != str(CONF)]
    texts = [(str(path), path.read_bytes()) for other in others for path in sorted(other.rglob("*.yaml"))]
    return (*sources, *texts)


def _composed_before(self, defaults, repo):
    return _once("composed", (_sources(repo), defaults), lambda: _compose(self, defaults, repo))


def _listed_before(repo, config_name, overrides, prepend_hydra, skip_missing):
    if overrides.append_group_defaults or overrides.deletions:
        return _list(repo, config_name, overrides, prepend_hydra, skip_missing)

    def listed():
        defaults = _list(repo, config_name, overrides, prepend_hydra, skip_missing)
        return defaults, {name: getattr(overrides, name) for name in _LEARNT}

    key = (_sources(repo), config_name, overrides.override_choices, prepend_hydra, skip_missing)
    defaults, learnt = _once("listed", key, listed)
    for name, value in learnt.items():
        setattr(overrides, name, value)
    return defaults


def _mapped_if_needed(overrides, listed, self_added):
    """The values for ${…} in a list of defaults, where one is there."""
    is_needed = any(default.is_interpolation() for default in listed if not default.is_self())
    return _map(overrides, listed, self_added) if is_needed else None


def _read_before(self, config_path):
    path = Path(self.path, self._normalize_file_name(config_path)).absolute()
    about = path.stat()
    key = (self.provider, path, about.st_mtime_ns, about.st_size)
    return _once("read", key, lambda: _read(self, config_path))


def _not_copied_deeply(self, delegate):
    """The places of files are listed anew in the copy; nothing in them changes."""
    self.delegate = copy.copy(delegate)
    self.cache = {}


def _mode_before(self, config_name, overrides):
    """Options tell whether a command is a sweep, hydra.mode too; other keys do not."""
    names = [override.lstrip("+~").partition("=")[0] for override in overrides]
    counts = [name in GROUPS or name.startswith(("hydra/", "hydra.mode", "hydra.searchpath")) for name in names]
    key = (_sources(self.config_loader.repository), config_name, *itertools.compress(overrides, counts))
    return _once("mode", key, lambda: _mode(self, config_name, overrides))


def _typed_before(raw):
    """The values alone decide what is typed, but for the number of ranks, which a resolver of conf/ asks torchrun for.

    A test that changes what gpt/config checks with has values of its own, which no other test composes.
    """
    if re.search(r"\$\{(oc\.|now)", repr(raw)):  # values from outside
        return _typed(raw)
    return _once("typed", (raw, os.environ.get("WORLD_SIZE")), lambda: _typed(raw))


CachingConfigRepository.__init__ = _not_copied_deeply
_File.load_config = _read_before
Hydra.get_mode = _mode_before
ConfigLoaderImpl._compose_config_from_defaults_list = _composed_before
defaults_list._create_defaults_list = _listed_before
defaults_list._create_interpolation_map = _mapped_if_needed
load._typed = _typed_before
