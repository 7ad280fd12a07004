"""What seeing and remembering costs: CarRacing side by side with and without V and M acting in it.

    python tests/benchmarks/bench_acting.py

The same environments step through the same actions; every other turn the policy is asked as well (what it answers is
thrown away, so that both turns drive the same way). Stock drawing is gymnasium's own, quick drawing is ours with the
same pixels. The limit is 15% on top of the environments' own time. Not a test: nothing here passes or fails.
"""

import argparse
import statistics
import time

import gymnasium as gym
import numpy as np
import torch

from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.environments.factory import EnvFactory
from wmlightning.environments.rows import RESET, STEP
from wmlightning.environments.vector import PixelVectorEnv
from wmlightning.networks.controller import Controller
from wmlightning.policies.latent import LatentPolicy
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

# Another way to gymnasium's own class: the factory knows CarRacing by its entry point and would draw it quickly.
gym.register("bench/StockCarRacing-v3", "gymnasium.envs.box2d:CarRacing", max_episode_steps=10_000)


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num-envs", type=int, default=8, help="environments side by side")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each kind")
    parser.add_argument("--steps", type=int, default=10, help="decisions in a turn")
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 2], help="worker processes")
    parser.add_argument("--threads", type=int, help="torch's threads while acting; by default torch's own choice")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    model, controller = MDNRNN(VAE(), MDNLSTM()).eval(), Controller()
    policy = LatentPolicy(model, controller, 0.1 * torch.randn(64, controller.size))

    print(f"{options.num_envs} environments, {torch.get_num_threads()} threads, medians of {options.rounds} turns")
    titles = ("drawing", "repeat", "workers", "env steps/s", "with V and M", "policy, ms", "on top")
    print("".join(f"{title:>13}" for title in titles))
    for drawing, id in (("stock", "bench/StockCarRacing-v3"), ("quick", "CarRacing-v3")):
        for repeat in (1, 4):
            factory = EnvFactory(id, action_repeat=repeat, time_limit=10_000, crop=[0, 84])
            for workers in options.workers:
                with factory.vector(options.num_envs, workers) as envs:
                    alone, acting = turns(envs, policy, options.rounds, options.steps)
                rates = [options.num_envs * repeat / seconds for seconds in (alone, acting)]
                percent = f"{100 * (acting / alone - 1):.1f}%"
                cells = (drawing, repeat, workers, *map(round, rates), f"{1000 * (acting - alone):.2f}", percent)
                print("".join(f"{cell:>13}" for cell in cells), flush=True)


def turns(envs: PixelVectorEnv, policy: LatentPolicy, rounds: int, steps: int) -> tuple[float, float]:
    """Seconds a decision of all environments takes, without and with the policy: medians over the turns."""
    n = envs.num_envs
    rng = np.random.default_rng(0)
    # Gently straight on: nobody leaves the field in the few decisions of a round.
    actions = rng.uniform([-0.1, -0.9, -1], [0.1, -0.7, -1], (steps, n, 3)).astype(np.float32)
    step, first = np.full(n, STEP, np.uint8), np.zeros(n, bool)
    carry = policy.begin(list(range(n)), list(range(n)))
    policy(envs.look(), ~first, carry)
    seconds: tuple[list[float], list[float]] = ([], [])
    for _ in range(rounds):
        for asked in (0, 1):
            envs.tick(np.full(n, RESET, np.uint8), seeds=np.arange(n))
            start = time.perf_counter()
            for action in actions:
                envs.tick(step, action)
                observation = envs.look()
                if asked:
                    _, carry = policy(observation, first, carry)
            seconds[asked].append((time.perf_counter() - start) / steps)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
