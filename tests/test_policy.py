"""The policy against a plain float64 network, its parameters, and what it refuses."""

import itertools

import numpy as np
import pytest
import reference

from iwes_mpi.compiled.jit import kernel
from iwes_mpi.method.seeding import Stream, generator
from iwes_mpi.policy import network
from iwes_mpi.rollouts.choose import open_runner
from iwes_mpi.settings.command_line import parse

SHAPES = [(3, (), 2), (1, (1,), 1), (4, (5,), 3), (17, (32, 32), 6), (111, (64, 64), 8), (7, (9, 3, 13), 5)]
IDENTITY = 0.0, 1.0  # mean and inverse deviation


def normalizer(obs_size, mean=0.0, inverse=1.0):
    return np.stack([np.full(obs_size, mean), np.full(obs_size, inverse)])


def act(layout, theta, obs, clip=5.0, norm=None):
    obs = np.asarray(obs, dtype=float)
    out = np.full(int(layout.sizes[-1]), np.nan, dtype=np.float32)
    norm = normalizer(obs.size) if norm is None else norm
    finite = network.act(layout, theta.astype(np.float32), norm, clip, layout.scratch(), obs, out)
    return out, finite


@pytest.mark.parametrize(("obs_size", "hidden", "action_size"), SHAPES)
def test_forward_is_the_network(obs_size, hidden, action_size):
    """Within 1e-5 of float64: rounding to float32, and the approximation of tanh."""
    layout = network.layout(obs_size, hidden, action_size)
    rng = np.random.default_rng(obs_size)
    for scale in (0.1, 1.0, 3.0):
        theta = (rng.standard_normal(layout.n_parameters) * scale / np.sqrt(obs_size)).astype(np.float32)
        for _ in range(5):
            obs = rng.uniform(-5, 5, obs_size).astype(np.float32)
            found, finite = act(layout, theta, obs)
            expected = reference.mlp(theta, layout.sizes.tolist(), obs)
            assert finite
            # Outputs are sums of up to 64 products: 1e-5 of the size of their terms.
            np.testing.assert_allclose(found, expected, atol=1e-5 * max(1, np.abs(expected).max()))


@pytest.mark.parametrize("activation", ["tanh", "relu"])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("obs_size", "hidden", "action_size"), [(3, (), 2), (17, (70, 140), 6), (7, (9, 3, 13), 5)])
def test_biases_and_hidden_units_are_as_chosen(obs_size, hidden, action_size, bias, activation):
    """Theta is followed by numbers that must not be read; every width of block takes part."""
    layout = network.layout(obs_size, hidden, action_size, bias, activation)
    rng = np.random.default_rng(obs_size)
    d = sum((inputs + bias) * outputs for inputs, outputs in itertools.pairwise([obs_size, *hidden, action_size]))
    assert layout.n_parameters == d
    assert layout.initial_parameters(rng).size == d
    assert np.count_nonzero(layout.initial_parameters(rng)) == d - bias * (sum(hidden) + action_size)
    memory = np.full(d + 500, np.nan, dtype=np.float32)
    theta = memory[:d]
    theta[:] = rng.standard_normal(d) / np.sqrt(obs_size)
    for obs in rng.uniform(-5, 5, (5, obs_size)).astype(np.float32):
        out = np.zeros(action_size, dtype=np.float32)
        assert network.act(layout, theta, normalizer(obs_size), 5.0, layout.scratch(), obs.astype(float), out)
        expected = reference.mlp(theta, layout.sizes.tolist(), obs, bias, activation == "relu")
        np.testing.assert_allclose(out, expected, atol=1e-5 * max(1, np.abs(expected).max()))


def test_hidden_units_are_tanh():
    """One unit, weight 1: the output is tanh of the input, over its whole range."""
    layout = network.layout(1, (1,), 1)
    theta = np.array([1.0, 0.0, 1.0, 0.0])
    for x in np.concatenate([np.linspace(-12, 12, 2001), [0.0, 1e-30, -1e-8, 1e4, -1e4]]).astype(np.float32):
        found, _ = act(layout, theta, [x], clip=1e9)
        assert found[0] == pytest.approx(np.tanh(float(x)), rel=1e-6, abs=1e-37)
        assert abs(found[0]) <= 1


