"""Stochastic samplers: solvers of the reverse SDE."""
