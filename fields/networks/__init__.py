"""Maps of features to features: small fully connected networks."""

from .mlp import MLP as MLP
