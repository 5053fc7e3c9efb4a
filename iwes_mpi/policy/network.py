"""The policy: a multilayer perceptron over one flat parameter vector, with a forward pass that allocates nothing.

Layer by layer the vector holds the weights, shape (inputs, outputs) in row-major order, then the biases, if there are
any. Hidden units are tanh or ReLU, the output is linear. Everything an action depends on is float32; the same compiled
code serves every kind of rollout, so that they agree to the bit.
"""

from typing import Any, Literal, NamedTuple

import numba
import numpy as np
from llvmlite import ir
from numba.core import cgutils, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from iwes_mpi.compiled.jit import kernel

OUTPUT_SCALE = 0.01  # norm of an output unit's initial weights; hidden units have 1 (Salimans et al. 2017)

# tanh(x) ≈ x·P(x²)/Q(x²), fitted here by iteratively reweighted least squares on the relative error over [0, 9];
# evaluated in float32 it is within 4e-7 of tanh, relative. Unlike the library's tanh it vectorizes.
_P = tuple(map(np.float32, (1.0, 0.1338106244802475, 0.0034956298768520355, 2.0609715647879057e-05,
                            1.3355438532869357e-08)))  # fmt: skip
_Q = tuple(map(np.float32, (1.0, 0.4671437740325928, 0.025877144187688828, 0.0003285700804553926,
                            7.776898200972937e-07)))  # fmt: skip
_P0, _P1, _P2, _P3, _P4 = _P
_Q0, _Q1, _Q2, _Q3, _Q4 = _Q
_ZERO = np.float32(0.0)
_ONE = np.float32(1.0)
_NINE = np.float32(9.0)


class Layout(NamedTuple):
    """The shape of a policy's network."""

    sizes: NDArray[np.int64]  # (layers + 1,) observation, hidden …, action
    bias: bool = True  # whether units have biases
    relu: bool = False  # whether hidden units are max(0, x), not tanh

    @property
    def n_parameters(self) -> int:
        """Length d of the parameter vector."""
        return int(np.sum((self.sizes[:-1] + self.bias) * self.sizes[1:]))

    @property
    def obs_size(self) -> int:
        """Numbers in an observation."""
        return int(self.sizes[0])

    @property
    def action_size(self) -> int:
        """Numbers that the network puts out."""
        return int(self.sizes[-1])

    def initial_parameters(self, rng: np.random.Generator) -> NDArray[np.float64]:
        """Parameters (d,) as the reference ES code draws them.

        Each unit's incoming weights are Gaussian, scaled to norm 1 (hidden) or 0.01 (output); biases are 0.
        """
        parts = []
        last = len(self.sizes) - 2
        for layer, (inputs, outputs) in enumerate(zip(self.sizes[:-1], self.sizes[1:], strict=True)):
            weights = rng.standard_normal((inputs, outputs))
            weights *= (OUTPUT_SCALE if layer == last else 1.0) / np.sqrt(np.sum(weights * weights, axis=0))
            parts += [weights.ravel(), np.zeros(outputs if self.bias else 0)]
        return np.concatenate(parts)

    def scratch(self) -> NDArray[np.float32]:
        """Working memory for `forward`: two layers' activations, float32 (2, widest layer)."""
        return np.zeros((2, int(self.sizes.max())), dtype=np.float32)


def layout(
    obs_size: int, hidden_sizes: tuple[int, ...], action_size: int, bias: bool = True,
    activation: Literal["tanh", "relu"] = "tanh",
) -> Layout:  # fmt: skip
    """The network from `obs_size` inputs through the hidden layers to `action_size` outputs."""
    return Layout(np.array([obs_size, *hidden_sizes, action_size], dtype=np.int64), bias, activation == "relu")


def empty_parameters(n: int) -> NDArray[np.float32]:
    """An uninitialized parameter vector (n,) aligned so that no vector load straddles two cache lines.

    Any float32 vector will do for `forward`; with this one, layers of 64 units were measured up to twice as fast.
    """
    memory = np.empty(4 * n + 64, dtype=np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + 4 * n].view(np.float32)


@kernel
def _tanh(scratch, row, n):
    """tanh of the first n numbers of a row, float32, in place."""
    values = scratch[row]
    for j in range(n):
        x = min(_NINE, max(-_NINE, values[j]))
        t = x * x
        p = (((_P4 * t + _P3) * t + _P2) * t + _P1) * t + _P0
        q = (((_Q4 * t + _Q3) * t + _Q2) * t + _Q1) * t + _Q0
        values[j] = min(_ONE, max(-_ONE, x * p / q))


@kernel
def _relu(scratch, row, n):
    """max(0, x) of the first n numbers of a row, float32, in place."""
    values = scratch[row]
    for j in range(n):
        values[j] = max(_ZERO, values[j])


