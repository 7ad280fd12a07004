"""Worker processes for environments: started without fork, watched, and restarted when they die.

A worker is a fresh Python that imports no torch (0.5 s), builds its environments and then waits. The parent writes
orders into the shared buffers and sends the worker a message with their indices; the worker carries them out and sends
one byte back. Messages queue in the pipe, so a worker that was sent several never waits for its parent.

    parent   message: buffer 0      message: buffers 0-15, message: buffers 16-31
    worker   an order a row, byte   16 orders a row, byte                          16 orders a row, byte

Started afresh rather than forked, because forking a process whose torch threads run can hang the child, and because a
worker then depends on nothing but the shared buffers: killed at any moment, it is replaced.
"""

import contextlib
import json
import mmap
import os
import pickle
import signal
import struct
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait

import gymnasium as gym
import numpy as np

from wmlightning.environments.rows import IDLE, Rows, buffers_over

DONE, FAILED = b"d", b"f"
MESSAGE = struct.Struct("2i")
"""First buffer index, and one beyond the last."""
START_SECONDS = 120.0
"""A worker has this long to import and build its environments."""


class Workers:
    """The worker processes of a vector environment and the buffers they share.

    Args:
        make: builds one environment; must be picklable, and what it needs importable in a fresh Python.
        sizes: rows, action size, side and channels of the image: the arguments of `rows.buffer_over`.
        num_workers: processes; the rows are shared out evenly, neighbours together.
        timeout: seconds a worker may take over one message before it counts as hung.

    Raises:
        RuntimeError: if a worker cannot start.
    """

    def __init__(self, make: Callable[[], gym.Env], sizes: tuple[int, ...], num_workers: int, timeout: float) -> None:
        self.owner = os.getpid()
        self.make, self.sizes, self.timeout = make, sizes, timeout
        self.file = _shared_file(buffers_over(None, *sizes)[1])
        self.buffers = buffers_over(memoryview(mmap.mmap(self.file, 0)), *sizes)[0]
        self.rows = [part.tolist() for part in np.array_split(np.arange(sizes[0]), num_workers)]
        self.processes: list[subprocess.Popen] = []
        self.connections: list[Connection] = []
        self.pending: list[deque[range]] = [deque() for _ in self.rows]
        self.last_answer = [0.0] * num_workers
        try:
            for rows in self.rows:
                process, connection = self._start(rows)
                self.processes.append(process)
                self.connections.append(connection)
            for number in range(num_workers):
                self._await_start(number)
        except BaseException:
            self.close()
            raise

    def tick(self) -> np.ndarray:
        """Has every worker carry out its rows' orders of the first buffer, and waits for all.

        Returns:
            bool (rows,), rows whose worker died or hung. A warning has named it, and its successor is ready.

        Raises:
            RuntimeError: if an environment raises, with the worker's message.
        """
        for number, rows in enumerate(self.rows):
            if (self.buffers[0].order[rows] != IDLE).any():
                self.send(number, range(1))
        lost = np.zeros(self.sizes[0], bool)
        while self.busy:
            lost |= self.receive()[1]
        return lost

    @property
    def busy(self) -> bool:
        """Whether an answer of any worker is outstanding."""
        return any(self.pending)

    def send(self, number: int, buffer_indices: range) -> None:
        """Has a worker carry out its rows' orders of some buffers, after what it was sent before."""
        if not self.pending[number]:
            self.last_answer[number] = time.monotonic()
        self.pending[number].append(buffer_indices)
        with contextlib.suppress(OSError):  # A dead worker shows when its answer is read.
            self.connections[number].send_bytes(MESSAGE.pack(buffer_indices.start, buffer_indices.stop))

    def receive(self) -> tuple[list[tuple[int, range]], np.ndarray]:
        """Waits until a worker answers what it was sent, dies or hangs.

        Returns:
            Workers, each with the buffers that it has carried out; and the rows that are lost, as `tick` says. A lost
            worker answers nothing more.

        Raises:
            RuntimeError: if an environment raises, with the worker's message.
        """
        waiting_for = [number for number, pending in enumerate(self.pending) if pending]
        patience = min(self.last_answer[number] for number in waiting_for) + self.timeout - time.monotonic()
        ready = wait([self.connections[number] for number in waiting_for], max(0.0, patience))
        done, lost, now = [], np.zeros(self.sizes[0], bool), time.monotonic()
        for number in waiting_for:
            answers = self.connections[number] in ready
            if answers and self._answered(number):
                done.append((number, self.pending[number].popleft()))
                self.last_answer[number] = now
            elif answers or now - self.last_answer[number] >= self.timeout:
                lost[self.rows[number]] = True
                self._replace(number, hung=not answers)
        return done, lost

    def close(self) -> None:
        """Ends every worker: they leave when their connection closes, and are killed if they do not."""
        if self.owner != os.getpid():
            return
        for connection in self.connections:
            connection.close()
        for process in self.processes:
            try:
                process.wait(timeout=1.0)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.processes, self.connections = [], []

    def _start(self, rows: list[int]) -> tuple[subprocess.Popen, Connection]:
        ours, theirs = Pipe()
        code = (
            "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
            "from wmlightning.environments.workers import serve; serve(int(sys.argv[2]))"
        )
        path = json.dumps([entry for entry in sys.path if isinstance(entry, str)])
        # One thread each: the workers are the parallelism.
        threads = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
        process = subprocess.Popen(
            [sys.executable, "-c", code, path, str(theirs.fileno())],
            pass_fds=(theirs.fileno(), self.file),
            env=os.environ | threads,
            stdin=subprocess.DEVNULL,
        )
        theirs.close()
        with contextlib.suppress(OSError):
            ours.send(os.getpid())
            ours.send(self.file)
            ours.send(self.sizes)
            ours.send(rows)
            ours.send_bytes(self._pickled())
        return process, ours

    def _pickled(self) -> bytes:
        try:
            return pickle.dumps(self.make)
        except (pickle.PicklingError, AttributeError, TypeError) as error:
            raise RuntimeError(
                f"an environment cannot be sent to a worker ({error}): define its class in a module rather than in a "
                "function, or use num_workers=0"
            ) from error

    def _await_start(self, number: int) -> None:
        connection, process = self.connections[number], self.processes[number]
        answered = connection.poll(START_SECONDS)
        if not (answered and self._answered(number)):
            process.kill()
            raise RuntimeError(
                f"environment worker {number} "
                + (f"left with exit code {process.wait()}" if answered else f"was not ready in {START_SECONDS:.0f} s")
                + " while starting: try num_workers=0 to see why"
            )

    def _answered(self, number: int) -> bool:
        """Reads an answer: whether the worker carried out its orders; False if it is gone."""
        try:
            answer = self.connections[number].recv_bytes()
        except (EOFError, OSError):
            return False
        if answer == DONE:
            return True
        self.pending[number].clear()
        raise RuntimeError(f"environment worker {number}: {answer[len(FAILED) :].decode()}")

    def _replace(self, number: int, hung: bool) -> None:
        process, rows = self.processes[number], self.rows[number]
        if hung:
            process.kill()
        code = process.wait()
        reason = f"did not answer for {self.timeout:g} s and was killed" if hung else f"died with exit code {code}"
        warnings.warn(
            f"environment worker {number} (process {process.pid}, rows {rows[0]} to {rows[-1]}) {reason}; it is "
            "restarted and the episodes it was playing are begun again",
            stacklevel=4,
        )
        self.pending[number].clear()
        self.connections[number].close()
        self.processes[number], self.connections[number] = self._start(rows)
        self._await_start(number)


