"""Which rows a batch is made of, as a pure function of (seed, batch count, lengths of the episodes).

A sampler has no state, so there is none to save, and a resumed run reads what an uninterrupted one would have read. Of
W processes with B windows each, process r takes windows r * B to (r + 1) * B of the global batch.
"""

from abc import ABC, abstractmethod
from typing import NamedTuple

import numpy as np

from datamodules.hashing import mix, permuted, uniform_below

Piece = tuple[int, int, int]
"""(episode, first row, rows): consecutive rows of one episode, counted as in memory."""


class Window(NamedTuple):
    """The rows of one sequence of a batch.

    Args:
        pieces: consecutive rows of one or more episodes, joined in this order.
        is_start: flags the first row as is_first, also where its episode began earlier.
    """

    pieces: list[Piece]
    is_start: bool = False


class Sampler(ABC):
    """Chooses the windows of a batch (abstract).

    Attributes:
        length: rows in a window.
        min_rows: rows of the shortest episode that is sampled.
    """

    length: int
    min_rows: int

    @abstractmethod
    def sample(self, lengths: np.ndarray, seed: int, batch: int, size: int) -> list[Window]:
        """Returns the windows of the global batch number `batch`.

        Args:
            lengths: rows of each episode, int64 (episodes,).
            seed: of the random stream, >= 0.
            batch: batches trained before this one, >= 0.
            size: windows in the global batch.

        Raises:
            ValueError: if no episode is long enough.
        """

    def usable(self, lengths: np.ndarray) -> np.ndarray:
        """Returns the positions of the episodes that can be sampled.

        Raises:
            ValueError: if every episode is too short.
        """
        positions = np.flatnonzero(lengths >= self.min_rows)
        if not len(positions):
            longest = int(lengths.max(initial=0))
            raise ValueError(
                f"the longest of {len(lengths)} episodes has {longest} rows ({max(longest - 1, 0)} steps) but windows "
                f"need {self.min_rows}: collect longer episodes, lower the sampler's length, or use ChainedWindows"
            )
        return positions


class UniformWindows(Sampler):
    """Draws a uniform episode, then a uniform start in it, the last possible start included.

    Source: PlaNet, Dreamer V1 and V2, World Models. (Dreamer V1's code leaves the last start out, so that an episode's
    final row is never sampled; its paper does not say so.)

    Args:
        length: rows in a window.
        weight: "episode" makes every episode equally likely, "step" every window of the store.
        flag_window_start: sets is_first at each window's start (Dreamer V2); otherwise only where an episode begins.
    """

    def __init__(self, length: int, weight: str = "episode", flag_window_start: bool = False) -> None:
        self.length = self.min_rows = _check_length(length)
        self.weight = _check_weight(weight)
        self.flag_window_start = flag_window_start

    def sample(self, lengths: np.ndarray, seed: int, batch: int, size: int) -> list[Window]:
        """See `Sampler.sample`."""
        positions = self.usable(lengths)
        starts = lengths[positions] - self.length + 1
        chosen, start = _draw_starts(starts, self.weight, seed, batch, size)
        return _windows(positions[chosen], start, self.length, self.flag_window_start)


class EndWeightedWindows(Sampler):
    """Draws a uniform episode, then a uniform row in it as start, moved back to the last start that fits.

    So the last window of an episode is drawn `length` times as often as another, and with it the terminal step that a
    continue head learns from.

    Source: Hafner et al. 2021 (Dreamer V2), replay; their code draws from one more start.

    Args:
        length: rows in a window.
        weight: "episode" makes every episode equally likely, "step" every row.
        flag_window_start: sets is_first at each window's start (Dreamer V2).
    """

    def __init__(self, length: int, weight: str = "episode", flag_window_start: bool = False) -> None:
        self.length = self.min_rows = _check_length(length)
        self.weight = _check_weight(weight)
        self.flag_window_start = flag_window_start

    def sample(self, lengths: np.ndarray, seed: int, batch: int, size: int) -> list[Window]:
        """See `Sampler.sample`."""
        positions = self.usable(lengths)
        rows = lengths[positions]
        chosen, start = _draw_starts(rows, self.weight, seed, batch, size)
        return _windows(
            positions[chosen], np.minimum(start, rows[chosen] - self.length), self.length, self.flag_window_start
        )


class ChainedWindows(Sampler):
    """Draws windows that continue in another episode where one ends, for episodes shorter than a window.

    A uniform row of a random episode begins the window; where its episode ends, a uniformly drawn one follows from its
    reset on, until the window is full. Each reset row carries is_first, which resets the state of the dynamics.

    Source: Ha and Schmidhuber 2018, whose Doom episodes are packed back to back (doomrnn/rnn_train.py).

    Args:
        length: rows in a window.
        weight: how the first episode is drawn: "episode" makes each equally likely, "step" each row.
        flag_window_start: sets is_first at each window's start as well.
    """

    min_rows = 1

    def __init__(self, length: int, weight: str = "episode", flag_window_start: bool = False) -> None:
        self.length = _check_length(length)
        self.weight = _check_weight(weight)
        self.flag_window_start = flag_window_start

    def sample(self, lengths: np.ndarray, seed: int, batch: int, size: int) -> list[Window]:
        """See `Sampler.sample`."""
        self.usable(lengths)
        chosen, starts = _draw_starts(lengths, self.weight, seed, batch, size)
        windows = []
        for row, (episode, start) in enumerate(zip(chosen.tolist(), starts.tolist(), strict=True)):
            pieces = [(episode, start, min(self.length, int(lengths[episode]) - start))]
            missing = self.length - pieces[0][2]
            while missing:
                episode = int(uniform_below(len(lengths), seed, batch, row, 1 + len(pieces))[0])
                pieces.append((episode, 0, min(missing, int(lengths[episode]))))
                missing -= pieces[-1][2]
            windows.append(Window(pieces, self.flag_window_start))
        return windows


