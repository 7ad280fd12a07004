"""Doom's M against a loop written by hand: episodes back to back, a memory that goes on, and forgets inside windows.

before step t: (c, h) = 0 where restart[t];   (c, h) = LSTM([z[t], action, restart[t]], (c, h))
-> mixture of z[t + 1], and a logit of the end with weight 10                        (papers.md 1.4; doomrnn.py)
"""

import math

import numpy as np
import pytest
import torch
from stage_support import episode
from torch.testing import assert_close

from datamodules.datamodule import EpisodeDataModule
from datamodules.datasets import WindowDataset
from datamodules.episode import Batch
from datamodules.samplers import ConsecutiveWindows
from datamodules.store import EpisodeStore
from wmlightning.dynamics import MDNLSTM
from wmlightning.stages.mdn_rnn import MDNRNN
from wmlightning.stages.vae import VAE

Z, A, H, K, STREAMS, WINDOW = 3, 1, 5, 2, 2, 6


@pytest.fixture
def packed(tmp_path):
    """Batches of one pass over a store of short episodes, in order."""
    store, rng = EpisodeStore(tmp_path / "codes"), np.random.default_rng(0)
    for number, steps in enumerate((3, 9, 4, 2, 11, 5, 7, 1)):
        observation = {"mean": rng.normal(size=(steps + 1, Z)), "logvar": np.full((steps + 1, Z), -80.0)}
        codes = {name: value.astype(np.float16) for name, value in observation.items()}
        store.append(episode(steps, codes, number, A, terminal=number != 4))
    data = EpisodeDataModule(store.path, WindowDataset(ConsecutiveWindows(WINDOW)), STREAMS, 4, 0.0)
    return list(data.train_dataloader())


@pytest.fixture
def model():
    torch.manual_seed(1)
    dynamics = MDNLSTM(Z, A, H, K, input_is_first=True)
    model = MDNRNN(VAE(Z, depth=1), dynamics, done_head=True, stateful=True)
    for parameter in (*dynamics.parameters(), *model.heads.parameters()):
        torch.nn.init.normal_(parameter, 0, 0.5)  # so that every input counts
    model.log_dict = lambda *args, **kwargs: None
    model.mean_over_ranks = lambda count: count
    return model


def by_hand(model: MDNRNN, stream: Batch):
    """-log p(z) per dimension and the weighted loss of the end, for every row of one stream that can be predicted."""
    cell, head, done = model.dynamics.cell, model.dynamics.head, model.heads.layers["done"]
    h = c = torch.zeros(H)
    codes, found = stream.observation["mean"][0].float(), {}
    for t in range(stream.shape[1] - 1):
        restart = bool(stream.is_first[0, t])
        if restart:
            h = c = torch.zeros(H)
        x = torch.cat([codes[t], stream.action[0, t + 1], torch.tensor([float(restart)])])
        i, f, g, o = (cell.input_weight @ x + cell.hidden_weight @ h + cell.bias).chunk(4)
        c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        h = torch.sigmoid(o) * torch.tanh(c)
        if stream.is_first[0, t + 1]:
            continue  # the next episode's first frame does not follow from this one's last
        logits, mean, log_std = head(h).view(3, K, Z)
        component = torch.log_softmax(logits, 0) - log_std - 0.5 * math.log(2 * math.pi)
        nats = -torch.logsumexp(component - 0.5 * ((codes[t + 1] - mean) / log_std.exp()) ** 2, 0).mean()
        over, p = bool(stream.is_terminal[0, t + 1]), torch.sigmoid(done(h))[0]
        found[t + 1] = nats, -10 * torch.log(p) if over else -torch.log(1 - p)
    return found


def test_the_streams_are_whole_episodes_laid_end_to_end(packed):
    for row in range(STREAMS):
        rows = torch.cat([batch.is_first[row] for batch in packed]), torch.cat([b.is_terminal[row] for b in packed])
        assert rows[0].sum() > 2, "Resets must fall inside windows, or nothing is tested here."
        assert bool((rows[0][1:][rows[1][:-1]]).all()), "After an end comes a beginning."


def test_stateful_training_on_packed_episodes_is_the_papers_loop(packed, model):
    streams = [[batch.map(lambda tensor, r=row: tensor[r : r + 1]) for batch in packed] for row in range(STREAMS)]
    losses = [model.training_step(batch, 0) for batch in packed]
    hand = [by_hand(model, joined(stream)) for stream in streams]
    for number, loss in enumerate(losses):
        rows = range(number * WINDOW, (number + 1) * WINDOW)
        parts = [found[t] for found in hand for t in rows if t in found]
        expected = torch.stack([nats + end for nats, end in parts]).mean()
        assert_close(loss, expected, rtol=1e-5, atol=1e-6)


def joined(batches: list[Batch]) -> Batch:
    def cat(read):
        return torch.cat([read(batch) for batch in batches], 1)

    observation = {name: cat(lambda batch, n=name: batch.observation[n]) for name in ("mean", "logvar")}
    names = ("action", "reward", "cont", "is_first", "is_terminal")
    return Batch(observation, *(cat(lambda batch, n=name: getattr(batch, n)) for name in names))
