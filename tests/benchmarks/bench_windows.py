"""How fast windows of frames are drawn from a store, and what that costs in memory and descriptors.

    python3 -m venv .venv-bench && .venv-bench/bin/pip install -e ".[bench]" -c requirements/ci-constraints.txt
    python tests/benchmarks/bench_windows.py

In one run, taking turns: ours (files of one episode each), a plain numpy copy of as many bytes from RAM, and the
memory-mapped replay buffer of sheeprl 0.8.4 in an interpreter of its own. Page cache hot, one thread each, medians.
Not a test: nothing here passes or fails.
"""

import argparse
import os
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from datamodules import Episode, EpisodeStore, FrameDataset, UniformWindows, WindowDataset

PEER_PYTHON = Path(__file__).parents[2] / ".venv-bench" / "bin" / "python"
SHAPE = (64, 64, 3)
ROWS = 1000

PEER = """
import sys, time
import numpy as np
from sheeprl.data.buffers import EnvIndependentReplayBuffer, SequentialReplayBuffer
folder, frames, batch, length = sys.argv[1], *map(int, sys.argv[2:])
envs = 4
buffer = EnvIndependentReplayBuffer(frames // envs, envs, ("image",), True, folder, buffer_cls=SequentialReplayBuffer)
rng = np.random.default_rng(0)
for _ in range(frames // envs // 1000):
    flags = np.zeros((1000, envs, 1), np.float32)
    image = rng.integers(0, 256, (1000, envs, 3, 64, 64), dtype=np.uint8)
    actions = np.zeros((1000, envs, 3), np.float32)
    buffer.add(dict(image=image, actions=actions, rewards=flags, terminated=flags, is_first=flags))
buffer.sample(batch, sequence_length=length)
print("ready", flush=True)
for line in sys.stdin:
    start = time.perf_counter()
    for _ in range(int(line)):
        buffer.sample(batch, sequence_length=length)
    print(time.perf_counter() - start, flush=True)
"""


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--peer-python", default=PEER_PYTHON, help="interpreter that has sheeprl")
    parser.add_argument("--frames", type=int, default=100_000, help="frames in the store")
    parser.add_argument("--batch", type=int, default=50, help="windows in a batch")
    parser.add_argument("--length", type=int, default=50, help="frames in a window")
    parser.add_argument("--rounds", type=int, default=9, help="turns that each contender takes")
    parser.add_argument("--episodes", type=int, default=10_000, help="files in the store of short episodes")
    parser.add_argument("--folder", help="where to put the stores for the time being (about 2.5 GB)")
    options = parser.parse_args()
    torch.set_num_threads(1)
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=memory if memory.is_dir() else options.folder) as folder:
        footprint(options.episodes, Path(folder))
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        speed(options, Path(folder))


