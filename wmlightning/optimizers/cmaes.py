"""CMA-ES as a `torch.optim.Optimizer`, so that Lightning counts, saves and resumes it like any other."""

import inspect
import warnings
from collections.abc import Callable, Iterable
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from wmlightning.runtime import torch_threads

with warnings.catch_warnings():
    # Without matplotlib it warns that its own plots are not available; they are not used here.
    warnings.filterwarnings("ignore", "Could not import matplotlib", UserWarning)
    import cma
    from cma.sampler import GaussFullSampler
    from cma.sigma_adaptation import CMAAdaptSigmaCSA

# What a checkpoint needs for a bit-exact continuation, by the object of the library that has it. Everything else there
# is either constant (recombination weights, learning rates), rebuilt by `ask`, or only read by its stopping rules.
_STRATEGY = ("mean", "pc", "sigma", "countiter", "_isotropic_mean_shift_iteration")
_SAMPLER = ("C", "B", "D", "last_update", "count_tell", "count_eigen")
_STEP_SIZE = ("ps", "delta", "_ps_updated_iteration")


class CMAES(torch.optim.Optimizer):
    """Covariance matrix adaptation: evolves a Gaussian over parameter vectors towards lower losses.

        candidates ~ N(mean, sigma^2 C)   ->   losses   ->   mean, sigma and C move towards the better half

    One generation is one `step`. No gradient is used; the parameters only receive the mean of the distribution, which
    is the best estimate (better than the best candidate when losses are noisy). The search itself runs in float64.

    The mathematics is the library `cma`. The step size is adapted by its path length (CSA) at every size, because from
    300 parameters on the library would silently take two-point adaptation with injected samples instead. Candidates are
    a function of (seed, generation) and of the losses passed to `tell` so far: numpy's global random state is neither
    read nor changed, and asking twice gives the same candidates. The library's stopping rules are ignored: the trainer
    decides.

    Args:
        parameters: those that are searched, flattened in this order. Their values are the first mean.
        sigma: first standard deviation of every coordinate, above 0.
        population: candidates per generation, at least 4; more is safer on noisy losses.
        seed: of the stream of candidates, at least 0.

    Raises:
        ValueError: if an argument is out of its range.

    Source: Hansen, The CMA evolution strategy: a tutorial, 2016. Ha and Schmidhuber 2018, appendix, use sigma 0.1 and a
    population of 64.
    """

    def __init__(self, parameters: Iterable[Any], sigma: float = 0.1, population: int = 64, seed: int = 0) -> None:
        if not sigma > 0:
            raise ValueError(f"sigma is {sigma} but must be above 0: 0.1 suits a controller that starts at zero")
        if population < 4:
            raise ValueError(f"population is {population} but CMA-ES needs at least 4 candidates: raise it")
        if seed < 0:
            raise ValueError(f"seed is {seed} but must be at least 0: it seeds the stream of candidates")
        super().__init__(parameters, {"sigma": sigma, "population": population, "seed": seed})
        self._options = self.param_groups[0]
        self._search = self._fresh_search()
        self._candidates: np.ndarray | None = None

    @property
    def generation(self) -> int:
        """Generations completed so far."""
        return int(self._search.countiter)

    @property
    def mean(self) -> Tensor:
        """The mean of the search distribution, float64 (n,)."""
        return torch.from_numpy(self._search.mean.copy())

    @property
    def sigma(self) -> float:
        """The overall step size."""
        return float(self._search.sigma)

    def ask(self) -> Tensor:
        """Returns this generation's candidates, float64 (population, n), the same ones until `tell` is called."""
        if self._candidates is None:
            with torch_threads(1):
                self._candidates = np.stack(self._search.ask())
        return torch.from_numpy(self._candidates.copy())

    def tell(self, candidates: Any, losses: Any) -> None:
        """Moves the distribution towards the candidates of low loss; the parameters stay as they are.

        Args:
            candidates: those that `ask` returned, (population, n), as a tensor or anything numpy reads.
            losses: one loss for each candidate, likewise; lower is better, and only their order matters.

        Raises:
            ValueError: if a loss is not a number, or candidates and losses differ in number.
        """
        self.ask()  # the library requires `ask` before `tell` in the same process, also after a resume
        rows = np.asarray(candidates, dtype=np.float64)
        values = np.asarray(losses, dtype=np.float64).reshape(-1)
        expected = (self._options["population"], self._search.N)
        if rows.shape != expected or len(values) != len(rows):
            raise ValueError(
                f"candidates have shape {rows.shape} with {len(values)} losses but must have {expected} with "
                f"{expected[0]} losses: tell every candidate that ask returned, once"
            )
        if np.isnan(values).any():
            worst = int(np.flatnonzero(np.isnan(values))[0])
            raise ValueError(f"the loss of candidate {worst} is NaN: fix its evaluation, or return a large number")
        with torch_threads(1):
            self._search.tell(list(rows), values.tolist())
        self._candidates = None

    def mean_after(self, losses: Any) -> Tensor:
        """Returns the mean that `tell` will move to, given losses of the current candidates, float64 (n,)."""
        weights = self._search.sp.weights.positive_weights
        order = np.argsort(np.asarray(losses))
        return torch.from_numpy(np.dot(weights, self.ask().numpy()[order][: len(weights)]))

    @torch.no_grad()
    def step(self, closure: Callable[..., Any]) -> float:  # type: ignore[override]
        """Runs one generation: ask, evaluate, tell, and copies the mean into the parameters.

        Args:
            closure: maps candidates (population, n) to losses (population,). Lightning wraps closures and strips their
                arguments (`self.optimizers().step(closure)`), so one that takes none is also accepted: it gets its
                candidates from `ask`, which returns the same ones.

        Returns:
            The lowest loss of the generation.
        """
        candidates = self.ask()
        losses = closure(candidates) if inspect.signature(closure).parameters else closure()
        self.tell(candidates, losses)
        self._mean_into_parameters()
        return float(np.min(np.asarray(losses)))

    def __getstate__(self) -> dict[str, Any]:
        return dict(vars(self))  # torch would copy only the parameter groups and lose the search

    def state_dict(self) -> dict[str, Any]:
        """Returns the whole search as float64 tensors and whole numbers, so that it loads with `weights_only=True`."""
        state = {
            f"{part}.{name}": _plain(getattr(owner, name))
            for part, (owner, names) in self._owners(self._search).items()
            for name in names
        }
        return {"state": state, "param_groups": super().state_dict()["param_groups"]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continues where `state_dict` was taken, bit for bit; the parameters stay as they are.

        The checkpoint's sigma and seed replace the constructor's, with a warning where the seeds differ.

        Raises:
            ValueError: if the state has another number of parameters or another population.
        """
        # torch's own method would cast the state to the parameters' float32 and drop entries of no parameter.
        state = state_dict["state"]
        options = state_dict["param_groups"][0]
        sizes = (len(state["strategy.mean"]), options["population"])
        expected = (self._search.N, self._options["population"])
        if sizes != expected:
            raise ValueError(
                f"the checkpoint searches {sizes[0]} parameters with a population of {sizes[1]}, but this run has "
                f"{expected[0]} and {expected[1]}: use the same controller and population, or start anew"
            )
        if options["seed"] != self._options["seed"]:
            warnings.warn(
                f"CMA-ES continues with the checkpoint's seed {options['seed']}, not {self._options['seed']}",
                stacklevel=2,
            )
        self._options.update(sigma=options["sigma"], seed=options["seed"])
        search = self._fresh_search()
        for part, (owner, names) in self._owners(search).items():
            for name in names:
                value = state[f"{part}.{name}"]
                # The order of B's axes in memory decides how its products round: keep it.
                setattr(owner, name, np.array(value.cpu().numpy(), order="K") if isinstance(value, Tensor) else value)
        search._updateBDfromSM(search.sm)
        search.mean_old = search.mean  # `tell` updates it before it reads it
        search.mean_after_tell = search.mean.copy()
        self._search = search
        self._candidates = None

    def _fresh_search(self) -> Any:
        start = torch.cat([p.detach().reshape(-1) for group in self.param_groups for p in group["params"]])
        options = {
            "popsize": self._options["population"],
            "AdaptSigma": CMAAdaptSigmaCSA,
            "randn": self._noise,
            "seed": np.nan,  # leaves numpy's global random state alone
            "verbose": -10,  # prints nothing, writes no file, reads no cma_signals.in
            # Below 6 candidates it would inject mirrored ones, a state kept from one generation to the next.
            "CMA_mirrors": 0,
            # Beyond condition 1e12, far from our use, it would move part of C into a coordinate transformation.
            "conditioncov_alleviate": False,
        }
        search = cma.CMAEvolutionStrategy(start.double().cpu().numpy(), self._options["sigma"], options)
        # C moves by parts in 1e5 a generation at 867 parameters. Decomposing it ten times less often than the library
        # (every 26 generations, not 3) took as many generations to the goal on rotated ellipsoids of 20 to 100.
        gap = 10 * cast(GaussFullSampler, search.sm).lazy_update_gap
        search.sm = _TorchSampler(search.N, gap, randn=self._noise, eigenmethod=_eigh)
        search._updateBDfromSM(search.sm)
        search.ask()  # starts the library's clock, which `tell` requires
        search._flgtelldone = True
        return search

    def _noise(self, number: int, size: int) -> np.ndarray:
        generation = self._search.countiter if hasattr(self, "_search") else 0
        return np.random.default_rng((self._options["seed"], generation)).standard_normal((number, size))

    @staticmethod
    def _owners(search: Any) -> dict[str, tuple[Any, tuple[str, ...]]]:
        return {
            "strategy": (search, _STRATEGY),
            "sampler": (search.sm, _SAMPLER),
            "step_size": (search.adapt_sigma, _STEP_SIZE),
        }

    def _mean_into_parameters(self) -> None:
        mean = self.mean
        start = 0
        for group in self.param_groups:
            for parameter in group["params"]:
                parameter.copy_(mean[start : start + parameter.numel()].view_as(parameter))
                start += parameter.numel()


class _TorchSampler(GaussFullSampler):
    """The library's multivariate normal with its matrix products computed by torch, on one thread.

    Threads of a matrix library spin while they wait for each other: beside busy environments or a second rank one
    decomposition then takes seconds instead of a quarter of one. numpy's cannot be held to one thread from inside,
    torch's can. The lengths of all candidates with negative weight are one product instead of one each.
    """

    def sample(self, number: int, lazy_update_gap: float | None = None, same_length: bool = False) -> np.ndarray:
        self.update_now(lazy_update_gap)
        noise = self.D * self.randn(number, self.dimension)
        return (torch.from_numpy(noise) @ torch.from_numpy(self.B).T).numpy()

    def update(self, vectors: Any, weights: Any, c1_times_delta_hsigma: float = 0) -> None:
        rows = torch.from_numpy(np.asarray(vectors))
        weights = np.array(weights)
        keep = 1 + c1_times_delta_hsigma - weights.sum()
        negative = weights < 0
        lengths = (rows[torch.from_numpy(negative)] @ torch.from_numpy(self.B)).numpy() / self.D
        weights[negative] *= self.dimension / (np.sqrt((lengths**2).sum(1)) + 1e-9) ** 2
        torch.from_numpy(self.C).mul_(keep).addmm_(rows.T * torch.from_numpy(weights), rows)
        self.count_tell += 1

    def transform_inverse(self, x: np.ndarray) -> np.ndarray:
        axes = torch.from_numpy(self.B)
        vector = torch.from_numpy(np.ascontiguousarray(x))
        return (axes @ ((axes.T @ vector) / torch.from_numpy(self.D))).numpy()


def _eigh(matrix: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    values, vectors = torch.linalg.eigh(torch.from_numpy(matrix))
    return values.numpy(), vectors.numpy()


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return torch.from_numpy(np.array(value, dtype=np.float64, order="K"))
    return int(value) if isinstance(value, int | np.integer) else float(value)
