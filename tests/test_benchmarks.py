"""The benchmarks still run: each once, with as little work as it takes. What they measure is read by people."""

import shlex
import subprocess
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parent / "benchmarks"
ONCE = "--rounds 1 --repetitions 1"
LEAST = {
    "bench_acting": "--num-envs 2 --rounds 1 --steps 2 --workers 0",
    "bench_cem": "--envs 1 --rounds 1 --heads 2x200 --precisions float32",
    "bench_cmaes": "--sizes 20 --population 8 --generations 26",
    "bench_dreamer": f"{ONCE} --rows v2-8x16 --allocators kept",
    "bench_dreaming": f"{ONCE} --rows 'LSTM 256, shared'",
    "bench_environments": "--rounds 1 --steps 8 --only car",
    "bench_mdn_rnn": f"{ONCE} --rows transitions",
    "bench_planet": f"{ONCE} --allocator kept --rows 'frames, training'",
    "bench_vae": ONCE,
    "bench_windows": "--frames 2000 --rounds 1 --episodes 20",
}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("bench_*.py")))
def test_every_benchmark_runs(name):
    command = [sys.executable, str(FOLDER / f"{name}.py"), *shlex.split(LEAST[name])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    assert len(done.stdout.splitlines()) > 1