def serve(handle: int) -> None:
    """Runs in the worker: builds environments, then answers each message with a byte, until the connection closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    connection = Connection(handle)
    parent, file, sizes, rows = (connection.recv() for _ in range(4))
    # What an environment starts (ViZDoom's engine) must not hold them too: a dead worker's connection would look alive.
    os.set_inheritable(handle, False)
    os.set_inheritable(file, False)
    threading.Thread(target=_leave_with, args=(parent,), daemon=True).start()
    try:
        import cv2

        cv2.setNumThreads(1)
        make = pickle.loads(connection.recv_bytes())
        envs = Rows(make, buffers_over(memoryview(mmap.mmap(file, 0)), *sizes)[0], rows)
        connection.send_bytes(DONE)
        while True:
            envs.run(range(*MESSAGE.unpack(connection.recv_bytes())))
            connection.send_bytes(DONE)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return
    except Exception as error:
        with contextlib.suppress(OSError):
            connection.send_bytes(FAILED + str(error).encode())


def _leave_with(parent: int) -> None:
    """Ends this process soon after its parent, even where an environment hangs."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def _shared_file(size: int) -> int:
    """A file descriptor of memory that lives as long as a process holds it."""
    if hasattr(os, "memfd_create"):
        file = os.memfd_create("wmlightning-environments")
    else:
        with tempfile.TemporaryFile() as temporary:
            file = os.dup(temporary.fileno())
    os.ftruncate(file, size)
    return file