class ConsecutiveWindows(Sampler):
    """Returns windows in order, so that a model can carry its state from each batch into the next.

    In each pass the episodes are shuffled, laid end to end and cut into as many equal streams as the batch has windows;
    batch k of the pass holds the k-th window of every stream. Row j of a batch continues row j of the batch before, and
    is_first marks every reset and the first row of every window in a pass's first batch. The rest of a stream, shorter
    than a window, is read in another pass.

    Streams are cut from one list of episodes: in a store that grows, they break off at the next epoch. So use it on a
    store that is complete.

    Source: Ha and Schmidhuber 2018, whose M for Doom keeps its state over an epoch (doomrnn/rnn_train.py).

    Args:
        length: rows in a window.
    """

    min_rows = 1

    def __init__(self, length: int) -> None:
        self.length = _check_length(length)

    def sample(self, lengths: np.ndarray, seed: int, batch: int, size: int) -> list[Window]:
        """See `Sampler.sample`; also raises ValueError if the store is too small to give every stream one window."""
        self.usable(lengths)
        stream = int(lengths.sum()) // size
        windows_per_stream = stream // self.length
        if not windows_per_stream:
            raise ValueError(
                f"the episodes have {int(lengths.sum())} rows but {size} streams of windows of {self.length} need "
                f"{size * self.length}: collect more, or lower the batch size or the sampler's length"
            )
        pass_number, step = divmod(batch, windows_per_stream)
        order = np.argsort(mix(seed, pass_number, np.arange(len(lengths))), kind="stable")
        ends = np.cumsum(lengths[order])
        windows = []
        for row in range(size):
            row_start = row * stream + step * self.length
            row_stop = row_start + self.length
            place = int(np.searchsorted(ends, row_start, side="right"))
            pieces: list[Piece] = []
            while row_start < row_stop:
                episode = int(order[place])
                end = int(ends[place])
                rows = min(row_stop, end) - row_start
                pieces.append((episode, row_start - end + int(lengths[episode]), rows))
                row_start += rows
                place += 1
            windows.append(Window(pieces, is_start=step == 0))
        return windows


class ShuffledFrames(Sampler):
    """Single rows, each once a pass, in an order that is a pure function of (seed, pass) and is never stored.

    Each place of the permutation is computed by itself (a Feistel network on the row number), so the order takes no
    memory however many frames the store has.
    """

    length = min_rows = 1

    def sample(self, lengths: np.ndarray, seed: int, batch: int, size: int) -> list[Window]:
        """See `Sampler.sample`."""
        self.usable(lengths)
        ends = np.cumsum(lengths)
        total = int(ends[-1])
        first = batch * size
        rows = np.empty(size, np.int64)
        for pass_number in range(first // total, (first + size - 1) // total + 1):
            start = max(first, pass_number * total)
            stop = min(first + size, (pass_number + 1) * total)
            places = np.arange(start, stop) - pass_number * total
            rows[start - first : stop - first] = permuted(places, total, seed, pass_number)
        episodes = np.searchsorted(ends, rows, side="right")
        return _windows(episodes, rows - ends[episodes] + lengths[episodes], 1, False)


def _draw_starts(starts: np.ndarray, weight: str, seed: int, batch: int, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Draws (episode, start) for each window; `starts` is the number of possible starts in each episode."""
    rows = np.arange(size)
    if weight == "step":
        ends = np.cumsum(starts)
        place = uniform_below(int(ends[-1]), seed, batch, rows, 0)
        chosen = np.searchsorted(ends, place, side="right")
        return chosen, place - ends[chosen] + starts[chosen]
    chosen = uniform_below(len(starts), seed, batch, rows, 0)
    # A second number of the same row: a window depends on its own row alone and not on the batch's size.
    return chosen, uniform_below(starts[chosen], seed, batch, rows, 1)


def _windows(episodes: np.ndarray, starts: np.ndarray, length: int, is_start: bool) -> list[Window]:
    return [
        Window([(episode, start, length)], is_start)
        for episode, start in zip(episodes.tolist(), starts.tolist(), strict=True)
    ]


def _check_length(length: int) -> int:
    if length < 1:
        raise ValueError(f"length is {length} but must be at least 1: give the rows of a window")
    return length


def _check_weight(weight: str) -> str:
    if weight not in ("episode", "step"):
        raise ValueError(f"weight is {weight!r} but must be 'episode' or 'step': choose one")
    return weight
