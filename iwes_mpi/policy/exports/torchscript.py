"""A TorchScript module from observations, float64 (n, obs_size), to actions: float32 (n, action_size) or int64 (n,)."""

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from iwes_mpi.policy.policy import Policy

SUFFIX, NEEDS, EXTRA = ".pt", ("torch",), "torch"


def _module(policy: Policy) -> Any:
    """The policy as a module of PyTorch."""
    import torch

    def constant(values: Any) -> Any:
        return torch.nn.Parameter(torch.from_numpy(np.array(values)), requires_grad=False)

    class Network(torch.nn.Module):  # type: ignore[misc,name-defined,unused-ignore]  # torch may be absent
        def __init__(self) -> None:
            super().__init__()
            self.mean, rest = constant(policy.normalizer[0]), policy.normalizer[1:]
            self.scale = constant(rest[0] if len(rest) == 1 else rest)
            self.weights = torch.nn.ParameterList([constant(weights) for weights, _ in policy.layers()])
            self.biases = torch.nn.ParameterList([constant(b) for _, b in policy.layers() if b is not None])
            self.low, self.high = constant(policy.actions.low), constant(policy.actions.high)

        def forward(self, observation: Any) -> Any:
            x = observation - self.mean
            x = x * self.scale if self.scale.ndim == 1 else x @ self.scale
            x = x.clamp(-policy.obs_clip, policy.obs_clip).float()
            for number, weights in enumerate(self.weights):
                x = x @ weights
                if policy.layout.bias:
                    x = x + self.biases[number]
                if number < len(self.weights) - 1:
                    x = x.relu() if policy.layout.relu else x.tanh()
            if policy.actions.start is not None:
                return x.argmax(1) + policy.actions.start
            return x.maximum(self.low).minimum(self.high)

    return Network()


def write(policy: Policy, path: Path) -> None:
    """Write the module."""
    import torch

    example = torch.zeros(2, policy.layout.obs_size, dtype=torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer versions of PyTorch advise torch.export, which needs Python to run
        torch.jit.save(torch.jit.trace(_module(policy).eval(), example), str(path))


def reader(path: Path) -> Callable[..., Any]:
    """What acts from the file, by PyTorch."""
    import torch

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        module = torch.jit.load(str(path))
    return lambda obs: module(torch.from_numpy(obs)).numpy()