def test_the_result_depends_on_its_arguments_alone():
    """Working memory left by other calls, of larger values, changes no bit."""
    layout = network.layout(7, (9, 3, 13), 5)
    rng = np.random.default_rng(0)
    theta, obs = rng.standard_normal(layout.n_parameters).astype(np.float32), rng.standard_normal(7)
    results = set()
    for fill in (0.0, 1e30, np.nan):
        scratch, out = layout.scratch(), np.full(5, fill, dtype=np.float32)
        scratch[:] = fill
        network.act(layout, theta, normalizer(7), 5.0, scratch, obs, out)
        results.add(out.tobytes())
    assert len(results) == 1


def test_observations_are_normalized_and_clipped():
    """A linear policy with unit weights shows what it is given."""
    layout = network.layout(4, (), 4)
    theta = np.concatenate([np.eye(4).ravel(), np.zeros(4)])
    norm = np.array([[1.0, 2.0, 3.0, -4.0], [1.0, 0.5, 10.0, 2.0]])
    obs = np.array([1.5, -1.0, 30.0, -40.0])
    np.testing.assert_allclose(act(layout, theta, obs, 5.0, norm)[0], [0.5, -1.5, 5.0, -5.0], rtol=1e-6)
    np.testing.assert_allclose(act(layout, theta, obs, np.inf, norm)[0], [0.5, -1.5, 270.0, -72.0], rtol=1e-6)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("position", [0, 5, 10])
def test_an_observation_that_is_not_finite_is_refused(bad, position):
    layout = network.layout(11, (4,), 2)
    obs = np.zeros(11)
    obs[position] = bad
    assert not act(layout, np.ones(layout.n_parameters), obs)[1]


@kernel
def _noisy(rng, scale, low, high, action):
    network.add_noise(rng, scale, low, high, action)


def test_action_noise():
    """Gaussian of the given deviation, from the given generator, clipped to the bounds; none at scale 0."""
    low, high = np.full(50_000, -0.05, np.float32), np.full(50_000, 0.08, np.float32)
    action = np.zeros(50_000, np.float32)
    _noisy(generator(1, Stream.POPULATION_EPISODE), 0.05, low, high, action)
    expected = 0.05 * generator(1, Stream.POPULATION_EPISODE).standard_normal(50_000)
    np.testing.assert_allclose(action, np.clip(expected, -0.05, 0.08), atol=1e-8)
    still = np.linspace(-1, 1, 50_000, dtype=np.float32)
    rng = generator(1, Stream.POPULATION_EPISODE)
    _noisy(rng, 0.0, low, high, still)
    assert (still == np.clip(np.linspace(-1, 1, 50_000, dtype=np.float32), -0.05, 0.08).astype(np.float32)).all()
    assert rng.random() == generator(1, Stream.POPULATION_EPISODE).random(), "nothing was drawn"


# -- parameters ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("obs_size", "hidden", "action_size"), SHAPES)
def test_initial_parameters(obs_size, hidden, action_size):
    """Incoming weights of norm 1 (hidden) and 0.01 (output), of random direction; biases 0; every one used."""
    layout = network.layout(obs_size, hidden, action_size)
    theta = layout.initial_parameters(generator(3, Stream.INITIALIZATION))
    sizes = [obs_size, *hidden, action_size]
    assert theta.dtype == np.float64
    assert theta.size == layout.n_parameters == sum((a + 1) * b for a, b in itertools.pairwise(sizes))
    rest = theta
    for layer, (inputs, outputs) in enumerate(itertools.pairwise(sizes)):
        weights, bias, rest = np.split(rest, [inputs * outputs, (inputs + 1) * outputs])
        norms = np.linalg.norm(weights.reshape(inputs, outputs), axis=0)
        np.testing.assert_allclose(norms, 1.0 if layer < len(hidden) else 0.01, rtol=1e-12)
        assert not bias.any()
        assert inputs < 4 or abs(weights.mean()) < 4 * weights.std() / np.sqrt(weights.size)
    again = layout.initial_parameters(generator(3, Stream.INITIALIZATION))
    assert theta.tobytes() == again.tobytes()


@pytest.mark.filterwarnings("ignore:.*is out of date.*")
@pytest.mark.parametrize(
    ("preset", "count"), [("paper-ant", 11_848), ("paper-ant-256", 96_520), ("paper-ant-512", 324_104)]
)
def test_parameter_counts_of_the_paper(preset, count):
    """Through the command line and the real environment: 111 observations, 8 actions."""
    runner = open_runner(parse(["--preset", preset]).config())
    try:
        assert runner.network.sizes[0] == 111
        assert runner.network.sizes[-1] == 8
        assert runner.network.n_parameters == count
    finally:
        runner.close()
