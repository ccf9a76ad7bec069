"""Second-order optimisation over pytrees of arrays: conjugate gradient and a backtracking line search; and
which part of a pytree a function reads.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int32, PyTree

Scalar = float | Float[Array, ""]


def inner(a: PyTree, b: PyTree) -> Float[Array, ""]:
    """⟨a, b⟩: the sum over all leaves of the products of their elements, not rounded to tensor-core types."""
    products = jax.tree.map(lambda x, y: jnp.sum(x * y), a, b)
    return jnp.sum(jnp.stack(jax.tree.leaves(products)))


def move(point: PyTree, step: Scalar, direction: PyTree) -> PyTree:
    """point + step · direction, with `step` a scalar, in the dtypes of the point."""
    return jax.tree.map(lambda x, d: (x + step * d).astype(x.dtype), point, direction)


def conjugate_gradient(
    matvec: Callable[[PyTree], PyTree], b: PyTree, iterations: int, tolerance: Scalar = 1e-5
) -> PyTree:
    """x with A x ≈ b for a symmetric positive definite A, from x = 0 (Hestenes & Stiefel 1952).

    Always as many products with A as the static `iterations`, so that it runs under `vmap` without a
    data-dependent loop; x stays what it is once ‖b − A x‖ ≤ tolerance · ‖b‖, or where rounding makes pᵀ A p
    ≤ 0. Exact after as many iterations as A has distinct eigenvalues, up to rounding. NaN in b or from A
    gives NaN.

    Args:
        matvec: v -> A v, linear, on pytrees like b.
        b: a pytree of float arrays.
        iterations: how many.
        tolerance: of the residual, relative.
    """
    enough = tolerance * tolerance * inner(b, b)

    def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
        x, residual, p, square = carry
        image = matvec(p)
        curvature = inner(p, image)
        stop = (square <= enough) | (curvature <= 0)  # false for NaN, which goes on to x
        size = jnp.where(stop, 0, square / jnp.where(stop, 1, curvature))
        x, residual = move(x, size, p), move(residual, -size, image)
        after = inner(residual, residual)
        growth = jnp.where(stop, 1, after / jnp.where(stop, 1, square))
        p = jax.tree.map(lambda old, new: jnp.where(stop, old, new), p, move(residual, growth, p))
        return (x, residual, p, after), None

    start = (jax.tree.map(jnp.zeros_like, b), b, b, inner(b, b))
    return jax.lax.scan(iterate, start, length=iterations)[0][0]


def backtracking(
    accept: Callable[[PyTree], Bool[Array, ""]],
    start: PyTree,
    direction: PyTree,
    factor: Scalar,
    tries: int,
) -> tuple[PyTree, Bool[Array, ""], Int32[Array, ""]]:
    """The first of start + factorᵏ · direction, k = 0 … tries − 1, that `accept` holds of, or `start` itself.

    Returns: (the point; bit for bit `start` where none was accepted, whether one was, how many were tried).
    """

    def searching(carry: tuple) -> Array:
        _, accepted, tried, _ = carry
        return ~accepted & (tried < tries)

    def attempt(carry: tuple) -> tuple:
        _, _, tried, step = carry
        candidate = move(start, step, direction)
        return candidate, accept(candidate), tried + 1, step * factor

    nothing = (start, jnp.bool_(False), jnp.int32(0), jnp.float32(1))
    candidate, accepted, tried, _ = jax.lax.while_loop(searching, attempt, nothing)
    point = jax.tree.map(lambda new, old: jnp.where(accepted, new, old), candidate, start)
    return point, accepted, tried


def reads(function: Callable[[PyTree], PyTree], tree: PyTree) -> PyTree:
    """Which leaves of `tree` the result of `function(tree)` can depend on: a pytree of Python booleans.

    Read off the program, whatever the values: `stop_gradient` and a saturated unit are dependences too. A
    leaf is mapped by `vmap` alone, and the result must then be free of the mapped axis.
    """
    leaves, structure = jax.tree.flatten(tree)
    jax.eval_shape(function, tree)  # its own errors come from here, so those below mean a dependence
    shapes = [jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf)) for leaf in leaves]

    def reads_leaf(index: int) -> bool:
        axes = [0 if i == index else None for i in range(len(leaves))]
        mapped = jax.vmap(lambda *parts: function(structure.unflatten(parts)), axes, out_axes=None)
        wide = jax.ShapeDtypeStruct((2, *shapes[index].shape), shapes[index].dtype)
        try:
            jax.eval_shape(mapped, *[*shapes[:index], wide, *shapes[index + 1 :]])
        except ValueError:
            return True
        return False

    return structure.unflatten([reads_leaf(index) for index in range(len(leaves))])
