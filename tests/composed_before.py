"""Composing the same options again takes a third of the time: Hydra's part that depends on options alone is kept.

Which files a choice of options reads, and what they hold together, are a function of the files and of the choice. Hydra
reads, copies and merges some thirty of them each time; here it does so once in a process for each choice. Keys that are
overridden are applied, and the result is checked, as ever. Importing this module turns it on.
"""

import copy
from collections.abc import Hashable
from pathlib import Path

from hydra._internal import defaults_list
from hydra._internal.config_loader_impl import ConfigLoaderImpl

from gpt.config.groups import CONF

_compose = ConfigLoaderImpl._compose_config_from_defaults_list
_list = defaults_list._create_defaults_list
_composed: dict[Hashable, object] = {}
_lists: dict[Hashable, tuple] = {}
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
        _composed[key] = _compose(self, defaults, repo)
    return copy.deepcopy(_composed[key])


def _listed_before(repo, config_name, overrides, prepend_hydra, skip_missing):
    sources = _sources(repo)
    if overrides.append_group_defaults or overrides.deletions:
        return _list(repo, config_name, overrides, prepend_hydra, skip_missing)
    key = (sources, config_name, repr(overrides.override_choices), prepend_hydra, skip_missing)
    if key not in _lists:
        listed = _list(repo, config_name, overrides, prepend_hydra, skip_missing)
        learnt = {name: getattr(overrides, name) for name in _LEARNT}
        _lists[key] = copy.deepcopy((listed, learnt))
    listed, learnt = copy.deepcopy(_lists[key])
    for name, value in learnt.items():
        setattr(overrides, name, value)
    return listed


ConfigLoaderImpl._compose_config_from_defaults_list = _composed_before
defaults_list._create_defaults_list = _listed_before