def speed(options: argparse.Namespace, folder: Path) -> None:
    """Windows and frames per second of every contender."""
    batch, length = options.batch, options.length
    fill(folder / "store", options.frames // ROWS, ROWS, SHAPE)
    store = EpisodeStore(folder / "store")
    names, rng = store.listing, np.random.default_rng(1)
    memory = np.empty((len(store) * ROWS, *SHAPE), np.uint8)
    for index in range(len(store)):
        memory[index * ROWS : (index + 1) * ROWS] = store.read(index).observation["image"]
    target = np.zeros((batch, length, *SHAPE), np.uint8)
    windows, frames = WindowDataset(UniformWindows(length)), FrameDataset()
    number = iter(range(10**9))

    def copy() -> None:
        for place, start in enumerate(rng.integers(0, len(memory) - length + 1, batch)):
            target[place] = memory[start : start + length]

    peer = start_peer(options, folder / "peer")
    contenders: dict[str, Callable[[int], float]] = {
        "datamodules": lambda n: timed(lambda: windows.draw(store, names, 0, next(number), batch), n),
        "numpy copy from RAM": lambda n: timed(copy, n),
        "single frames, 100 a batch": lambda n: timed(lambda: frames.draw(store, names, 0, next(number), 100), n),
    }
    if peer is not None:
        contenders["sheeprl 0.8.4, memory-mapped"] = lambda n: ask(peer, n)
    resident = [resident_megabytes()]
    turns = 10
    for run in contenders.values():
        run(turns)
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for _ in range(options.rounds):
        for name, run in contenders.items():
            seconds[name].append(run(turns) / turns)
    resident.append(resident_megabytes())

    single = statistics.median(seconds.pop("single frames, 100 a batch"))
    ours = statistics.median(seconds["datamodules"])
    print(f"\n{batch} windows of {length} frames {SHAPE} from {options.frames:,} frames, {options.rounds} rounds")
    print(f"{'':30}{'ms/batch':>10}{'windows/s':>12}{'GB/s':>8}{'ours is':>10}")
    for name, taken in seconds.items():
        median = statistics.median(taken)
        rate, bandwidth = batch / median, target.nbytes / median / 1e9
        print(f"{name:30}{median * 1e3:10.2f}{rate:12,.0f}{bandwidth:8.1f}{median / ours:9.2f}x")
    print(f"single shuffled frames, 100 a batch: {100 / single:,.0f} frames/s")
    source = memory.nbytes / 1e6
    print(f"resident memory before and after: {resident[0]:.0f} and {resident[1]:.0f} MB, of which {source:.0f} MB are")
    print("the source of the plain copy")
    if peer is not None:
        peer.stdin.close()  # type: ignore[union-attr]
        peer.wait()


def footprint(episodes: int, folder: Path) -> None:
    """Resident memory and descriptors with many files."""
    fill(folder, episodes, 20, (16, 16, 3))
    store = EpisodeStore(folder)
    windows, names = WindowDataset(UniformWindows(10)), store.listing
    before, descriptors = resident_megabytes(), open_descriptors()
    for index in range(episodes):
        store.read(index, rows=1)
    known = resident_megabytes()
    for number in range(1000):
        windows.draw(store, names, 0, number, 50)
    print(
        f"\n{episodes:,} episodes ({store.num_bytes / 1e6:,.0f} MB), each read once, then 1,000 batches of 50 windows"
    )
    print(
        f"resident memory: {before:.0f} MB, {known:.0f} MB with every offset known, {resident_megabytes():.0f} MB after"
    )
    print(f"open descriptors before and after: {descriptors} and {open_descriptors()}")


def fill(folder: Path, episodes: int, rows: int, shape: tuple[int, ...]) -> None:
    """Writes random episodes."""
    store, rng = EpisodeStore(folder), np.random.default_rng(0)
    first = np.arange(rows) == 0
    for index in range(episodes):
        image = rng.integers(0, 256, (rows, *shape), dtype=np.uint8)
        action = np.where(first[:, None], 0, rng.uniform(-1, 1, (rows, 3))).astype(np.float32)
        reward = np.where(first, 0, rng.normal(size=rows)).astype(np.float32)
        store.append(Episode({"image": image}, action, reward, first, np.zeros(rows, np.bool_)), index)


def start_peer(options: argparse.Namespace, folder: Path) -> "subprocess.Popen[str] | None":
    """The peer's process, waiting to be asked; None where there is no interpreter for it."""
    python = options.peer_python
    if not Path(python).exists() or subprocess.run([python, "-c", "import sheeprl"], capture_output=True).returncode:
        print("sheeprl is left out: install the extra [bench] as said at the top of this file, or give --peer-python")
        return None
    numbers = [str(number) for number in (options.frames, options.batch, options.length)]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    command = [python, "-W", "ignore", "-c", PEER, str(folder), *numbers]
    peer = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment)
    while True:
        line = peer.stdout.readline()  # type: ignore[union-attr]
        if line.strip() == "ready":
            return peer
        if not line:
            print("sheeprl is left out: its process ended early")
            return None


def ask(peer: "subprocess.Popen[str]", batches: int) -> float:
    """Seconds the peer takes for some batches."""
    print(batches, file=peer.stdin, flush=True)
    return float(peer.stdout.readline())  # type: ignore[union-attr]


def timed(draw: Callable[[], object], batches: int) -> float:
    """Seconds for some batches."""
    start = time.perf_counter()
    for _ in range(batches):
        draw()
    return time.perf_counter() - start


def resident_megabytes() -> float:
    """Resident memory of this process."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1e6


def open_descriptors() -> int:
    """Files that this process holds open."""
    return len(os.listdir("/proc/self/fd"))


if __name__ == "__main__":
    main()
