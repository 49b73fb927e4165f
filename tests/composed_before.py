"""Composing the same options again takes a fifth of the time: Hydra's part that depends on options alone is kept.

Which files a choice of options reads, what they hold together, and whether they ask for a sweep, are a function of the
files and of the choice. Hydra reads, copies and merges some thirty of them each time, and all of it twice; here it does
so once in a process for each choice. Keys that are overridden are applied, and the result is checked, as ever.
Importing this module turns it on.
"""

import copy
import itertools
import pickle  # copies a config in an eighth of copy.deepcopy's time
from collections.abc import Hashable
from pathlib import Path

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.config_repository import CachingConfigRepository
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra.core.plugins import Plugins

from gpt.config.groups import CONF, GROUPS

Plugins.instance()  # registers the source of files
_File = SourcesRegistry.instance().resolve("file")
_read = _File.load_config
_mode = Hydra.get_mode
_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_list = defaults_list._create_defaults_list
_files: dict[Hashable, bytes] = {}
_modes: dict[Hashable, object] = {}
_composed: dict[Hashable, bytes] = {}
_lists: dict[Hashable, bytes] = {}
# What listing the files learns about the choices.
_LEARNT = ("override_choices", "override_metadata", "known_choices", "known_choices_per_group")


def _sources(repository) -> tuple:
    """Where the files are, and, of those that a test may have written, their content."""
    sources = [(source.provider, source.scheme(), source.path) for source in repository.get_sources()]
    others = [Path(path) for _, scheme, path in sources if scheme == "file" and path != str(CONF)]
    texts = [(str(path), path.read_bytes()) for other in others for path in sorted(other.rglob("*.yaml"))]
    return (*sources, *texts)


def _composed_before(self, defaults, repo):
    sources = _sources(repo)
    key = (sources, repr(defaults))
    if key not in _composed:
        _composed[key] = pickle.dumps(_compose(self, defaults, repo))
    return pickle.loads(_composed[key])


def _listed_before(repo, config_name, overrides, prepend_hydra, skip_missing):
    sources = _sources(repo)
    if overrides.append_group_defaults or overrides.deletions:
        return _list(repo, config_name, overrides, prepend_hydra, skip_missing)
    key = (sources, config_name, repr(overrides.override_choices), prepend_hydra, skip_missing)
    if key not in _lists:
        listed = _list(repo, config_name, overrides, prepend_hydra, skip_missing)
        learnt = {name: getattr(overrides, name) for name in _LEARNT}
        _lists[key] = pickle.dumps((listed, learnt))
    listed, learnt = pickle.loads(_lists[key])
    for name, value in learnt.items():
        setattr(overrides, name, value)
    return listed


def _read_before(self, config_path):
    path = Path(self.path, self._normalize_file_name(config_path))
    about = path.stat()
    key = (self.provider, path, about.st_mtime_ns, about.st_size)
    if key not in _files:
        _files[key] = pickle.dumps(_read(self, config_path))
    return pickle.loads(_files[key])


def _not_copied_deeply(self, delegate):
    """The places of files are listed anew in the copy; nothing in them changes."""
    self.delegate = copy.copy(delegate)
    self.cache = {}


def _mode_before(self, config_name, overrides):
    """Options tell whether a command is a sweep, hydra.mode too; other keys do not."""
    names = [override.lstrip("+~").partition("=")[0] for override in overrides]
    counts = [name in GROUPS or name.startswith(("hydra/", "hydra.mode", "hydra.searchpath")) for name in names]
    chosen = itertools.compress(overrides, counts)
    key = (_sources(self.config_loader.repository), config_name, *chosen)
    if key not in _modes:
        _modes[key] = _mode(self, config_name, overrides)
    return _modes[key]


CachingConfigRepository.__init__ = _not_copied_deeply
_File.load_config = _read_before
Hydra.get_mode = _mode_before
ConfigLoaderImpl._compose_config_from_defaults_list = _composed_before
defaults_list._create_defaults_list = _listed_before
