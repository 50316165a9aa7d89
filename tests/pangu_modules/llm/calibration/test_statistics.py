"""Streamed statistics and regression against whole-array formulas in numpy."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from pangu_modules.llm.calibration.statistics import ColumnMoments, StreamingCovariance
from pangu_modules.llm.pruning.slimllm.regression import ColumnRegression, FitMoments, fit, fold_affine, ridge_matrix

CPU = torch.device("cpu")


def tokens(size, seed, count=50, offset=0.0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, size, generator=generator, dtype=torch.float64) + offset


def test_column_moments_equal_numpy():
    x = tokens(5, 1, offset=0.4)
    moments = ColumnMoments(5, CPU)
    for part in x.split(13):
        moments.update(part)
    values = x.numpy()
    np.testing.assert_allclose(moments.norm, np.linalg.norm(values, axis=0), rtol=1e-13)
    np.testing.assert_allclose(moments.mean, values.mean(0), rtol=1e-12)
    np.testing.assert_allclose(moments.variance, values.var(0), rtol=1e-12)
    np.testing.assert_allclose(moments.absolute_sum, np.abs(values).sum(0), rtol=1e-13)


@pytest.mark.parametrize("offset", [0.0, 1e4])
def test_covariance_equals_numpy_even_with_large_means(offset):
    x, y = tokens(4, 2, offset=offset), tokens(3, 3, offset=-offset)
    own, cross = StreamingCovariance(4, CPU), StreamingCovariance(4, CPU, 3)
    for part_x, part_y in zip(x.split(17), y.split(17), strict=True):
        own.update(part_x)
        cross.update(part_x, part_y)
    want = np.cov(x.numpy().T, y.numpy().T, bias=True)
    # measured 2e-12 at offset 1e4, where sums that are not shifted lose 8 digits (error 1e-8)
    np.testing.assert_allclose(own.covariance, want[:4, :4], rtol=0, atol=1e-11)
    np.testing.assert_allclose(cross.covariance, want[:4, 4:], rtol=0, atol=1e-11)
    np.testing.assert_allclose(cross.second_moment, x.numpy().T @ y.numpy() / len(x), rtol=1e-12)


@pytest.mark.parametrize("size", [1, 3, 5, 11])
def test_the_covariance_of_x_with_itself_is_whole_and_symmetric(size):
    """Only blocks on and above the diagonal are summed; sizes that the blocks do not divide included."""
    x = tokens(size, 4, offset=0.5)
    own, cross = StreamingCovariance(size, CPU), StreamingCovariance(size, CPU, size)
    own.update(x)
    cross.update(x, x)
    assert torch.equal(own.products, own.products.T)
    torch.testing.assert_close(own.products, cross.products)
    torch.testing.assert_close(own.second_moment, x.T @ x / len(x))


def test_float32_tokens_keep_float64_sums():
    x = (tokens(3, 5, count=4096) + 100).float()
    statistics = StreamingCovariance(3, CPU)
    for part in x.split(256):
        statistics.update(part)
    want = np.cov(x.double().numpy().T, bias=True)
    # measured 1e-6: rounding of the float32 products of one batch
    np.testing.assert_allclose(statistics.covariance, want, rtol=0, atol=1e-5)


def regression_of(u, y):
    regression = ColumnRegression(u.shape[1], CPU)
    for part_u, part_y in zip(u.split(11), y.split(11), strict=True):
        regression.update(part_u, part_y)
    return regression


def test_affine_fit_equals_polyfit_per_dimension():
    u = tokens(6, 7, offset=3.0)
    y = 1.7 * u + tokens(6, 8) - 2
    slope, intercept = fit("affine", regression_of(u, y).moments)
    for d in range(6):
        a, b = np.polyfit(u[:, d].numpy(), y[:, d].numpy(), 1)
        assert (float(slope[d]), float(intercept[d])) == pytest.approx((a, b), abs=1e-11)  # measured 1e-13


def test_bias_fit_only_moves_the_mean():
    u, y = tokens(4, 9, offset=1.0), tokens(4, 10, offset=-1.0)
    slope, intercept = fit("bias", regression_of(u, y).moments)
    assert torch.equal(slope, torch.ones(4, dtype=torch.float64))
    torch.testing.assert_close(intercept, (y - u).mean(0))


def test_equal_outputs_need_no_repair():
    u = tokens(4, 11, offset=2.0)
    slope, intercept = fit("affine", regression_of(u, u).moments)
    torch.testing.assert_close(slope, torch.ones(4, dtype=torch.float64), rtol=0, atol=1e-13)
    torch.testing.assert_close(intercept, torch.zeros(4, dtype=torch.float64), rtol=0, atol=1e-13)


def test_a_constant_output_keeps_its_slope():
    u, y = tokens(3, 12), tokens(3, 13, offset=5.0)
    u[:, 1] = 4.0
    slope, intercept = fit("affine", regression_of(u, y).moments)
    assert float(slope[1]) == 1
    assert float(intercept[1]) == pytest.approx(float(y[:, 1].mean()) - 4)
    all_constant = FitMoments(torch.ones(2), torch.zeros(2), torch.zeros(2), torch.zeros(2))
    assert fit("affine", all_constant)[0].tolist() == [1, 1]


@pytest.mark.parametrize("bias", [False, True])
def test_folding_equals_repairing_the_output(bias):
    linear = nn.Linear(5, 4, bias=bias).double()
    x = tokens(5, 14)
    before = linear(x).detach()
    slope, intercept = tokens(4, 15, count=1)[0], tokens(4, 16, count=1)[0]
    fold_affine(linear, slope, intercept)
    torch.testing.assert_close(linear(x), slope * before + intercept)
    assert linear.bias.requires_grad


def test_ridge_matrix_is_the_minimum_of_its_objective():
    z, y = tokens(5, 17), tokens(3, 18)
    squares = z.T @ z
    matrix = ridge_matrix(squares, z.T @ y, ridge=0.1)
    penalty = float(0.1 * squares.trace() / 5)
    stacked = torch.cat([z, penalty**0.5 * torch.eye(5, dtype=torch.float64)])
    target = torch.cat([y, torch.zeros(5, 3, dtype=torch.float64)])
    want = torch.linalg.lstsq(stacked, target).solution.T
    torch.testing.assert_close(matrix, want)
