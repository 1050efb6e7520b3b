"""A default that can be told from the same word given on purpose."""

from __future__ import annotations


class Default(str):
    """The default of an argument that each family of models has its own for; equal to the word it holds.

    `sample(model, n, sampler=Default("ode"))` lets a model that knows no samplers draw in its own way, while
    `sampler="ode"`, asked for by the user, is still refused there.
    """

    __slots__ = ()
