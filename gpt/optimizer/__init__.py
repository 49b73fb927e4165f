"""Optimizers: groups of parameters, Muon, classes of others, and averages of weights."""
