"""The engine on the local transport against the reference executor: any size, tile, depth, both placements."""

import threading
import time

import numpy as np
import pytest
from runtime_algorithms import SMALL, allpairs_allreduce, ring_allreduce

from commlib.collectives import Buffer, Placement
from commlib.ir.algorithm import Algorithm
from commlib.runtime.engine import execute
from commlib.runtime.kernels import numpy_kernels
from commlib.runtime.layout import ChunkLayout, plan_layout, prove_layout
from commlib.runtime.local import LocalEndpoint, LocalNetwork
from commlib.runtime.plan import plan_rank
from commlib.runtime.reference import run_local


def run_engine(algorithm: Algorithm, inputs: list, layout: ChunkLayout, tile_bytes: int, depth: int) -> list:
    """All ranks of a launch as threads, on buffers as the program wants them (so: not padded, out of place)."""
    network, outputs = LocalNetwork(algorithm.ranks, depth), []
    kernels, threads = numpy_kernels(np.dtype(np.int64), "sum"), []
    for rank in range(algorithm.ranks):
        plan = plan_rank(algorithm, layout, rank, 8, tile_bytes)
        outputs.append(np.zeros(layout.buffer_elements(rank, Buffer.OUTPUT), dtype=np.int64))
        buffers = {
            Buffer.INPUT: inputs[rank].copy(),
            Buffer.OUTPUT: outputs[rank],
            Buffer.SCRATCH: np.zeros(plan.scratch_elements, dtype=np.int64),
        }
        arguments = (plan, buffers, LocalEndpoint(network, plan), kernels, time.monotonic() + 20)
        threads.append(threading.Thread(target=execute, args=arguments))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return outputs


def make_inputs(algorithm: Algorithm, layout: ChunkLayout) -> list:
    generator = np.random.default_rng(7)
    sizes = [layout.buffer_elements(rank, Buffer.INPUT) for rank in range(algorithm.ranks)]
    return [generator.integers(-50, 50, size) for size in sizes]


@pytest.mark.parametrize("algorithm", SMALL, ids=lambda a: f"{a.name}{a.ranks}")
@pytest.mark.parametrize(("elements", "tile_bytes", "depth"), [(24, 1 << 20, 8), (35, 16, 3), (1, 8, 4), (0, 64, 8)])
def test_engine_does_what_the_reference_does(algorithm: Algorithm, elements: int, tile_bytes: int, depth: int) -> None:
    layout = plan_layout(algorithm, Placement.OUT, elements)
    if layout.padded:
        pytest.skip("the buffers of a padded launch are made by the communicator")
    prove_layout(algorithm, layout)
    inputs = make_inputs(algorithm, layout)
    expected = run_local(algorithm, inputs, elements=elements, tiles=2)
    for got, want in zip(run_engine(algorithm, inputs, layout, tile_bytes, depth), expected, strict=True):
        np.testing.assert_array_equal(got, want)


def test_engine_allreduce_is_the_sum() -> None:
    for algorithm in (ring_allreduce(4), allpairs_allreduce(4)):
        layout = plan_layout(algorithm, Placement.OUT, 1003)
        inputs = make_inputs(algorithm, layout)
        for got in run_engine(algorithm, inputs, layout, 256, 2):
            np.testing.assert_array_equal(got, sum(inputs))
