"""Train diffusion models, sample from them with any solver, and measure likelihoods that can be trusted."""
