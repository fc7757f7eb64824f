from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils.data import Dataset

from data_modules.packing import BatchLoader, PackedBatches, pack, unpack

TENSORS = {
    "ids": torch.arange(35).view(5, 7),
    "pixels": torch.linspace(-1, 1, 123).view(3, 41),
    "half": torch.tensor([0.5, -2.0], dtype=torch.float16),
    "brain": torch.tensor([0.5, -2.0], dtype=torch.bfloat16),
    "mask": torch.tensor([True, False, True]),
    "transposed": torch.arange(12.0).view(3, 4).t(),
    "single": torch.tensor(3.5),
    "none": torch.zeros(0, 4),
}


@dataclass(frozen=True)
class Batch:
    tensors: dict[str, Tensor]
    names: tuple[str, ...]


class Batches(Dataset[Batch]):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> Batch:
        if index == 9:
            raise ValueError("nothing there")
        return Batch({name: tensor + (0 if name == "mask" else index) for name, tensor in TENSORS.items()}, ("a", "b"))


def assert_equal(found: Batch, expected: Batch) -> None:
    assert found.names == expected.names
    assert found.tensors.keys() == expected.tensors.keys()
    for name, tensor in expected.tensors.items():
        assert found.tensors[name].dtype == tensor.dtype, name
        assert torch.equal(found.tensors[name], tensor), name


def test_a_batch_comes_out_as_it_went_in() -> None:
    batch = Batch(TENSORS, ("a", "b"))
    structure, places, block = pack(batch)
    assert block.dtype == torch.uint8
    assert sum(stop - start for start, stop in places) <= len(block) < len(structure) + 4000
    assert_equal(unpack(structure, places, block), batch)


def test_tensors_share_the_block_s_memory_and_can_be_written_to() -> None:
    structure, places, block = pack(TENSORS["ids"])
    found = unpack(structure, places, block)
    found[0, 0] = 77
    assert int(np.frombuffer(block.numpy().tobytes(), dtype=np.int64)[0]) == 77
    assert int(TENSORS["ids"][0, 0]) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_loader_gives_the_batches_in_order_whatever_its_workers(workers: int) -> None:
    data = Batches()
    loader = BatchLoader(PackedBatches(data), num_workers=workers, persistent_workers=workers > 0, sampler=[2, 0, 3])
    for _ in range(2):
        found = list(loader)
        assert len(found) == 3
        for batch, index in zip(found, [2, 0, 3], strict=True):
            assert_equal(batch, data[index])


def test_an_error_in_a_worker_still_arrives() -> None:
    loader = BatchLoader(PackedBatches(Batches()), num_workers=1, sampler=[0, 9])
    with pytest.raises(ValueError, match="nothing there"):
        list(loader)
