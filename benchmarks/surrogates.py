"""Gaussian processes of three libraries as surrogates of a stack's figures.

    python benchmarks/surrogates.py --seeds 12

On the landscapes of `strategies.py`: a surrogate is told the figures of some random stacks, with
noise, and predicts the true ones of 300 others, half of them children of those told. All see the
same features.

- sklearn: the surrogate of the strategy `model`, scikit-learn's with a linear and a smooth part,
  each stack's own standard error, and a term for what features leave out;
- botorch: BoTorch's SingleTaskGP with its own priors, told the standard errors;
- optuna: the process of Optuna's GPSampler with its own priors. It estimates the noise, and is
  private to Optuna: a sampler of Optuna's proposes values of features, which are no genomes.

Printed by figure, trials and library: root mean square error, in standard deviations of the truth;
the mean log density of the truth under the prediction, which counts errors and false confidence;
seconds of processor time to fit and predict. A library that is not installed is left out.
"""

import argparse
import importlib.util
import json
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from archloop.search.surrogate import Data, Surrogate, fitted
from archloop.space.config import SpaceConfig
from archloop.space.features import features
from archloop.space.opening import open_space
from archloop.space.variation import mutate, sample
from strategies import NOISE, SPACE, Landscape

Floats = NDArray[np.float64]
Predict = Callable[[Data, Floats], tuple[Floats, Floats]]
COUNTS = (8, 16, 32, 64)
NUM_NEW = 300
FIGURES = ("quality", "latency", "memory")


def sklearn(data: Data, x_CF: Floats) -> tuple[Floats, Floats]:
    """Mean and standard deviation of the surrogate that the strategy uses."""
    return Surrogate(data, fitted(data)).marginals(x_CF)


def botorch(data: Data, x_CF: Floats) -> tuple[Floats, Floats]:
    """BoTorch's default for one figure with known noise."""
    import torch
    from botorch.fit import fit_gpytorch_mll
    from botorch.models import SingleTaskGP
    from gpytorch.mlls import ExactMarginalLogLikelihood

    x, y, se = (torch.from_numpy(part).double() for part in data)
    model = SingleTaskGP(x, y[:, None], train_Yvar=(se**2)[:, None])
    fit_gpytorch_mll(ExactMarginalLogLikelihood(model.likelihood, model))
    with torch.no_grad():
        posterior = model.posterior(torch.from_numpy(x_CF).double())
    return posterior.mean[:, 0].numpy(), posterior.variance[:, 0].sqrt().numpy()


def optuna(data: Data, x_CF: Floats) -> tuple[Floats, Floats]:
    """The process inside Optuna's GPSampler."""
    import torch
    from optuna._gp import gp, prior

    mean, scale = data.y_N.mean(), data.y_N.std()
    model = gp.fit_kernel_params(
        X=data.x_NF,
        Y=(data.y_N - mean) / scale,
        is_categorical=np.zeros(data.x_NF.shape[1], np.bool_),
        log_prior=prior.default_log_prior,
        minimum_noise=prior.DEFAULT_MINIMUM_NOISE_VAR,
        deterministic_objective=False,
    )
    with torch.no_grad():
        mean_C, var_C = model.posterior(torch.from_numpy(x_CF))
    return mean + scale * mean_C.numpy(), scale * np.sqrt(var_C.numpy())


LIBRARIES: dict[str, Predict] = {"sklearn": sklearn, "botorch": botorch, "optuna": optuna}


def told(kind: str, seed: int, count: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Features and true figures of stacks that are told, then of new ones."""
    space = open_space(SpaceConfig(**SPACE))
    landscape, rng = Landscape(kind, seed, space), np.random.default_rng([5, seed])
    known = [sample(space, rng) for _ in range(count)]
    new = [
        sample(space, rng) if i % 2 else mutate(space, known[int(rng.integers(count))], rng)
        for i in range(NUM_NEW)
    ]
    x_known, x_new = (np.stack([features(space, g) for g in group]) for group in (known, new))
    y_known, y_new = (np.array([landscape.truth(g) for g in group]) for group in (known, new))
    return x_known, y_known, x_new, y_new


def score(library: Predict, kind: str, seed: int, count: int, noise: str) -> dict[str, list[float]]:
    """Error, log density and seconds of every figure on one landscape."""
    x_known, y_known, x_new, y_new = told(kind, seed, count)
    rng, found = np.random.default_rng([6, seed, count]), {}
    for index, figure in enumerate(FIGURES):
        truth, sd = y_new[:, index], y_new[:, index].std()
        # Quality adds noise, ratios multiply with it.
        error = NOISE[noise][index] * (np.ones(count) if index == 0 else y_known[:, index])
        data = Data(x_known, y_known[:, index] + error * rng.standard_normal(count), error)
        started = time.process_time()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            mean, spread = library(data, x_new)
        seconds = time.process_time() - started
        z, spread = (truth - mean) / spread, spread / sd
        density = float((-0.5 * z**2 - np.log(spread * np.sqrt(2 * np.pi))).mean())
        found[figure] = [float(np.sqrt(((truth - mean) ** 2).mean()) / sd), density, seconds]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--landscapes", nargs="+", default=["lfm", "random", "rugged"])
    parser.add_argument("--seeds", type=int, default=12)
    parser.add_argument("--counts", type=int, nargs="+", default=list(COUNTS))
    parser.add_argument("--noise", choices=list(NOISE), default="quiet")
    arguments = parser.parse_args()
    here = {n: f for n, f in LIBRARIES.items() if importlib.util.find_spec(n)}
    rows: list[dict[str, Any]] = []
    print(f"{'figure':8} {'trials':>6} {'library':8} {'error':>16} {'log density':>18} {'s':>7}")
    for count in arguments.counts:
        cases = [(k, s) for k in arguments.landscapes for s in range(arguments.seeds)]
        scores = {
            name: [score(library, kind, seed, count, arguments.noise) for kind, seed in cases]
            for name, library in here.items()
        }
        for figure in FIGURES:
            for name, each in scores.items():
                values = np.array([one[figure] for one in each])
                mean, se = values.mean(0), values.std(0, ddof=1) / np.sqrt(len(values))
                print(
                    f"{figure:8} {count:>6} {name:8} {mean[0]:>8.3f} ±{se[0]:.3f} "
                    f"{mean[1]:>9.2f} ±{se[1]:.2f} {mean[2]:>8.3f}",
                    flush=True,
                )
                row = {"figure": figure, "trials": count, "library": name, "cases": len(cases)}
                row |= {"error": round(mean[0], 4), "log_density": round(mean[1], 3)}
                rows.append(row | {"error_se": round(se[0], 4), "log_density_se": round(se[1], 3)})
    print(json.dumps({"benchmark": "surrogates", "noise": arguments.noise, "rows": rows}))


if __name__ == "__main__":
    main()
