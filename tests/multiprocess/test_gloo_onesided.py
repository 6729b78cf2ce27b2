"""gloo reaches no other rank's memory: a one-sided program is refused alike on all ranks, which go on unharmed."""

import torch
from onesided_cases import one_shot
from runtime_algorithms import ring_allreduce

from commlib import launch
from commlib.errors import SpecError
from commlib.runtime import Communicator


def _refused_then_works(_rank: int) -> list:
    with Communicator(timeout=10, transport="gloo") as communicator:
        try:
            communicator.run(one_shot(2), torch.ones(6))
        except SpecError as error:
            refusal = [str(error), error.fields["peer"], error.fields["step"], error.fields["transport"]]
        total = communicator.run(ring_allreduce(2), torch.ones(6))
        return [refusal, total.tolist()]


def test_gloo_refuses_a_one_sided_program() -> None:
    for refusal, total in launch(_refused_then_works, 2, timeout=40):
        assert refusal[0].startswith(
            "one_shot: rank 0 threadblock 0 step 0 (put i[0] -> 1.s[0]) is one-sided, and gloo"
        )
        assert refusal[1:] == [1, 0, "gloo"]
        assert total == [2.0] * 6
