"""Model-free numerics: keyed randomness, Brownian paths, broadcasting, nearest neighbours, Runge-Kutta steps."""
