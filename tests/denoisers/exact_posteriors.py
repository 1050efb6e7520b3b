"""The exact answers of linear inverse problems on exact data: Bayes' rule by dense matrices, float64."""

import math

import torch
from laws import F64
from torch import Tensor


def dense(operator, shape) -> Tensor:
    """The matrix of an operator, (M, D), column by column."""
    basis = torch.eye(math.prod(shape), dtype=F64).reshape(-1, *shape)
    return operator(basis).flatten(1).T


def mixture_posterior(means, stds, weights, a, y, noise_std):
    """p(x | y) for x ~ sum_k w_k N(m_k, c_k^2 I), y = A x + s n: weights (K,), means (K, D), covariances (K, D, D)."""
    log_weights, centres, covariances = [], [], []
    for mean, std, weight in zip(means.flatten(1), stds, weights, strict=True):
        prior = std**2 * torch.eye(len(mean), dtype=F64)
        inner = a @ prior @ a.T + noise_std**2 * torch.eye(len(a), dtype=F64)
        gain = torch.linalg.solve(inner, a @ prior).T
        centres.append(mean + gain @ (y - a @ mean))
        covariances.append(prior - gain @ a @ prior)
        law = torch.distributions.MultivariateNormal(a @ mean, inner)
        log_weights.append(weight.log() + law.log_prob(y))
    return torch.stack(log_weights).softmax(0), torch.stack(centres), torch.stack(covariances)


def mixture_posterior_mean(mixture, x_t, alpha, sigma, a, y, noise_std) -> Tensor:
    """E[x | x_t, y] at one time: x_t and y are two observations of x; their precisions add up."""
    flat, eye = x_t.flatten(1), torch.eye(x_t[0].numel(), dtype=F64)
    shares, answers = [], []
    for mean, std, weight in zip(mixture.means.flatten(1), mixture.stds, mixture.weights, strict=True):
        # what y says of the component comes first: N(centre, covariance), and how likely it makes y
        covariance = torch.linalg.inv(eye / std**2 + a.T @ a / noise_std**2)
        centre = covariance @ (mean / std**2 + a.T @ y / noise_std**2)
        inner = std**2 * a @ a.T + noise_std**2 * torch.eye(len(a), dtype=F64)
        likely = torch.distributions.MultivariateNormal(a @ mean, inner).log_prob(y)
        law = torch.distributions.MultivariateNormal(alpha * centre, alpha**2 * covariance + sigma**2 * eye)
        gain = alpha * covariance @ torch.linalg.inv(law.covariance_matrix)
        shares.append(weight.log() + likely + law.log_prob(flat))
        answers.append(centre + (flat - alpha * centre) @ gain.T)
    return torch.einsum("kb,kbd->bd", torch.stack(shares).softmax(0), torch.stack(answers)).reshape(x_t.shape)
