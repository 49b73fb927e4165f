"""Compose what most commands compose, in the process that they are forked from, and take its objects out of gc's way."""

import gc

import composed_before  # noqa: F401

from gpt.cli.compose import compose

for overrides in ([], ["data=text"]):
    compose(overrides)
gc.collect()
gc.freeze()
