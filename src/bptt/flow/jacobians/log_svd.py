"""Singular values of long products of matrices, in log space.

A product P = A_m ⋯ A_1 is kept as (docs/equations.md, eq. (34))

    P = Q · diag(e^d) · T · (an orthogonal matrix that is dropped: it has no part in the singular values)

with Q orthogonal, d the logarithms of the grading, T well-conditioned, with entries of about 1. Only the grading would leave
the range of float64, and of it only logarithms are kept: nothing underflows, nothing overflows, and small singular values
are not drowned by large ones.

- *A step* A P: QR of A Q with its columns in descending order of grading, A Q Π = Q' R; the new d' takes the size of each
  row of R e^d, and (e^{-d'} R e^d) Πᵀ T is the new T. This is the stratified form of the Bojanczyk–Golub–Van
  Dooren product SVD, as used in determinant quantum Monte Carlo (Loh et al. 1989; pre-pivoted: Tomás et al. 2012).
- *Settling*: a step of the QR iteration for the SVD, T ← L^T of its QR, damps the entries of T by the ratios again.
- *Singular values*: one-sided Jacobi on the rows of e^d T. It finds the singular values of a diagonal times a
  well-conditioned matrix to high relative accuracy (Demmel, Veselić 1992); the rotations are written with ratios, so the
  grading itself is never formed. The diagonals of a QR accumulation alone (what gives Lyapunov exponents) are *not* the
  singular values: for a non-normal product they differ even in the limit of many steps by a bounded factor, and at finite
  lag by much more.

What is lost: a step's singular values below N · 2.2e-16 of its largest are rounding error in A itself, and count as 0.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

SETTLE_EVERY = 8  # steps: costs two QRs; keeps T near the identity, where the grading allows it
SWEEPS = 40
ALONE_BELOW = 128  # N
EPS = torch.finfo(torch.float64).eps


@contextmanager
def few_threads(small: bool) -> Iterator[None]:
    """Use one thread inside if the matrices are `small`: threads would wait up to 1 ms for each other at every product."""
    threads = torch.get_num_threads()
    if small:
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


class GradedProduct:
    """P = A_m ⋯ A_1, N × N, one factor at a time from the left.

    Attributes:
        q: [N, N]; log: natural logarithms d, [N], descending after `settle`; t: [N, N].
    """

    def __init__(self, size: int) -> None:
        self.q = torch.eye(size, dtype=torch.float64, device="cpu")
        self.t = self.q.clone()
        self.log = torch.zeros(size, dtype=torch.float64, device="cpu")
        self._steps = 0

    def multiply(self, factor: Tensor) -> None:
        """P ← factor · P; factor [N, N], float64, finite."""
        moved = factor @ self.q
        lengths = torch.linalg.vector_norm(moved, dim=0)
        noise = len(factor) * EPS * lengths.norm()
        order = (self.log + lengths.log_()).argsort(descending=True, stable=True)
        self.q, r = torch.linalg.qr(moved[:, order])
        self.log, upper = _scaled(torch.where(r.abs() <= noise, 0.0, r), self.log[order])
        self.t = upper @ self.t[order]
        self._steps += 1
        if self._steps % SETTLE_EVERY == 0:
            self.settle()

    def settle(self) -> None:
        """e^d T = (Q₁ e^{d'} T') V: T' is closer to diagonal, Q₁ joins Q, V is dropped."""
        self.log, self.t, order = _normalised(self.log, self.t)
        self.q = self.q[:, order]
        lower = torch.linalg.qr(self.t.mT)[1].mT  # T = lower · V
        # The distance of a row (of length 1) from those above it: below this, rounding error.
        lower = torch.where(lower.abs() <= len(lower) * EPS, 0.0, lower)
        inner = lower * _ratio(self.log.unsqueeze(-1), self.log.unsqueeze(-2))  # e^d lower e^{-d}
        q, r = torch.linalg.qr(inner.tril())
        self.q = self.q @ q
        self.log, self.t = _scaled(r.triu(), self.log)


def log_singular_values(log: Tensor, t: Tensor) -> Tensor:
    """Natural logarithms of the singular values of diag(e^log) · t, descending, [L, N]; log [L, N], t [L, N, N].

    Raises RuntimeError if the Jacobi sweeps do not converge (never seen).
    """
    log, rows = log.clone(), t.clone()
    size = log.shape[-1]
    pairs = _rounds(size)
    for _ in range(SWEEPS):
        log, rows, _ = _normalised(log, rows)
        worst = _sweep(log, rows, pairs)
        if worst <= 1e-14 * size:
            return _normalised(log, rows)[0]
    raise RuntimeError(f"one-sided Jacobi left an angle of {worst:.1e} after {SWEEPS} sweeps, wanted 1e-14·N")


def _scaled(r: Tensor, log: Tensor) -> tuple[Tensor, Tensor]:
    """R e^d = e^{d'} U, where the largest entry in each row of U is about 1."""
    exponents = r.abs().log() + log.unsqueeze(-2)
    after = exponents.amax(-1)
    known = after.unsqueeze(-1)
    return after, torch.where(exponents.isneginf(), torch.zeros_like(r), r.sign() * (exponents - known).exp())


def _ratio(above: Tensor, below: Tensor) -> Tensor:
    """e^{above − below}, 0 where above is -inf."""
    return torch.where(above.isneginf(), torch.zeros_like(above), (above - below).exp())


def _rounds(size: int) -> list[tuple[Tensor, Tensor]]:
    """All pairs i < j in rounds of disjoint ones: the circle method of tournaments."""
    players = list(range(size + size % 2))
    rounds = []
    for _ in range(len(players) - 1):
        half = len(players) // 2
        pairs = [sorted(pair) for pair in zip(players[:half], reversed(players[half:]), strict=True)]
        pairs = [pair for pair in pairs if pair[1] < size]
        i, j = torch.tensor(pairs, dtype=torch.long, device="cpu").reshape(-1, 2).T
        rounds.append((i, j))
        players = [players[0], players[-1], *players[1:-1]]
    return rounds


def _normalised(log: Tensor, rows: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Rows of length 1, their lengths in `log`, which descends; and the order that brought it about."""
    lengths = torch.linalg.vector_norm(rows, dim=-1)
    log = torch.where(lengths > 0, log + lengths.log(), -torch.inf)
    order = log.argsort(dim=-1, descending=True, stable=True)
    rows = rows / torch.where(lengths > 0, lengths, torch.ones_like(lengths)).unsqueeze(-1)
    return log.gather(-1, order), rows.gather(-2, order.unsqueeze(-1).expand_as(rows)), order


def _sweep(log: Tensor, rows: Tensor, pairs: list[tuple[Tensor, Tensor]]) -> float:
    """Make each pair of rows orthogonal once, in place. The largest |cosine| that was met.

    For rows e^{d_i} u, e^{d_j} v with ρ = e^{d_j − d_i} ≤ 1, a = u·u, b = v·v, g = u·v: the rotation's tangent is ρ t with
        t = 2 g sign(p) / (|p| + √(p² + (2ρg)²)),   p = a − ρ² b
    and u ← c (u + ρ² t v),  v ← c (v − t u),  c = 1/√(1 + ρ² t²): for ρ → 0 it becomes Gram–Schmidt.
    """
    worst = 0.0
    for i, j in pairs:
        u, v = rows[:, i], rows[:, j]
        rho = _ratio(log[:, j], log[:, i])
        a, b, g = (u * u).sum(-1), (v * v).sum(-1), (u * v).sum(-1)
        alive = ~log[:, j].isneginf() & (a > 0) & (b > 0)
        cosine = torch.where(alive, g / (a * b).sqrt(), torch.zeros_like(g))
        worst = max(worst, float(cosine.abs().max())) if cosine.numel() else worst
        p = a - rho * rho * b
        bottom = p.abs() + torch.hypot(p, 2 * rho * g)
        t = torch.where(alive & (g != 0), 2 * g * torch.where(p < 0, -1.0, 1.0) / bottom, torch.zeros_like(g))
        c = torch.rsqrt(1 + (rho * t).square())
        rows[:, i] = c.unsqueeze(-1) * (u + (rho * rho * t).unsqueeze(-1) * v)
        rows[:, j] = c.unsqueeze(-1) * (v - t.unsqueeze(-1) * u)
    return worst
