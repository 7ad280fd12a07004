"""How fast environments are: CarRacing against gymnasium's own, many environments in one, two or more processes, and
collecting Doom beside the environments on their own.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_environments.py [--only doom]

In one run, taking turns, medians over the rounds. Not a test: nothing here passes or fails.
"""

import argparse
import functools
import multiprocessing
import statistics
import tempfile
import time
from collections.abc import Callable
from multiprocessing.connection import Connection

import gymnasium as gym
import numpy as np
from gymnasium.vector import AsyncVectorEnv, AutoresetMode
from tqdm import tqdm

from datamodules.store import EpisodeStore
from datamodules.writer import BackgroundWriter, EpisodeWriter
from wmlightning.environments.car_racing import KEPT_ROWS, CarRacingOnDemand
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.policies import HeldActionsPolicy, SmoothNoisePolicy

Contender = Callable[[], tuple[float, float]]
"""Does a share of work and returns how much, and the seconds it took."""


def main() -> None:
    """Prints both tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="turns that each contender takes")
    parser.add_argument("--steps", type=int, default=100, help="environment steps of CarRacing in a turn")
    parser.add_argument("--num-envs", type=int, default=8, help="environments side by side")
    parser.add_argument("--only", choices=("car", "many", "doom"), help="one of the tables")
    options = parser.parse_args()
    if options.only in (None, "car"):
        one_car(options.rounds, options.steps)
    if options.only in (None, "many"):
        many(options.rounds, options.steps, options.num_envs)
    if options.only in (None, "doom"):
        doom(options.rounds, options.num_envs)


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


def doom(rounds: int, num_envs: int) -> None:
    """Collecting with 2 workers, policy and writer and all, beside the same environments in 2 processes of their own.

    The second is the environment's own rate in this layout: each process steps its half of the environments in turn
    with actions drawn beforehand and resets those that end. It waits for nobody, has no policy and keeps nothing.
    """
    for repeat in (1, 4):
        factory = EnvFactory("VizdoomTakeCover-v1", action_repeat=repeat)
        policy, alone, contenders = HeldActionsPolicy(1), Alone(factory, num_envs, 2), {}
        with factory.vector(num_envs, 2) as envs, tempfile.TemporaryDirectory() as folder:
            store = EpisodeStore(folder)

            def collecting(envs=envs, policy=policy, store=store, repeat=repeat) -> tuple[float, float]:
                start, first = time.perf_counter(), len(store)
                indices = list(range(first, first + 4 * num_envs * (1 if repeat == 1 else 3)))
                with BackgroundWriter(EpisodeWriter(store)) as writer:  # as `wmlightning collect` does
                    results = rollout(envs, policy, indices, indices=indices, writer=writer)
                return sum(result.env_steps for result in results), time.perf_counter() - start

            contenders["collected with 2 workers, game steps/s"] = collecting
            contenders["2 processes on their own, game steps/s"] = lambda alone=alone: alone.turn(3.0)
            try:
                medians = table(f"Doom, {num_envs} environments, action repeat {repeat}", contenders, rounds)
            finally:
                alone.close()
        collected, own = medians.values()
        print(f"  {'collected / on their own':<64}{collected / own:>10.2f}")


class Alone:
    """Environments that step by themselves in some processes, as fast as they can.

    Args:
        factory: what is played.
        num_envs: environments in all.
        processes: among which they are shared out.
    """

    def __init__(self, factory: EnvFactory, num_envs: int, processes: int) -> None:
        context = multiprocessing.get_context("spawn")
        self.pipes, self.processes = [], []
        for number in range(processes):
            ours, theirs = context.Pipe()
            share = len(range(number, num_envs, processes))
            process = context.Process(target=play_alone, args=(theirs, factory.make, share, number), daemon=True)
            process.start()
            self.pipes.append(ours)
            self.processes.append(process)
        for pipe in self.pipes:
            pipe.recv()

    def turn(self, seconds: float) -> tuple[float, float]:
        """Lets all of them play at once; returns the steps of all, and the seconds."""
        for pipe in self.pipes:
            pipe.send(seconds)
        rates = [pipe.recv() for pipe in self.pipes]
        return sum(steps / took for steps, took in rates) * seconds, seconds

    def close(self) -> None:
        """Ends the processes."""
        for pipe, process in zip(self.pipes, self.processes, strict=True):
            pipe.send(0)
            process.join()


def play_alone(pipe: Connection, make: Callable[[], gym.Env], count: int, number: int) -> None:
    """One such process's life."""
    envs, seed = [make() for _ in range(count)], 1000 * number
    actions = np.repeat(np.random.default_rng(number).uniform(-1, 1, (2000, 1)), 5, 0).astype(np.float32)
    for env in envs:
        env.reset(seed=seed)
    pipe.send(True)
    turn = 0
    while seconds := pipe.recv():
        start, steps = time.perf_counter(), 0
        while time.perf_counter() - start < seconds:
            turn += 1
            for place, env in enumerate(envs):
                _, _, terminated, truncated, info = env.step(actions[(turn + 97 * place) % len(actions)])
                steps += info["env_steps"]
                if terminated or truncated:
                    seed += 1
                    env.reset(seed=seed)
        pipe.send((steps, time.perf_counter() - start))
    for env in envs:
        env.close()


def _rollout(envs: object, policy: SmoothNoisePolicy, episodes: int) -> tuple[float, float]:
    start = time.perf_counter()
    results = rollout(envs, policy, list(range(episodes)))  # type: ignore[arg-type]
    return sum(result.decisions for result in results), time.perf_counter() - start


def table(title: str, contenders: dict[str, Contender], rounds: int) -> dict[str, float]:
    """Lets the contenders take turns; prints and returns the median of each."""
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
    return {name: statistics.median(values) for name, values in rates.items()}


if __name__ == "__main__":
    main()
