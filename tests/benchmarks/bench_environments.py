"""How fast environments are: CarRacing against gymnasium's own, and many environments in one, two or more processes.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_environments.py

In one run, taking turns, medians over the rounds. Not a test: nothing here passes or fails.
"""

import argparse
import functools
import statistics
import time
from collections.abc import Callable

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from tqdm import tqdm

from wmlightning.environments.car_racing import KEPT_ROWS, CarRacingOnDemand
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies import SmoothNoisePolicy

Contender = Callable[[], tuple[float, float]]
"""Does a share of work and returns how much, and the seconds it took."""


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each contender takes")
    parser.add_argument("--steps", type=int, default=100, help="environment steps of CarRacing in a turn")
    parser.add_argument("--num-envs", type=int, default=8, help="environments side by side")
    options = parser.parse_args()
    one_car(options.rounds, options.steps)
    many(options.rounds, options.steps, options.num_envs)


def one_car(rounds: int, steps: int) -> None:
    """One CarRacing: gymnasium's, and ours with each frame drawn, with every fourth drawn, and with none."""
    stock, ours = gym.make("CarRacing-v3", max_episode_steps=-1), CarRacingOnDemand(render_mode="rgb_array")
    repeated = EnvFactory("CarRacing-v3", action_repeat=4).make()
    actions = np.random.default_rng(0).uniform([-0.3, 0, 0], [0.3, 0.2, 0.1], (steps, 3)).astype(np.float32)

    def play(reset: Callable, step: Callable, count: int) -> tuple[float, float]:
        reset(seed=0)
        start = time.perf_counter()
        for action in actions[:count]:
            step(action)
        return steps, time.perf_counter() - start

    def drawn(action: np.ndarray) -> None:
        ours.step(action)
        ours.look(slice(0, KEPT_ROWS))

    def resets(env: gym.Env) -> tuple[float, float]:
        start = time.perf_counter()
        for seed in range(5):
            env.reset(seed=seed)
        return 5, time.perf_counter() - start

    contenders: dict[str, Contender] = {
        "gymnasium's CarRacing, steps/s": lambda: play(stock.reset, stock.step, steps),
        "ours, every frame drawn, steps/s": lambda: play(ours.reset, drawn, steps),
        "ours, action repeat 4, 64x64, steps/s": lambda: play(repeated.reset, repeated.step, steps // 4),
        "ours, nothing drawn, steps/s": lambda: play(ours.reset, ours.step, steps),
        "gymnasium's CarRacing, resets/s": lambda: resets(stock),
        "ours, resets/s": lambda: resets(ours),
    }
    table("one CarRacing-v3", contenders, rounds)


def many(rounds: int, steps: int, num_envs: int) -> None:
    """Rollouts of CarRacing and of a dummy with 0, 1 and 2 workers; gymnasium's processes beside the dummy's."""
    car = EnvFactory("CarRacing-v3", action_repeat=4, time_limit=steps)
    dummy = EnvFactory("wmlightning/DummyPixels-v0", kwargs={"steps": 50})
    contenders: dict[str, Contender] = {}
    closing = []
    for name, factory, policy in (
        ("CarRacing, repeat 4", car, SmoothNoisePolicy(3)),
        ("dummy", dummy, SmoothNoisePolicy(2)),
    ):
        for workers in (0, 1, 2):
            envs = factory.vector(num_envs, workers)
            closing.append(envs)
            contenders[f"{name}, {workers} workers, decisions/s"] = functools.partial(
                _rollout, envs, policy, 2 * num_envs
            )
    processes = AsyncVectorEnv(
        [dummy.make] * num_envs, autoreset_mode=AutoresetMode.DISABLED, context="spawn", shared_memory=True
    )
    closing.append(processes)

    def gymnasiums() -> tuple[float, float]:
        start = time.perf_counter()
        for _ in range(2):
            processes.reset(seed=0)
            for _ in range(50):
                processes.step(np.zeros((num_envs, 2), np.float32))
        return 100 * num_envs, time.perf_counter() - start

    contenders[f"dummy, gymnasium's AsyncVectorEnv, {num_envs} processes, no policy"] = gymnasiums
    try:
        table(f"{num_envs} environments side by side", contenders, rounds)
    finally:
        for envs in closing:
            envs.close()


def _rollout(envs: object, policy: SmoothNoisePolicy, episodes: int) -> tuple[float, float]:
    start = time.perf_counter()
    results = rollout(envs, policy, list(range(episodes)))  # type: ignore[arg-type]
    return sum(result.decisions for result in results), time.perf_counter() - start


def table(title: str, contenders: dict[str, Contender], rounds: int) -> None:
    """Lets the contenders take turns and prints the median of each."""
    rates: dict[str, list[float]] = {name: [] for name in contenders}
    for contend in contenders.values():
        contend()
    for _ in tqdm(range(rounds), desc=title, leave=False):
        for name, contend in contenders.items():
            done, seconds = contend()
            rates[name].append(done / seconds)
    print(f"\n{title}")
    for name, values in rates.items():
        print(f"  {name:<64}{statistics.median(values):>10,.0f}   ({min(values):,.0f} to {max(values):,.0f})")


if __name__ == "__main__":
    main()
