"""Ranks of one run: who they are, how they share a model, what they tell each other.

`torchrun` starts the processes and ends all when one fails. DDP keeps a whole model on each rank
(Li et al. 2020); FSDP2 a slice of each block's weights, gradients and optimiser state (Zhao et al.
2023). Counts, clocks and figures travel as small host tensors; rank 0 alone writes.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FSDPModule, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel

from training.errors import CheckpointError, ConfigError
from training.model import Block

T = TypeVar("T")
PATIENCE = timedelta(hours=6)  # rank 0 may prepare a large corpus while the others wait


@dataclass(frozen=True)
class Ranks:
    """This process among `world` of them; alone, every exchange is the identity."""

    rank: int = 0
    world: int = 1

    @property
    def first(self) -> bool:
        return self.rank == 0

    def sum(self, values: Mapping[str, float]) -> dict[str, float]:
        """The sum over all ranks of each number; the ranks may know different names."""
        if self.world == 1:
            return dict(values)
        total: dict[str, float] = {}
        for part in self.gather(dict(values)):
            for name, value in part.items():
                total[name] = total.get(name, 0) + value
        return total

    def gather(self, value: T) -> list[T]:
        """The values of all ranks, in their order."""
        values: list[Any] = [value] * self.world
        if self.world > 1:
            dist.all_gather_object(values, value)
        return values

    def agree(self, value: T) -> T:
        """Rank 0's value: for whatever depends on a clock."""
        values: list[Any] = [value]
        if self.world > 1:
            dist.broadcast_object_list(values, src=0)
        agreed: T = values[0]
        return agreed

    def wait(self) -> None:
        self.gather(None)

    @contextmanager
    def first_alone(self) -> Iterator[None]:
        """Rank 0 goes through the body before the others do: it makes files that they read."""
        if not self.first:
            self.wait()
        yield
        if self.first:
            self.wait()


@contextmanager
def joined(device: torch.device) -> Iterator[Ranks]:
    """The ranks that torchrun started, or this process alone; leaves the group at the end.

    After an error the group is left as it is: the process ends, and torchrun ends the others.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    if dist.is_initialized():  # within a pipeline, which leaves the group itself
        yield Ranks(dist.get_rank(), dist.get_world_size())
        return
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    dist.init_process_group(backend, timeout=PATIENCE)
    yield Ranks(dist.get_rank(), dist.get_world_size())
    dist.destroy_process_group()


def device_of_rank(device: torch.device) -> torch.device:
    """Each rank of a machine has the GPU of its own number; made the current one."""
    if device.type != "cuda":
        return device
    if "LOCAL_RANK" in os.environ:
        index = int(os.environ["LOCAL_RANK"])
        if index >= torch.cuda.device_count():
            raise ConfigError(
                f"rank {index} of this machine: it has {torch.cuda.device_count()} GPUs; "
                "start as many ranks, or give --device cpu"
            )
        device = torch.device("cuda", index)
        torch.cuda.set_device(device)
    return device


ALONE = Ranks()


def require_even(accumulate: int, ranks: Ranks) -> None:
    """Raises ConfigError unless each rank has as many micro-batches of a step as the others."""
    if accumulate % ranks.world:
        raise ConfigError(f"accumulate = {accumulate}: must be a multiple of {ranks.world} ranks")


def share(module: nn.Module, parallel: str, ranks: Ranks) -> nn.Module:
    """`module` to be called on every rank; its gradients are the mean over the ranks'."""
    if ranks.world == 1:
        return module
    if parallel == "fsdp":
        # Keys and values, which a block returns, are views; nothing here writes into them.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        device = next(module.parameters()).device
        mesh = init_device_mesh(device.type, (ranks.world,))
        for part in module.modules():
            if isinstance(part, Block):
                fully_shard(part, mesh=mesh)
        fully_shard(module, mesh=mesh)
        return module
    # A micro-batch of one form leaves the heads of other forms without a gradient.
    unused = any(not name.startswith("model.") for name, _ in module.named_parameters())
    return DistributedDataParallel(
        module, find_unused_parameters=unused, broadcast_buffers=False, gradient_as_bucket_view=True
    )


@contextmanager
def exchanging(module: nn.Module, last: bool) -> Iterator[None]:
    """Gradients meet once a step, in the backward pass of its last micro-batch."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(last)
        module.set_is_last_backward(last)
    if isinstance(module, DistributedDataParallel) and not last:
        with module.no_sync():
            yield
    else:
        yield


@contextmanager
def unsharded(module: nn.Module) -> Iterator[None]:
    """Within, each rank has the whole module and may call its parts on its own.

    All ranks enter; gathering once is also cheaper than once a token while decoding.
    """
    if not isinstance(module, FSDPModule):
        yield
        return
    parts = [part for part in module.modules() if isinstance(part, FSDPModule)]
    module.set_reshard_after_forward(False)
    for part in parts:
        part.unshard()
    yield
    for part in parts:
        part.reshard()
    module.set_reshard_after_forward(True)
    module.set_reshard_after_forward(False, recurse=False)  # the root's are needed at once


def local(tensor: Tensor) -> Tensor:
    """This rank's slice of a sharded tensor, sharing its memory; else the tensor."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def whole(tensor: Tensor) -> Tensor:
    """A sharded tensor as a plain one; every rank has to ask."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def collect(tensors: Iterable[tuple[str, Tensor]], ranks: Ranks) -> dict[str, Tensor]:
    """Whole tensors on rank 0's host, one at a time; the other ranks take part and get none."""
    found: dict[str, Tensor] = {}
    for name, tensor in tensors:
        full = whole(tensor.detach())
        if ranks.first:
            found[name] = full.cpu().contiguous()
    return found


@torch.no_grad()
def load_weights(weights: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> None:
    """Copy whole tensors, which all ranks hold, into weights of the same names; raises
    CheckpointError naming one that only one side has or whose shape differs.
    """
    for name in sorted(weights.keys() ^ tensors.keys()):
        raise CheckpointError(f"tensor {name} is {'missing' if name in weights else 'unknown'}")
    for name, weight in weights.items():
        if weight.shape != tensors[name].shape:
            raise CheckpointError(f"tensor {name} is {tuple(tensors[name].shape)}, "
                                  f"the run's is {tuple(weight.shape)}")  # fmt: skip
        weight.copy_(place_like(tensors[name], weight))


def place_like(tensor: Tensor, other: Tensor) -> Tensor:
    """A whole tensor, which all ranks hold, cut and placed as `other` is."""
    if isinstance(other, DTensor) and tensor.shape == other.shape:
        return distribute_tensor(
            tensor.to(other.device), other.device_mesh, other.placements, src_data_rank=None
        )
    return tensor
