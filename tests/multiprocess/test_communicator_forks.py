"""A fork of a rank cannot speak for it through the parent's communicator."""

import os

import pytest
import torch
from process_cases import WIRINGS, wire

from commlib.algorithms import build
from commlib.errors import ExecutionError
from commlib.runtime import Communicator, launch


def _forks(rank: int, wiring: str) -> list[float]:
    wire(rank, WIRINGS[wiring])
    algorithm, tensor, found = build("allreduce", "ring", 2), torch.empty(10), []
    with Communicator(timeout=20, transport=WIRINGS[wiring].transport) as communicator:
        for call in range(3):
            if call:
                child = os.fork()
                if not child:
                    try:
                        communicator.run(algorithm, tensor.fill_(100.0))
                        os._exit(1)
                    except ExecutionError as error:
                        os._exit(0 if "the process was forked" in str(error) else 2)
                found.append(float(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])))
            found.append(communicator.run(algorithm, tensor.fill_(rank + 1.0))[9].item())
    return found


@pytest.mark.parametrize("wiring", ["gloo", "shm", "two hosts"])
@pytest.mark.timeout(60)
def test_a_fork_cannot_use_its_parents_communicator(wiring):
    assert launch(_forks, 2, (wiring,), timeout=40) == [[3.0, 0.0, 3.0, 0.0, 3.0]] * 2
