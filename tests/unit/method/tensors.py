"""Small tensors for the tests of this folder."""

import torch
from hypothesis import strategies as st

NAN = float("nan")


def logs(*probabilities):
    return torch.tensor(probabilities).log()


def numbers(*values):
    return torch.tensor(values, dtype=torch.float32)


@st.composite
def masked_pairs(draw):
    """Two (batch, length) tensors of log-probs and any mask; what the mask leaves out is NaN in the second."""
    batch, length = draw(st.integers(1, 3)), draw(st.integers(1, 8))

    def matrix(values, dtype):
        row = st.lists(values, min_size=length, max_size=length)
        return torch.tensor(draw(st.lists(row, min_size=batch, max_size=batch)), dtype=dtype)

    mask = matrix(st.booleans(), torch.bool)
    current, behavior = (matrix(st.floats(-9, 0), torch.float64) for _ in range(2))
    return current, behavior, mask
