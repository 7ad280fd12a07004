"""What seeing and remembering costs: CarRacing side by side with and without V and M acting in it.

    python tests/benchmarks/bench_acting.py

The same environments play the same short episodes with the same actions, resets included; every other turn in a rollout
whose policy is V, M and a population of controllers (what they answer is thrown away, so that both turns drive the same
way). Stock drawing is gymnasium's own, quick drawing is ours with the same pixels. The limit is 15% on top of the
environments' own time. Not a test: nothing here passes or fails.
"""

import argparse
import statistics
import time

import gymnasium as gym
import numpy as np
import torch

from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rollout import rollout
from wmlightning.environments.rows import RESET, STEP
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.interfaces import Carry
from wmlightning.networks.controller import Controller
from wmlightning.policies.latent import LatentPolicy
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

# Another way to gymnasium's own class: the factory knows CarRacing by its entry point and would draw it quickly.
gym.register("bench/StockCarRacing-v3", "gymnasium.envs.box2d:CarRacing", max_episode_steps=10_000)
DRAWING = {"stock": "bench/StockCarRacing-v3", "quick": "CarRacing-v3"}


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=8, help="environments side by side")
    parser.add_argument("--rounds", type=int, default=5, help="turns of each kind")
    parser.add_argument("--steps", type=int, default=20, help="decisions in an episode")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="worker processes")
    parser.add_argument("--drawing", nargs="+", default=list(DRAWING), choices=list(DRAWING), help="whose drawing")
    parser.add_argument("--threads", type=int, help="torch's threads while acting; by default torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, controller = MDNRNN(VAE(), MDNLSTM()).eval(), Controller()
    policy = LatentPolicy(model, controller, 0.1 * torch.randn(64, controller.size))

    print(f"{options.num_envs} environments, {torch.get_num_threads()} threads, medians of {options.rounds} turns")
    titles = ("drawing", "repeat", "workers", "env steps/s", "with V and M", "policy, ms", "on top")
    print("".join(f"{title:>13}" for title in titles))
    for drawing in options.drawing:
        for repeat in (1, 4):
            factory = EnvFactory(
                DRAWING[drawing], action_repeat=repeat, time_limit=repeat * options.steps, crop=[0, 84]
            )
            for workers in options.workers:
                with factory.vector(options.num_envs, workers) as envs:
                    alone, acting = turns(envs, policy, options.rounds, options.steps)
                rates = [options.num_envs * repeat / seconds for seconds in (alone, acting)]
                percent = f"{100 * (acting / alone - 1):.1f}%"
                cells = (drawing, repeat, workers, *map(round, rates), f"{1000 * (acting - alone):.2f}", percent)
                print("".join(f"{cell:>13}" for cell in cells), flush=True)


class Asked:
    """A policy that is asked and not obeyed: a row's actions are those given for its seed."""

    def __init__(self, policy: LatentPolicy, actions: np.ndarray) -> None:
        self.policy, self.actions = policy, actions

    def initial(self, n: int, seeds: list[int] | None = None) -> Carry:
        """Fresh rows; `rollout` is told how to begin."""
        return self.policy.initial(n, seeds)

    def __call__(
        self, observation: dict[str, np.ndarray], is_first: np.ndarray, carry: Carry
    ) -> tuple[np.ndarray, Carry]:
        """Asks, and acts as given."""
        step, seed = carry["step"].numpy(), carry["seed"].numpy()
        _, carry = self.policy(observation, is_first, carry)
        return self.actions[step, seed], carry


def turns(envs: PixelVectorEnv, policy: LatentPolicy, rounds: int, steps: int) -> tuple[float, float]:
    """Seconds a decision of all environments takes, without and with the policy: medians over the turns."""
    n = envs.num_envs
    rng = np.random.default_rng(0)
    # Gently straight on: nobody leaves the field in the few decisions of a round.
    actions = rng.uniform([-0.1, -0.9, -1], [0.1, -0.7, -1], (steps, n, 3)).astype(np.float32)
    step = np.full(n, STEP, np.uint8)
    asked, rows = Asked(policy, actions), list(range(n))
    seconds: tuple[list[float], list[float]] = ([], [])
    for turn in range(2 * rounds + 1):
        start = time.perf_counter()
        if turn % 2:
            rollout(envs, asked, rows, begin=lambda jobs: policy.begin(jobs, jobs))
        else:
            envs.tick(np.full(n, RESET, np.uint8), seeds=np.arange(n))
            for action in actions:
                envs.tick(step, action)
        if turn:  # the first warms up
            seconds[turn % 2].append((time.perf_counter() - start) / steps)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
