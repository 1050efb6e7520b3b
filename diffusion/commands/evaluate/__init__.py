"""`evaluate`: likelihoods, measured and kept."""
