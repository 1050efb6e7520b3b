"""`doctor`: every sampler and estimator against exact models."""
