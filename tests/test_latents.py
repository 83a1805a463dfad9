"""Chunks, layouts and the truncated normal: against SciPy, the golden draws and the distribution itself."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch
from scipy import stats

from mi_ml_gen.core.errors import UsageError
from mi_ml_gen.latents import Chunks, LatentLayout, TruncatedNormal
from tests.conftest import GOLDEN


def test_chunks_are_half_open():
    chunks = Chunks.parse("1_6", 6, "bigbigan")
    assert (chunks.start, chunks.stop, len(chunks), str(chunks)) == (1, 6, 5, "1_6")


@pytest.mark.parametrize(
    ("text", "wrong"),
    [
        ("4_2", "start must be below stop"),
        ("3_3", "start must be below stop"),
        ("0_7", "stop must be at most 6"),
        ("-1_3", "start must be at least 0"),
        ("", "write START_STOP"),
        ("3", "write START_STOP"),
        ("1-3", "write START_STOP"),
        ("1_2_3", "write START_STOP"),
        ("a_b", "write START_STOP"),
        ("1.0_2", "write START_STOP"),
        ("٠_٢", "write START_STOP"),
    ],
)
def test_malformed_chunks_name_the_range(text, wrong):
    with pytest.raises(UsageError) as error:
        Chunks.parse(text, 6, "bigbigan")
    assert wrong in str(error.value)
    assert str(error.value).startswith(f"--chunks {text}: ")
    assert str(error.value).endswith("bigbigan has chunks 0_6, which means 0 to 5")


def test_layout_slices_unequal_chunks():
    layout = LatentLayout((2, 5, 1))
    assert (layout.dim, layout.n_chunks) == (8, 3)
    assert layout.slice(Chunks(0, 1)) == slice(0, 2)
    assert layout.slice(Chunks(1, 3)) == slice(2, 8)
    with pytest.raises(UsageError, match="at most 3"):
        layout.slice(Chunks(2, 4))


@pytest.mark.parametrize("sizes", [(), (3, 0)])
def test_layout_needs_chunks_of_some_length(sizes):
    with pytest.raises(UsageError, match="chunk"):
        LatentLayout(sizes)


def test_chunks_may_have_shapes():
    layout = LatentLayout((12, 5, 8), ((3, 2, 2), None, (2, 1, 4)))
    assert layout.parts(Chunks(0, 3)) == [(3, 2, 2), (5,), (2, 1, 4)]
    assert layout.parts(Chunks(1, 2)) == [(5,)]
    assert LatentLayout((4, 4)).parts(Chunks(0, 2)) == [(4,), (4,)]
    assert LatentLayout.of_shapes([(3, 2, 2), (1, 4, 4)]) == LatentLayout((12, 16), ((3, 2, 2), (1, 4, 4)))
    assert LatentLayout((4, 4), (None, None)) == LatentLayout((4, 4))
    with pytest.raises(UsageError, match="at most 3"):
        layout.parts(Chunks(2, 4))


@pytest.mark.parametrize(
    ("shapes", "says"),
    [
        (((3, 2, 2),), "1 shapes for 2 chunks"),
        (((3, 2, 1), None), "of chunk 0: must be .* with a product of 12"),
        ((None, (5,)), "of chunk 1: must be"),
        ((None, (5, -1, -1)), "of chunk 1: must be"),
        ((None, (5, 1, 1, 1)), "of chunk 1: must be"),
    ],
)
def test_shapes_must_match_the_sizes(shapes, says):
    with pytest.raises(UsageError, match=says):
        LatentLayout((12, 5), shapes)


@pytest.mark.parametrize("chunks", ["1-2", "", "1_2_3", 12, None, (1, 2), "-1_2"])
def test_what_is_neither_chunks_nor_their_text_is_refused(chunks):
    with pytest.raises(UsageError, match="chunks .*: give Chunks"):
        Chunks.of(chunks)
    assert Chunks.of("1_6") == Chunks.of(Chunks(1, 6)) == Chunks(1, 6)


def golden_samples():
    with np.load(GOLDEN / "sampling.npz") as arrays:
        for case in json.loads(str(arrays["meta_json"]))["samples"]:
            yield case, arrays[case["key"]]


@pytest.mark.parametrize(("case", "expected"), list(golden_samples()), ids=lambda value: str(value)[:12])
def test_reference_draws_equal_the_published_ones(case, expected):
    distribution = TruncatedNormal(case["mean"], case["std"], case["truncation"])
    draw = distribution.sample_reference((case["batch_size"], case["dim_z"]), case["seed"])
    assert draw.dtype == torch.float32
    np.testing.assert_allclose(draw.numpy(), expected, atol=1e-6)


@pytest.mark.parametrize(("mean", "std", "truncation", "seed"), [(0, 1, 2, 3), (0.3, 0.5, 0.9, 11), (-2, 3, 4, 7)])
def test_reference_draws_are_scipys(mean, std, truncation, seed):
    ours = TruncatedNormal(mean, std, truncation).sample_reference((50, 7), seed)
    scipys = stats.truncnorm.rvs(
        -truncation, truncation, loc=mean, scale=std, size=(50, 7), random_state=np.random.RandomState(seed)
    )
    np.testing.assert_array_equal(ours.numpy(), scipys.astype(np.float32))


@pytest.mark.parametrize(("mean", "std", "truncation"), [(0, 1, 2), (0.5, 0.2, 0.7), (1, 2, math.inf)])
def test_draws_follow_the_distribution(mean, std, truncation):
    distribution = TruncatedNormal(mean, std, truncation)
    draw = distribution.sample((200, 200), torch.Generator().manual_seed(0)).flatten().numpy()
    exact = stats.truncnorm(-truncation, truncation, loc=mean, scale=std)
    assert stats.kstest(draw, exact.cdf).pvalue > 0.01
    assert np.abs(draw - mean).max() <= truncation * std * (1 + 1e-6)


def test_draws_are_a_function_of_the_generator():
    distribution = TruncatedNormal()
    one, two = (distribution.sample((5, 3), torch.Generator().manual_seed(4)) for _ in range(2))
    other = distribution.sample((5, 3), torch.Generator().manual_seed(5))
    assert torch.equal(one, two) and not torch.equal(one, other)


def test_infinite_truncation_draws_no_infinity():
    edge = torch.tensor([-1.0, 1.0]) * min(math.erf(math.inf), 1 - 2.0**-24)
    assert edge.erfinv().isfinite().all()


def test_no_spread_is_the_mean():
    assert torch.equal(TruncatedNormal(0.25, 0.0, 2.0).sample((3, 2)), torch.full((3, 2), 0.25))


@pytest.mark.parametrize(
    "numbers",
    [(math.nan, 1, 2), (0, -1, 2), (0, math.inf, 2), (0, 1, 0), (0, 1, math.nan), (0, 1e38, 2), (0, 1e300, math.inf),
     (-1e20, 1, 2), (0, 1e19, 2)],
)  # fmt: skip
def test_impossible_distributions_are_refused(numbers):
    with pytest.raises(UsageError):
        TruncatedNormal(*numbers)
