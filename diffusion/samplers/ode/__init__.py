"""Deterministic samplers: solvers of the probability-flow ODE."""
