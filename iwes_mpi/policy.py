"""The policy: a multilayer perceptron over one flat parameter vector, with a forward pass that allocates nothing.

Layer by layer the vector holds the weights, shape (inputs, outputs) in row-major order, then the biases. Hidden
units are tanh, the output is linear. Everything an action depends on is float32; the same compiled code serves
every kind of rollout, so that they agree to the bit.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from iwes_mpi.jit import kernel

OUTPUT_SCALE = 0.01  # norm of an output unit's initial weights; hidden units have 1 (Salimans et al. 2017)

# tanh(x) ≈ x·P(x²)/Q(x²), fitted here by iteratively reweighted least squares on the relative error over [0, 9];
# evaluated in float32 it is within 4e-7 of tanh, relative. Unlike the library's tanh it vectorises.
_P = tuple(map(np.float32, (1.0, 0.1338106244802475, 0.0034956298768520355, 2.0609715647879057e-05,
                            1.3355438532869357e-08)))  # fmt: skip
_Q = tuple(map(np.float32, (1.0, 0.4671437740325928, 0.025877144187688828, 0.0003285700804553926,
                            7.776898200972937e-07)))  # fmt: skip
_P0, _P1, _P2, _P3, _P4 = _P
_Q0, _Q1, _Q2, _Q3, _Q4 = _Q
_ONE = np.float32(1.0)
_NINE = np.float32(9.0)


class Layout(NamedTuple):
    """The shape of a policy's network."""

    sizes: NDArray[np.int64]  # (layers + 1,) observation, hidden …, action

    @property
    def n_parameters(self) -> int:
        """Length d of the parameter vector."""
        return int(np.sum((self.sizes[:-1] + 1) * self.sizes[1:]))

    def scratch(self) -> NDArray[np.float32]:
        """Working memory for `forward`: two layers' activations, float32 (2, widest layer)."""
        return np.zeros((2, int(self.sizes.max())), dtype=np.float32)


def layout(obs_size: int, hidden_sizes: tuple[int, ...], action_size: int) -> Layout:
    """The network from `obs_size` inputs through the hidden layers to `action_size` outputs."""
    return Layout(np.array([obs_size, *hidden_sizes, action_size], dtype=np.int64))


def initial_parameters(network: Layout, rng: np.random.Generator) -> NDArray[np.float64]:
    """Parameters (d,) as the reference ES code draws them.

    Each unit's incoming weights are Gaussian, scaled to norm 1 (hidden) or 0.01 (output); biases are 0.
    """
    parts = []
    last = len(network.sizes) - 2
    for layer, (inputs, outputs) in enumerate(zip(network.sizes[:-1], network.sizes[1:], strict=True)):
        weights = rng.standard_normal((inputs, outputs))
        weights *= (OUTPUT_SCALE if layer == last else 1.0) / np.sqrt(np.sum(weights * weights, axis=0))
        parts += [weights.ravel(), np.zeros(outputs)]
    return np.concatenate(parts)


@kernel
def _tanh(values):
    """tanh of a float32 vector, in place."""
    for j in range(values.shape[0]):
        x = min(_NINE, max(-_NINE, values[j]))
        t = x * x
        p = (((_P4 * t + _P3) * t + _P2) * t + _P1) * t + _P0
        q = (((_Q4 * t + _Q3) * t + _Q2) * t + _Q1) * t + _Q0
        values[j] = min(_ONE, max(-_ONE, x * p / q))


@kernel
def _affine(weights, bias, x, y):
    """y = bias + xᵀ·weights, float32: (outputs,), (inputs,), (inputs·outputs,) row by row.

    Four inputs a pass, so that y is loaded and stored a quarter as often; vectorised over the outputs.
    """
    inputs, outputs = x.shape[0], y.shape[0]
    for j in range(outputs):
        y[j] = bias[j]
    whole = inputs - inputs % 4
    for i in range(0, whole, 4):
        x0, x1, x2, x3 = x[i], x[i + 1], x[i + 2], x[i + 3]
        w0 = weights[i * outputs : (i + 1) * outputs]
        w1 = weights[(i + 1) * outputs : (i + 2) * outputs]
        w2 = weights[(i + 2) * outputs : (i + 3) * outputs]
        w3 = weights[(i + 3) * outputs : (i + 4) * outputs]
        for j in range(outputs):
            y[j] = x3 * w3[j] + (x2 * w2[j] + (x1 * w1[j] + (x0 * w0[j] + y[j])))
    for i in range(whole, inputs):
        x0 = x[i]
        w0 = weights[i * outputs : (i + 1) * outputs]
        for j in range(outputs):
            y[j] = x0 * w0[j] + y[j]


@kernel
def normalise(obs, normaliser, clip, out):
    """out = clip((obs − mean) / deviation) as float32; returns whether every observation is finite.

    Parameters
    ----------
    obs : float64 (obs_size,)
    normaliser : float64 (2, obs_size)
        Mean and inverse standard deviation.
    clip : float
    out : float32 (obs_size,)
    """
    finite = True
    for j in range(obs.shape[0]):
        finite &= np.isfinite(obs[j])
        out[j] = np.float32(min(clip, max(-clip, (obs[j] - normaliser[0, j]) * normaliser[1, j])))
    return finite


@kernel
def forward(sizes, theta, scratch, out):
    """The network's output for the normalised observation in ``scratch[0]``.

    Parameters
    ----------
    sizes : int64 (layers + 1,)
    theta : float32 (d,)
    scratch : float32 (2, widest layer)
        From `Layout.scratch`; overwritten.
    out : float32 (sizes[-1],)
    """
    offset = 0
    layers = sizes.shape[0] - 1
    for layer in range(layers):
        inputs, outputs = sizes[layer], sizes[layer + 1]
        weights = theta[offset : offset + inputs * outputs]
        bias = theta[offset + inputs * outputs : offset + (inputs + 1) * outputs]
        offset += (inputs + 1) * outputs
        x = scratch[layer % 2, :inputs]
        if layer == layers - 1:
            _affine(weights, bias, x, out)
        else:
            y = scratch[(layer + 1) % 2, :outputs]
            _affine(weights, bias, x, y)
            _tanh(y)


@kernel
def act(sizes, theta, normaliser, clip, scratch, obs, out):
    """The policy's action before noise and bounds; returns whether the observation was finite.

    Arguments as in `normalise` and `forward`; ``out`` float32 (action_size,) is filled.
    """
    finite = normalise(obs, normaliser, clip, scratch[0])
    if finite:
        forward(sizes, theta, scratch, out)
    return finite


@kernel
def add_noise(rng, scale, low, high, action):
    """Add Gaussian noise of deviation `scale` to a float32 action and clip it to its bounds, in place."""
    for j in range(action.shape[0]):
        noisy = action[j] + np.float32(scale * rng.standard_normal()) if scale > 0.0 else action[j]
        action[j] = min(high[j], max(low[j], noisy))
