"""Non-negative shares fitted to relative errors, of parts that are alike and of the largest part.

`pooled`: each kind of part has shares of its own, drawn towards the mean of its group: the noisier
the rows turn out, the more alike kinds are taken to be (partial pooling). `with_largest`: parts add
up, but of what each needs while it computes only the largest counts, since one part leaves it to
the next. Rows that lie far off weigh less (Huber), because what disturbs a measurement may double
it.

Shapes: `R` rows, `K` kinds of parts, `G` groups of kinds, `J` features of a part, `A` features that
add up whatever the kind.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import nnls

Array = NDArray[np.float64]

_ROUNDS = 12
_HUBER = 1.345
"""Standard deviations from which on a row weighs less: 95% as good as squares if none is off."""
_SPREAD = 0.15
"""By how much kinds of a group are expected to differ, in shares of the whole. Of .03 to 1 the best
by cross-validation of decode over 40 random stacks in ONNX Runtime int8, OpenVINO, ExecuTorch."""
_WEAKEST, _STRONGEST = 0.01, 10.0
"""Bounds of the pull: without any, kinds with fewer rows than features would not be determined."""
_TINY = 1e-30


def pooled(x_RKJ: Array, y_R: Array, groups: NDArray[np.int64]) -> tuple[Array, Array]:
    """Shares of kinds and of groups: a row is the sum over K and J of features times shares.

    Args:
        x_RKJ: features of a row's parts, summed by kind.
        y_R: positive values.
        groups: of each kind.

    Returns:
        Shares (K, J), and (G, J) for kinds that no row has.
    """
    num_rows, num_kinds, num_features = x_RKJ.shape
    num_groups = int(groups.max()) + 1
    # In these units a feature's mean share of the rows' values is 1.
    unit_J = np.maximum((x_RKJ.sum(1) / y_R[:, None]).mean(0), _TINY)
    own = (x_RKJ / unit_J).reshape(num_rows, -1)
    design = np.concatenate([own, np.zeros((num_rows, num_groups * num_features))], 1)
    to_group = np.kron(np.eye(num_groups)[groups], np.eye(num_features))
    pull = np.concatenate([np.eye(num_kinds * num_features), -to_group], 1)
    shares = _fitted(design, y_R, pull).reshape(-1, num_features) / unit_J
    return shares[:num_kinds], shares[num_kinds:]


def with_largest(x_RA: Array, own_RKJ: Array, y_R: Array) -> tuple[Array, Array]:
    """Shares of features that add up, and of those of which only the largest kind's count.

    Fits while each row counts the kind that was its largest before, until that stays. Without any
    row nothing is known to need anything.

    Returns:
        Shares (A,) and (K, J).
    """
    num_rows, num_kinds, _ = own_RKJ.shape
    num_added = x_RA.shape[1]
    if not num_rows:
        return np.zeros(num_added), np.zeros(own_RKJ.shape[1:])
    counted, best = own_RKJ, (np.inf, np.zeros(0), np.zeros(0))
    for _ in range(_ROUNDS):
        design = np.concatenate([x_RA, counted.reshape(num_rows, -1)], 1)
        unit = np.maximum((design / y_R[:, None]).max(0), _TINY)
        # What adding up explains as well is not taken for a need of one kind.
        found = _fitted(design / unit, y_R, np.eye(len(unit))[num_added:]) / unit
        added, own_KJ = found[:num_added], found[num_added:].reshape(own_RKJ.shape[1:])
        needs_RK = (own_RKJ * own_KJ).sum(2)
        error = float(np.abs(np.log((x_RA @ added + needs_RK.max(1)) / y_R)).mean())
        if error < best[0]:
            best = error, added, own_KJ
        before = counted
        counted = own_RKJ * np.eye(num_kinds)[needs_RK.argmax(1)][:, :, None]
        if (counted == before).all():
            break
    return best[1], best[2]


def _fitted(design: Array, y_R: Array, pull: Array) -> Array:
    """Non-negative factors of a design's columns that leave small logarithms of ratios.

    Args:
        design: (R, C).
        y_R: positive values.
        pull: (P, C) rows that should be zero, the more the larger the errors of the fit are.
    """
    found: Array = np.zeros(design.shape[1])
    strength, trust_R, weight_R = 1.0, np.ones_like(y_R), 1 / y_R
    for _ in range(_ROUNDS):
        by_R = weight_R * trust_R
        found, _ = nnls(
            np.concatenate([design * by_R[:, None], strength * pull]),
            np.concatenate([y_R * by_R, np.zeros(len(pull))]),
        )
        fit_R = np.maximum(design @ found, 1e-9 * y_R)
        # Around a ratio of one its logarithm is the difference over the geometric mean.
        errors_R, weight_R = np.abs(np.log(fit_R / y_R)), 1 / np.sqrt(fit_R * y_R)
        usual = max(float(np.median(errors_R)) / 0.6745, 1e-6)
        trust_R = np.sqrt(np.minimum(1, _HUBER * usual / np.maximum(errors_R, 1e-9)))
        strength = float(np.clip(usual / _SPREAD, _WEAKEST, _STRONGEST))
    return found
