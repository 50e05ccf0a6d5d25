r"""Orthogonalization: the polar factor U V^T of a matrix u = U S V^T, by a short polynomial iteration.

    X <- W X,   W = a I + b A + c A^2,   A = X X^T,   from X = u / ||u||_F

on the side with fewer rows. Each step applies p(s) = a s + b s^3 + c s^5 to every singular value.
"""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Literal, TypeVar, get_args

import torch
from torch import Tensor

Method = Literal["quintic", "polar_express", "exact"]
ITERATIONS = ("quintic", "polar_express")
Triple = tuple[float, float, float]
Piece = TypeVar("Piece")

# Keller Jordan's quintic (2024), the same triple at every step: the largest slope at zero for a bounded
# overshoot. Five steps take singular values from 1e-2 of the norm up to [0.68, 1.13].
QUINTIC: Triple = (3.4445, -4.7750, 2.0315)

# Polar Express (arXiv 2505.16932, algorithm 1): the minimax odd quintics for singular values in [1e-3, 1],
# each optimal on the interval that the one before leaves. The last one repeats.
POLAR_EXPRESS: tuple[Triple, ...] = (
    (8.28721201814563, -23.595886519098837, 17.300387312530933),
    (4.107059111542203, -2.9478499167379106, 0.5448431082926601),
    (3.9486908534822946, -2.908902115962949, 0.5518191394370137),
    (3.3184196573706015, -2.488488024314874, 0.51004894012372),
    (2.300652019954817, -1.6689039845747493, 0.4188073119525673),
    (1.891301407787398, -1.2679958271945868, 0.37680408948524835),
    (1.8750014808534479, -1.2500016453999487, 0.3750001645474248),
    (1.875, -1.25, 0.375),
)
# Shrinks the argument of every Polar Express step so that rounding in bfloat16 cannot push it out of [0, 1].
POLAR_EXPRESS_SAFETY = 1.01

# How many entries are orthogonalized in one batch, which bounds the working memory to a few times this. On a
# CPU a batch should stay in the cache (of 2^16 to 2^22 entries for each thread, 2^19 were fastest for 1 to
# 30 M parameters).
BATCH_ENTRIES_ON_CPU = 2**19
BATCH_ENTRIES = 2**24

# Batched bfloat16 products pay on a CPU from this many rows on (measured with AMX: 2.6 times at 64 rows).
BFLOAT16_ROWS_ON_CPU = 64

# From this ratio of the sides on, several steps are taken on the small matrix A alone (the Gram form).
GRAM_RATIO = 1.5

# Squares of norms outside this range are computed after a division: float32 overflows or loses them.
SAFE_SQUARES = (1e-30, 1e30)


def coefficients(method: Method, steps: int) -> Iterator[Triple]:
    """Yield the triples (a, b, c) of `steps` steps.

    Raises:
        ValueError: If `method` names no iteration.
    """
    if method == "quintic":
        yield from itertools.repeat(QUINTIC, steps)
    elif method == "polar_express":
        last = itertools.repeat(POLAR_EXPRESS[-1])
        for a, b, c in itertools.islice(itertools.chain(POLAR_EXPRESS, last), steps):
            s = POLAR_EXPRESS_SAFETY
            yield a / s, b / s**3, c / s**5
    else:
        raise ValueError(f"method must be 'quintic' or 'polar_express' for an iteration, got {method!r}")


@cache
def _bfloat16_is_fast(device_type: str, device_index: int | None) -> bool:
    if device_type == "cuda":
        return torch.cuda.get_device_capability(device_index) >= (8, 0)
    return device_type == "cpu" and _cpu_multiplies_bfloat16()


