"""Models of which a part lives on several ranks."""

import pytest
import torch.distributed as dist
from torch import nn

from sklearn_implicitreg import ImplicitRegularizationEstimator
from sklearn_implicitreg.problem import ranks_of


class DistributedDataParallel(nn.Module):
    """What is known of torch's: its name."""


class FullyShardedDataParallel(nn.Module):
    """The same."""


def test_whole_models_of_one_process_are_on_no_ranks():
    assert ranks_of(nn.Sequential(nn.Linear(2, 1))) is None
    assert ranks_of(nn.Sequential(DistributedDataParallel())) is None


@pytest.mark.parametrize(
    ("part", "words"),
    [
        (DistributedDataParallel, "around the whole model, got it around a part of Sequential"),
        (FullyShardedDataParallel, "got one of FullyShardedDataParallel; shard it by"),
    ],
    ids=["data parallel", "sharded by the first FSDP"],
)
def test_a_part_on_several_ranks_is_an_error(part, words, monkeypatch):
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    net = nn.Sequential(nn.Linear(2, 1), part())
    with pytest.raises(ValueError, match=words):
        ImplicitRegularizationEstimator(net, loss="mse").fit([[1.0, 2.0]], [[1.0]])
