"""`evaluate`: likelihoods, measured and stored."""