def _cpu_multiplies_bfloat16() -> bool:
    """Whether this processor has instructions for bfloat16 products: AVX512-BF16 or AMX."""
    if hasattr(torch.cpu, "get_capabilities"):
        features = torch.cpu.get_capabilities()
        return bool(features.get("amx_bf16") or features.get("avx512_bf16"))
    # Older releases of torch answer for one instruction set at a time.
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def working_dtype(matrices: Tensor) -> torch.dtype:
    """The dtype `orthogonalize` computes in when none is given.

    float64 stays float64. Everything else is computed in bfloat16 where the device multiplies it fast
    (CUDA from compute capability 8.0; CPUs with AVX512-BF16 or AMX, oneDNN on, from 64 rows on),
    in float32 otherwise; never in float16, which overflows.
    """
    return working_dtype_for(matrices.dtype, matrices.device, min(matrices.shape[-2:]))


def working_dtype_for(dtype: torch.dtype, device: torch.device, short: int) -> torch.dtype:
    """`working_dtype` of matrices that are not there yet; `short`: rows or columns, the fewer."""
    if dtype == torch.float64:
        return torch.float64
    if not _bfloat16_is_fast(device.type, device.index):
        return torch.float32
    if device.type == "cpu":
        large = short >= BFLOAT16_ROWS_ON_CPU
        return torch.bfloat16 if large and torch.backends.mkldnn.enabled else torch.float32
    return torch.bfloat16


def polar_factor(matrices: Tensor) -> Tensor:
    """The exact polar factor by singular value decomposition; singular values that are 0 stay 0."""
    kept = matrices.dtype if matrices.dtype == torch.float64 else torch.float32
    # In float64: LAPACK's float32 form fails on some matrices of repeated singular values.
    u, s, vh = torch.linalg.svd(_entries_near_one(matrices.to(kept)).double(), full_matrices=False)
    rounding = torch.finfo(kept).eps * max(matrices.shape[-2:])
    return torch.matmul(u * (s > rounding * s[..., :1]).unsqueeze(-2), vh).to(kept)


def _entries_near_one(matrices: Tensor) -> Tensor:
    """Every matrix times a power of two that brings its largest entry near 1; zero stays zero."""
    largest = torch.linalg.vector_norm(matrices, math.inf, dim=(-2, -1), keepdim=True)
    exponent = torch.frexp(largest if largest.dtype == torch.float64 else largest.float()).exponent
    bound = 1022 if largest.dtype == torch.float64 else 126  # the power itself must not leave the range
    return matrices * torch.exp2(-exponent.clamp(-bound, bound).to(matrices))


def segments(method: Method, steps: int, *, gram_form: bool) -> list[list[Triple]]:
    """The triples of `steps` steps, cut where X X^T is formed anew.

    That is after every step, or in the Gram form of the quintic after every second one, and before the last.
    In bfloat16 longer segments amplify rounding without bound, and so do pairs of Polar Express, whose steps
    end at the very edge of the interval in which the next one converges (`records/quality`).
    """
    *others, last = coefficients(method, steps)
    length = 2 if gram_form and method == "quintic" else 1
    return [*(others[i : i + length] for i in range(0, len(others), length)), [last]]


def iterate(x: Tensor, steps: Sequence[Sequence[Triple]]) -> Tensor:
    """Normalize every matrix of a stack and apply polynomials to its singular values.

    For every segment of `steps` forms A = X X^T, the product W_k ... W_1 of its steps from A alone, and
    multiplies X by it. Tall matrices are multiplied from the other side, with A = X^T X, and not transposed.

    Args:
        x: Shape (n, rows, cols), any scale; not changed.
        steps: The triples (a, b, c) of all steps, cut into segments as `segments` returns them.
    """
    tall = x.shape[-2] > x.shape[-1]
    x, square, factor = _normalized(x, tall)
    product = _composed(square, steps[0]).mul_(factor)
    for segment in steps[1:]:
        x = torch.bmm(x, product) if tall else torch.bmm(product, x)
        square = gram(x.mT if tall else x)
        if segment is steps[-1]:
            # The last step keeps a X apart: a rounded within W costs bfloat16 some 3 % of orthogonality.
            ((a, b, c),) = segment
            rest = polynomial(square, a=0.0, b=b, c=c)
            return torch.baddbmm(x, *((x, rest) if tall else (rest, x)), beta=a)
        product = _composed(square, segment)
    return torch.bmm(x, product) if tall else torch.bmm(product, x)


