"""Numbers without models: keyed randomness, Brownian paths, broadcasting, neighbours, Runge-Kutta steps."""
