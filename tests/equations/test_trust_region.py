"""Conjugate gradients against direct solvers; controllers against their table."""

from __future__ import annotations

import numpy as np
import pytest

from surefoot.equations import adapt_kl_coefficient, ascend_kl_multiplier, conjugate_gradient, trust_region_scale


def solve(library, matrix, vector, **options):
    return library.call(
        lambda matrix, vector: tuple(conjugate_gradient(lambda v: matrix @ v, vector, **options)), matrix=matrix, vector=vector
    )


@pytest.mark.parametrize("seed", range(4))
def test_conjugate_gradient_solves_positive_systems(library, seed):
    generator = np.random.default_rng(seed)
    size = 3 + 2 * seed
    half = generator.standard_normal((size, size))
    matrix, vector = half @ half.T + 0.5 * np.eye(size), generator.standard_normal(size)
    solution, product, residual = solve(library, matrix, vector, steps=3 * size, tolerance=1e-24)
    np.testing.assert_allclose(solution, np.linalg.solve(matrix, vector), rtol=1e-8, atol=1e-10)
    np.testing.assert_allclose(product, matrix @ solution, rtol=1e-8, atol=1e-10)
    assert residual < 1e-10


def test_fewer_steps_solve_less_and_say_so(library):
    matrix, vector = np.diag([1.0, 10.0, 100.0, 1000.0]), np.ones(4)
    residuals = []
    for steps in (1, 2, 3, 4):
        solution, _, residual = solve(library, matrix, vector, steps=steps)
        np.testing.assert_allclose(residual, np.linalg.norm(vector - matrix @ solution) / 2, rtol=1e-6, atol=1e-9)
        residuals.append(residual)
    assert residuals[0] > 0.1
    assert residuals[-1] < 1e-8


def test_curvature_that_is_not_positive_ends_the_iteration(library):
    solution, _, _ = solve(library, np.diag([-1.0, -2.0]), np.ones(2), steps=5)
    np.testing.assert_array_equal(solution, 0)
    # The first direction has curvature (1 + 0.5 − 0.3)/3 > 0 and is taken; a later one is not.
    matrix = np.diag([1.0, 0.5, -0.3])
    solution, product, _ = solve(library, matrix, np.ones(3), steps=50)
    assert np.isfinite(solution).all()
    assert np.abs(solution).max() > 0
    np.testing.assert_allclose(product, matrix @ solution, rtol=1e-10)


def test_zero_needs_no_step(library):
    solution, product, residual = solve(library, np.eye(3), np.zeros(3), steps=3)
    np.testing.assert_array_equal(solution, 0)
    np.testing.assert_array_equal(product, 0)
    assert residual == 0


def test_scale_reaches_the_radius(library):
    matrix, direction = np.array([[2.0, 0.5], [0.5, 1.0]]), np.array([1.0, -3.0])
    scale = library.call(trust_region_scale, direction=direction, product=matrix @ direction, radius=0.02)
    step = scale * direction
    np.testing.assert_allclose(0.5 * step @ matrix @ step, 0.02, rtol=1e-12)
    for product in (-direction, np.full(2, np.nan), np.full(2, np.inf)):
        assert library.call(trust_region_scale, direction=np.abs(direction), product=-np.abs(product), radius=0.02) == 0


@pytest.mark.parametrize(
    ("kl", "expected"),
    [(0.0, 0.5), (0.0066, 0.5), (0.0067, 1.0), (0.01, 1.0), (0.0149, 1.0), (0.0151, 2.0), (5.0, 2.0)],
)
def test_adaptive_rule_table(library, kl, expected):
    """d = 0.01: below d/1.5 = 0.00667 half, above 1.5 d = 0.015 double."""
    assert library.call(adapt_kl_coefficient, coefficient=np.asarray(1.0), kl=np.asarray(kl), target=0.01) == expected


def test_adaptive_rule_settles_near_its_target():
    """Where KL falls with β as 1/(100 β), it ends within the band around d from either side, and stays."""
    for start in (1e-6, 1e6):
        coefficient = np.asarray(start)
        for _ in range(60):
            coefficient = np.asarray(adapt_kl_coefficient(coefficient, kl=np.asarray(1 / (100 * coefficient)), target=0.01))
        kl = np.asarray(1 / (100 * coefficient))
        assert 0.01 / 1.5 <= kl <= 0.015
        assert adapt_kl_coefficient(coefficient, kl=kl, target=0.01) == coefficient


def test_adaptive_rule_neither_overflows_nor_vanishes(library):
    for kl, end in ((1e9, 1e8), (0.0, 1e-8)):
        coefficient = np.asarray(1.0)
        for _ in range(200):
            coefficient = np.asarray(
                library.call(adapt_kl_coefficient, coefficient=coefficient, kl=np.asarray(kl), target=0.01)
            )
        assert coefficient == end


def test_multiplier_climbs_to_the_dual_optimum(library):
    """max −(x − 2)² subject to ½x² ≤ ½: x = 1 and λ = 2, by the conditions of Karush, Kuhn and Tucker."""
    multiplier = np.asarray(0.0)
    for _ in range(400):
        best = 4 / (2 + multiplier)  # argmax of −(x − 2)² − λ ½x²
        multiplier = np.asarray(
            library.call(
                ascend_kl_multiplier, multiplier=multiplier, kl=np.asarray(0.5 * best**2), target=0.5, learning_rate=0.2
            )
        )
    np.testing.assert_allclose(multiplier, 2.0, rtol=1e-6)
    slack = library.call(ascend_kl_multiplier, multiplier=np.asarray(0.1), kl=np.asarray(0.0), target=0.5, learning_rate=1.0)
    assert slack == 0