def gram(x: Tensor) -> Tensor:
    """Return G = X X^T for a stack (n, rows, cols)."""
    return torch.bmm(x, x.mT)


def polynomial(g: Tensor, *, a: float, b: float, c: float) -> Tensor:
    """Return a I + b G + c G G for a stack (n, rows, rows) of symmetric G."""
    result = torch.baddbmm(g, g, g, beta=b, alpha=c)
    if a != 0.0:
        result.diagonal(dim1=-2, dim2=-1).add_(a)
    return result


def _composed(square: Tensor, segment: Sequence[Triple]) -> Tensor:
    """W_k ... W_1 with W = a I + b A + c A^2, where A <- W A W from one to the next; A is given."""
    (a, b, c), *others = segment
    product = step = polynomial(square, a=a, b=b, c=c)
    for a, b, c in others:
        square = torch.bmm(torch.bmm(step, square), step)
        step = polynomial(square, a=a, b=b, c=c)
        product = torch.bmm(step, product)
    return product


def _normalized(x: Tensor, tall: bool) -> tuple[Tensor, Tensor, Tensor]:
    """X, A / ||X||^2 and 1 / ||X||, where A itself tells the norm: ||X||^2 = trace A.

    Nothing is added to a norm, so that the result does not depend on the scale. Where a square could leave
    the range of float32, and on other devices than the CPU always, X is brought near 1 first.
    """
    on_host = x.device.type == "cpu"
    if on_host:
        square = gram(x.mT if tall else x)
        norms = _traces(square)
    if not (on_host and _safe(norms)):  # another device would have to be waited for to know
        x = _entries_near_one(x)
        square = gram(x.mT if tall else x)
        norms = _traces(square)
        norms = torch.where(norms == 0, 1.0, norms)
    return x, square.mul_(norms.reciprocal().to(square.dtype)), norms.rsqrt().to(square.dtype)


def _traces(stack: Tensor) -> Tensor:
    """Traces of a stack (n, m, m), shape (n, 1, 1), in at least float32."""
    wide = torch.float64 if stack.dtype == torch.float64 else torch.float32
    return stack.diagonal(dim1=-2, dim2=-1).sum(-1, dtype=wide).reshape(-1, 1, 1)


def _safe(squares: Tensor) -> bool:
    """Whether all are within `SAFE_SQUARES`."""
    smallest, largest = squares.aminmax()
    return SAFE_SQUARES[0] < float(smallest) and float(largest) < SAFE_SQUARES[1]


def orthogonalize(
    matrix_or_stack: Tensor,
    *,
    method: Method | Callable[[Tensor], Tensor] = "quintic",
    steps: int = 5,
    dtype: torch.dtype | None = None,
) -> Tensor:
    r"""Approximate the polar factor :math:`U V^T` of each matrix :math:`u = U S V^T`.

    The result does not depend on the scale of `u`, commutes with transposition and with orthogonal changes
    of basis, and maps a zero matrix to zero.

    Args:
        matrix_or_stack: Shape (..., rows, cols), a real floating-point tensor. Not changed.
        method: "quintic" (the authors' polynomial), "polar_express" (closer for the same cost; its updates
            are larger in norm), "exact" (singular value decomposition), or a function from a stack
            (n, rows, cols) to one of the same shape.
        steps: Number of iterations; "exact" and functions ignore it.
        dtype: dtype of the computation; ignored by "exact" and functions. None means float64 for float64
            input, else bfloat16 where the device is fast in it, else float32. float16 is not allowed.

    Returns:
        A tensor of the same shape and dtype.

    Raises:
        ValueError: For fewer than two dimensions, steps < 1, an unknown method, float16 as `dtype`, or a
            function that changes the shape.
        TypeError: For a tensor that is not real floating point, or a function that returns no tensor.
        FloatingPointError: For a function that returns an infinite or NaN value.

    Example:
        >>> import torch
        >>> from amuse_optim import orthogonalize
        >>> u = orthogonalize(torch.randn(3, 5, dtype=torch.float64), method="exact")
        >>> bool(torch.allclose(u @ u.T, torch.eye(3, dtype=torch.float64)))
        True

    References:
        Quintic: https://kellerjordan.github.io/posts/muon/. Polar Express: arXiv 2505.16932.
    """
    if matrix_or_stack.ndim < 2:
        raise ValueError(
            f"matrix_or_stack must have at least two dimensions, got shape {tuple(matrix_or_stack.shape)}"
        )
    if not matrix_or_stack.is_floating_point():
        raise TypeError(f"matrix_or_stack must be real floating point, got {matrix_or_stack.dtype}")
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be an integer >= 1, got {steps!r}")
    if not callable(method) and method not in get_args(Method):
        known = ", ".join(map(repr, get_args(Method)))
        raise ValueError(f"method must be one of {known}, or a function, got {method!r}")
    if dtype == torch.float16:
        raise ValueError("dtype must not be torch.float16: the iteration overflows in it; use torch.bfloat16")
    if dtype is not None and not dtype.is_floating_point:
        raise ValueError(f"dtype must be a floating-point type, got {dtype}")

    if matrix_or_stack.numel() == 0:
        return matrix_or_stack.clone()
    stack = matrix_or_stack.reshape(-1, *matrix_or_stack.shape[-2:])
    result = orthogonalize_stack(stack, method, steps, dtype)
    return result.to(matrix_or_stack.dtype).reshape(matrix_or_stack.shape)


