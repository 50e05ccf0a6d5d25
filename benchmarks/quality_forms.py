"""The forms of the iteration that `orthogonalization_quality.py` examines, those that fail included."""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from amuse_optim.orthogonalize import POLAR_EXPRESS, QUINTIC

Triple = tuple[float, float, float]
BF16, F32 = torch.bfloat16, torch.float32
USUAL_SAFETY = 1.01


@dataclass(frozen=True)
class Form:
    """A form of the iteration, written out for this comparison.

    Attributes:
        method: "quintic" or "polar_express".
        steps: How many.
        restarts: After which steps X X^T is formed anew; None: after every one, the plain iteration.
        dtype: Of X and, unless `small` says otherwise, of the matrices of rows x rows.
        small: Their dtype.
        folded: Whether a step alone takes W = a I + ... from the left, or adds a X, as the plain form does.
            Steps that share X X^T always have the former.
        symmetrized: Whether every Gram matrix that is not X X^T is replaced by its symmetric part.
        last: Dtype of the last product.
        safety: What the argument of every step of Polar Express is divided by.
    """

    method: str
    steps: int
    restarts: tuple[int, ...] | None = None
    dtype: torch.dtype = BF16
    small: torch.dtype | None = None
    folded: bool = True
    symmetrized: bool = False
    last: torch.dtype | None = None
    safety: float = USUAL_SAFETY

    @property
    def segments(self) -> list[list[Triple]]:
        """The triples, those together that share X X^T."""
        if self.method == "quintic":
            triples = [QUINTIC] * self.steps
        else:
            s, endless = self.safety, [*POLAR_EXPRESS, *[POLAR_EXPRESS[-1]] * self.steps]
            triples = [(a / s, b / s**3, c / s**5) for a, b, c in endless[: self.steps]]
        restarts = range(1, self.steps) if self.restarts is None else self.restarts
        return [triples[start:stop] for start, stop in itertools.pairwise((0, *restarts, self.steps))]

    @property
    def beginnings(self) -> "list[Form]":
        """The form up to each restart; none for the plain iteration, which has no step to share."""
        restarts = self.restarts or ()
        return [
            replace(self, steps=stop, restarts=restarts[:i], last=None) for i, stop in enumerate(restarts)
        ]

    @property
    def operations(self) -> str:
        """Its floating-point operations over rows^3, where a = cols / rows."""
        count = len(self.segments)
        return f"{4 * count}a + {8 * self.steps - 6 * count}"

    @property
    def description(self) -> str:
        """The form in words."""
        if self.restarts is None:
            words = ["plain, a folded in" if self.folded else "plain"]
        else:
            words = [f"restarts {', '.join(map(str, self.restarts)) or 'none'}"]
            words += [] if self.folded else ["single steps plain"]
        words += ["symmetrized"] if self.symmetrized else []
        words += ["small matrices float32"] if self.small == F32 else []
        words += ["last product bfloat16"] if self.last == BF16 else []
        words += [f"safety {self.safety}"] if self.safety != USUAL_SAFETY else []
        return ", ".join(words)

    def __call__(self, stack: Tensor) -> Tensor:
        """Orthogonalize a stack (n, rows, cols); tall matrices are transposed."""
        if stack.shape[-2] > stack.shape[-1]:
            return self(stack.mT).mT
        x = stack / stack.abs().amax((-2, -1), keepdim=True)
        x = (x / torch.linalg.vector_norm(x, dim=(-2, -1), keepdim=True)).to(self.dtype)
        *others, final = self.segments
        for segment in others:
            x = self._applied(segment, x, self.dtype)
        return self._applied(final, x, self.last or self.dtype)

    def _applied(self, segment: Sequence[Triple], x: Tensor, dtype: torch.dtype) -> Tensor:
        """The product of a segment's polynomials with X, in a dtype."""
        small = x.to(self.small or x.dtype)
        gram = torch.bmm(small, small.mT)
        a, b, c = segment[0]
        step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
        if len(segment) == 1 and not self.folded:
            return torch.baddbmm(x.to(dtype), step.to(dtype), x.to(dtype), beta=a)
        step.diagonal(dim1=-2, dim2=-1).add_(a)
        product = step
        for a, b, c in segment[1:]:
            gram = torch.bmm(torch.bmm(step, gram), step)
            gram = (gram + gram.mT) / 2 if self.symmetrized else gram
            step = torch.baddbmm(gram, gram, gram, beta=b, alpha=c)
            step.diagonal(dim1=-2, dim2=-1).add_(a)
            product = torch.bmm(step, product)
        return torch.bmm(product.to(dtype), x.to(dtype))


def _restarted(method: str, steps: int, *restarts: tuple[int, ...], **rest: object) -> list[Form]:
    return [Form(method, steps, where, **rest) for where in restarts]


FORMS: tuple[Form, ...] = (
    *(
        Form(method, steps, folded=folded)
        for method in ("quintic", "polar_express")
        for steps in (5, 6, 8)
        for folded in (False, True)
    ),
    *_restarted("quintic", 5, (), (2,), (3,), (1, 3), (2, 3), (2, 4), (3, 4)),
    *_restarted("quintic", 5, (2, 4), folded=False),
    *_restarted("quintic", 6, (3,), (2, 4), (3, 5), (2, 4, 5)),
    *_restarted("quintic", 8, (3, 6), (2, 4, 6), (3, 5, 7), (2, 4, 6, 7)),
    *_restarted("polar_express", 5, (), (2,), (3,), (1, 3), (2, 3), (2, 4)),
    *_restarted("polar_express", 6, (1, 3), (2, 4), (1, 3, 5)),
    *_restarted("polar_express", 8, (2, 4, 6), (1, 3, 5, 7)),
    # A larger safety leaves room for the overshoot of steps that share X X^T.
    *(Form("polar_express", 5, (2, 4), safety=safety) for safety in (1.03, 1.05, 1.07, 1.1)),
    *_restarted("polar_express", 6, (2, 4), safety=1.1),
    *_restarted("polar_express", 8, (2, 4, 6), safety=1.1),
    *_restarted("quintic", 5, (3,), (2, 4), symmetrized=True),
    *_restarted("polar_express", 5, (1, 3), (2, 4), symmetrized=True),
    *_restarted("quintic", 5, (), (3,), (2, 4), small=F32),
    *_restarted("polar_express", 5, (), (2,), (2, 4), small=F32),
    *(Form(method, 5, dtype=F32, folded=False) for method in ("quintic", "polar_express")),
    *_restarted("quintic", 5, (), (4,), dtype=F32),
    *_restarted("quintic", 6, (), (4,), dtype=F32),
    *_restarted("quintic", 8, (), (4,), (4, 7), dtype=F32),
    *_restarted("polar_express", 5, (), (4,), dtype=F32),
    *_restarted("polar_express", 6, (), (4,), dtype=F32),
    *_restarted("polar_express", 8, (), (4,), (4, 7), dtype=F32),
    *(
        Form(method, 5, restarts, dtype=F32, folded=restarts == (), last=BF16)
        for method in ("quintic", "polar_express")
        for restarts in (None, (), (4,))
    ),
)
"""Every form that is examined."""
