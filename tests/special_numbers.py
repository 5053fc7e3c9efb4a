"""Numbers that a message must carry to the bit."""

import numpy as np

# A NaN with a payload, one with a sign, and the limits of the format.
PAYLOAD, NEGATIVE_NAN = np.array([0x7FF8DEADBEEF0001, 0xFFF0000000000001], dtype=np.uint64).view(np.float64)
SPECIAL = np.array(
    [np.nan, PAYLOAD, NEGATIVE_NAN, np.inf, -np.inf, 0.0, -0.0, 5e-324, -5e-324, 1.7976931348623157e308, -1e-310, 1 / 3]
)


def whole_numbers(seed, *shape):
    return np.random.default_rng(seed).integers(-(2**58), 2**58, shape)