def orthogonalize_stack(
    stack: Tensor, method: Method | Callable[[Tensor], Tensor], steps: int, dtype: torch.dtype | None
) -> Tensor:
    """`orthogonalize` for a stack (n, rows, cols); the result keeps the precision of the computation."""
    if stack.numel() == 0:
        return stack
    if callable(method):
        result = method(stack.clone())  # a function that works in place must not reach the momentum
        if not isinstance(result, Tensor):
            raise TypeError(f"the orthogonalize function must return a tensor, got {type(result).__name__}")
        if result.shape != stack.shape:
            raise ValueError(
                f"the orthogonalize function must keep the shape {tuple(stack.shape)}, it returned "
                f"{tuple(result.shape)}"
            )
        if not bool(result.isfinite().all()):
            raise FloatingPointError("the orthogonalize function returned a value that is not finite")
        return result.clone()  # which may be the same memory at every call
    if method == "exact":
        return polar_factor(stack)
    short, long = sorted(stack.shape[-2:])
    form = segments(method, steps, gram_form=long >= GRAM_RATIO * short)
    return iterate(stack.to(dtype or working_dtype(stack)), form)


def batch_entries(device: torch.device) -> int:
    """How many entries are orthogonalized in one batch on this device."""
    return BATCH_ENTRIES_ON_CPU * torch.get_num_threads() if device.type == "cpu" else BATCH_ENTRIES


def batches(pieces: Sequence[Piece], sizes: Sequence[int], device: torch.device) -> Iterator[list[Piece]]:
    """Cut a list evenly into batches of about `batch_entries`, which bounds the memory of a step.

    Many small matrices share their products, and large ones do not multiply the working memory.

    Args:
        pieces: Any list, one element for each matrix or stack of matrices; all matrices have one shape.
        sizes: Number of entries of each piece.
        device: The device of the matrices, which decides the size of a batch.
    """
    total = sum(sizes)
    count = max(1, round(total / batch_entries(device)))
    batch: list[Piece] = []
    entries = 0
    for piece, size in zip(pieces, sizes, strict=True):
        batch.append(piece)
        entries += size
        if entries * count >= total:
            yield batch
            batch, entries = [], 0
    if batch:
        yield batch


def orthogonality_errors(stack: Tensor) -> Tensor:
    """||O O^T - I||_F^2 / rows of every matrix, on the side with fewer rows; shape (n,)."""
    exact = stack if stack.dtype == torch.float64 else stack.float()
    short = exact.mT if stack.shape[-2] > stack.shape[-1] else exact
    error = torch.matmul(short, short.mT)
    error.diagonal(dim1=-2, dim2=-1).sub_(1.0)
    return error.square().sum((-2, -1)) / short.shape[-2]
