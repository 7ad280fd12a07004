import numpy as np
import pytest
import torch

from datamodules.episode import Batch, Episode


def arrays(rows=4, action_rows=4):
    first = np.arange(rows) == 0
    return (
        {"image": np.zeros((rows, 2, 2, 3), np.uint8)},
        np.zeros((action_rows, 2), np.float32),
        np.arange(rows, dtype=np.float32),
        first,
        np.zeros(rows, np.bool_),
    )


def test_an_episode_knows_its_steps_return_and_spec():
    episode = Episode(*arrays(), metadata={"discrete": True})
    assert (len(episode), episode.num_steps, episode.total_reward) == (4, 3, 6.0)
    assert episode.spec.observation == {"image": ((2, 2, 3), "uint8")}
    assert episode.spec.action_size == 2
    assert episode.spec.discrete


def test_every_array_of_an_episode_has_as_many_rows():
    with pytest.raises(ValueError, match="action has 3 rows but reward has 4"):
        Episode(*arrays(action_rows=3))


def test_a_reward_that_is_not_a_number_is_refused():
    observation, action, reward, first, terminal = arrays()
    reward[2] = np.nan
    with pytest.raises(ValueError, match=r"reward\[2\] is nan"):
        Episode(observation, action, reward, first, terminal)


def test_a_batch_moves_to_a_device_as_a_whole():
    tensors = [torch.zeros(2, 3) for _ in range(5)]
    batch = Batch({"image": torch.zeros(2, 3, 8, dtype=torch.uint8)}, *tensors)
    moved = batch.to("meta")
    assert batch.shape == (2, 3)
    assert moved.observation["image"].device.type == moved.is_terminal.device.type == "meta"