_LANES = 16  # float32 numbers of a vector instruction; where the CPU's are narrower, the compiler takes several
_FLOAT = ir.FloatType()
_INT = ir.IntType(64)
_VECTOR = ir.VectorType(_FLOAT, _LANES)


def _splat(builder: ir.IRBuilder, value: Any) -> Any:
    """A vector of equal lanes."""
    kind = ir.VectorType(value.type, _LANES)
    undefined = ir.Constant(kind, ir.Undefined)
    first = builder.insert_element(undefined, value, ir.Constant(ir.IntType(32), 0))
    return builder.shuffle_vector(first, undefined, ir.Constant(ir.VectorType(ir.IntType(32), _LANES), [0] * _LANES))


def _block(vectors: int, ways: int, partial: bool = False) -> Any:
    """An intrinsic that computes a block of columns of an affine layer with all its sums in registers.

    LLVM's own vectorizer runs over the columns inside the loop over the inputs, and loads and stores y for every few
    inputs; that was measured two to four times slower.

    Parameters
    ----------
    vectors : int
        Width of the block: 16·vectors columns.
    ways : int
        Inputs that enter separate sums, a power of two: a sum must wait for the one before.
    partial : bool
        Whether the block has fewer than 16 columns (then vectors is 1): lanes beyond the last are not touched.

    Returns
    -------
    callable
        ``block(theta, offset, inputs, outputs, has_bias, scratch, source, first)`` computes the columns from `first`
        on; arguments as in `_affine`.
    """

    @intrinsic
    def block(
        typingctx: Any, theta: Any, offset: Any, inputs: Any, outputs: Any, has_bias: Any, scratch: Any, source: Any,
        first: Any,
    ):  # fmt: skip
        size = types.intp
        return types.void(theta, size, size, size, types.boolean, scratch, size, size), codegen

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        _, offset, inputs, outputs, has_bias, _, source, first = args
        parameters, values = (
            cgutils.create_struct_proxy(signature.args[k])(context, builder, value=args[k]) for k in (0, 5)
        )
        row = builder.extract_value(values.shape, 1)
        x = builder.gep(values.data, [builder.mul(row, source)])
        y = builder.gep(values.data, [builder.mul(row, builder.sub(ir.Constant(_INT, 1), source))])
        weights = builder.gep(parameters.data, [offset])
        bias = builder.gep(weights, [builder.mul(inputs, outputs)])
        lanes = ir.Constant(ir.VectorType(_INT, _LANES), list(range(_LANES)))
        mask = builder.icmp_signed("<", lanes, _splat(builder, builder.sub(outputs, first))) if partial else None
        zeros = ir.Constant(_VECTOR, [0.0] * _LANES)
        bytes_aligned = ir.Constant(ir.IntType(32), 4)

        def call(name: str, result: Any, *arguments: Any) -> Any:
            kind = ir.FunctionType(result, [argument.type for argument in arguments])
            return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), arguments)

        def place(numbers: Any, column: Any, vector: int) -> Any:
            start = builder.add(column, ir.Constant(_INT, vector * _LANES))
            return builder.bitcast(builder.gep(numbers, [start]), ir.PointerType(_VECTOR))

        def load(numbers: Any, column: Any, vector: int) -> Any:
            where = place(numbers, column, vector)
            if partial:
                return call("llvm.masked.load.v16f32.p0", _VECTOR, where, bytes_aligned, mask, zeros)
            return builder.load(where, align=4)

        sums = [[cgutils.alloca_once_value(builder, zeros) for _ in range(vectors)] for _ in range(ways)]
        with builder.if_then(has_bias):  # where there are none, theta may end here
            for v in range(vectors):
                builder.store(load(bias, first, v), sums[0][v])

        def add_input(i: Any, way: int) -> None:
            value = _splat(builder, builder.load(builder.gep(x, [i])))
            column = builder.add(builder.mul(i, outputs), first)
            for v, total in enumerate(sums[way]):
                product = call("llvm.fmuladd.v16f32", _VECTOR, value, load(weights, column, v), builder.load(total))
                builder.store(product, total)

        one, step = ir.Constant(_INT, 1), ir.Constant(_INT, ways)
        whole = builder.sub(inputs, builder.srem(inputs, step))
        with cgutils.for_range_slice(builder, ir.Constant(_INT, 0), whole, step, _INT) as (i, _):
            for way in range(ways):
                add_input(builder.add(i, ir.Constant(_INT, way)), way)
        with cgutils.for_range_slice(builder, whole, inputs, one, _INT) as (i, _):
            add_input(i, 0)
        for v in range(vectors):
            parts = [builder.load(way[v]) for way in sums]
            while len(parts) > 1:
                parts = [builder.fadd(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
            if partial:
                call("llvm.masked.store.v16f32.p0", ir.VoidType(), parts[0], place(y, first, v), bytes_aligned, mask)
            else:
                builder.store(parts[0], place(y, first, v), align=4)
        return context.get_dummy_value()

    return block


_columns_128 = _block(8, 1)
_columns_64 = _block(4, 2)
_columns_16 = _block(1, 8)
_columns_rest = _block(1, 8, partial=True)


@kernel
def _affine(theta, offset, inputs, outputs, has_bias, scratch, source):
    """The affine part of a layer: row 1 − `source` of scratch becomes bias + (row `source`)ᵀ·weights.

    The layer's weights (inputs, outputs) start at `offset` of theta, its bias follows, if it has one. Offsets, not
    slices, since counting references to the slices was measured to take as long as a layer of 64 units. In blocks of
    columns, each as wide as there are columns left; every weight is read once.
    """
    j = 0
    while outputs - j >= 128:
        _columns_128(theta, offset, inputs, outputs, has_bias, scratch, source, j)
        j += 128
    if outputs - j >= 64:
        _columns_64(theta, offset, inputs, outputs, has_bias, scratch, source, j)
        j += 64
    while outputs - j >= 16:
        _columns_16(theta, offset, inputs, outputs, has_bias, scratch, source, j)
        j += 16
    if j < outputs:
        _columns_rest(theta, offset, inputs, outputs, has_bias, scratch, source, j)


@kernel
def _whiten(obs, normalizer, clip, out):
    """`normalize` with a whitening matrix, which is symmetric: out = clip(matrix·(obs − mean)).

    Row by row of the matrix, so that every sum is in the order of the observations, whatever surrounds this code; in
    float32, which was measured more than twice as fast as registers of float64.
    """
    size = obs.shape[0]
    finite = True
    for i in range(size):
        finite &= np.isfinite(obs[i])
        out[i] = np.float32(0.0)
    for j in range(size):
        deviation = obs[j] - normalizer[0, j]
        for i in range(size):
            out[i] += np.float32(deviation * normalizer[1 + j, i])
    for i in range(size):
        out[i] = np.float32(min(clip, max(-clip, out[i])))
    return finite


@kernel
def normalize(obs, normalizer, clip, out):
    """out = clip((obs − mean) / deviation) as float32, or whitened; returns whether every observation is finite.

    Parameters
    ----------
    obs : float64 (obs_size,)
    normalizer : float64 (2, obs_size) or (1 + obs_size, obs_size)
        Mean and inverse standard deviation, or mean and whitening matrix.
    clip : float
    out : float32 (obs_size,)
    """
    if normalizer.shape[0] > 2:
        return _whiten(obs, normalizer, clip, out)
    finite = True
    for j in range(obs.shape[0]):
        finite &= np.isfinite(obs[j])
        out[j] = np.float32(min(clip, max(-clip, (obs[j] - normalizer[0, j]) * normalizer[1, j])))
    return finite


@kernel
def forward(layout, theta, scratch, out):
    """The network's output for the normalized observation in ``scratch[0]``.

    Parameters
    ----------
    layout : Layout
    theta : float32 (d,)
    scratch : float32 (2, widest layer)
        From `Layout.scratch`; overwritten.
    out : float32 (action_size,)
    """
    sizes = layout.sizes
    offset = 0
    layers = sizes.shape[0] - 1
    for layer in range(layers):
        inputs, outputs = sizes[layer], sizes[layer + 1]
        source = layer % 2
        _affine(theta, offset, inputs, outputs, layout.bias, scratch, source)
        if layer < layers - 1:
            if layout.relu:
                _relu(scratch, 1 - source, outputs)
            else:
                _tanh(scratch, 1 - source, outputs)
        offset += (inputs + 1 if layout.bias else inputs) * outputs
    for j in range(sizes[layers]):
        out[j] = scratch[layers % 2, j]


@kernel
def act(layout, theta, normalizer, clip, scratch, obs, out):
    """The policy's action before noise and bounds; returns whether the observation was finite.

    Arguments as in `normalize` and `forward`; ``out`` float32 (action_size,) is filled.
    """
    finite = normalize(obs, normalizer, clip, scratch[0])
    if finite:
        forward(layout, theta, scratch, out)
    return finite


def compiled_act(layout: Layout) -> Any:
    """The machine code of `act` for a network, to be called from Python.

    A call of `act` itself looks for it by the types of all arguments each time, which takes some 4 µs more with a
    layout among them. This takes arguments of just these types, contiguous; nothing else is noticed.
    """
    floats, numbers = numba.float32, numba.float64
    return act.compile(
        (numba.typeof(layout), floats[::1], numbers[:, ::1], numbers, floats[:, ::1], numbers[::1], floats[::1])
    )


@kernel
def add_noise(rng, scale, low, high, action):
    """Add Gaussian noise of deviation `scale` to a float32 action and clip it to its bounds, in place."""
    for j in range(action.shape[0]):
        noisy = action[j] + np.float32(scale * rng.standard_normal()) if scale > 0.0 else action[j]
        action[j] = min(high[j], max(low[j], noisy))
