"""Guide the synthesizer with a sketch, and let it explain a sketch that cannot work."""

import json

from commlib.topology import named
from synth import question, solve
from synth.errors import SynthesisError
from synth.sketch import parse_sketch

TWO_NODES = {
    "nnodes": 2,
    "internode_sketch": {"strategy": "relay", "internode_conn": {"0": [1]}},
    "symmetry_offsets": [[8, 16]],
}
NO_WAY_OUT = {
    "nnodes": 2,
    "internode_sketch": {
        "strategy": "relay",
        "internode_conn": {"0": [1]},
        "gpus_to_sender_rev_map": {"0": [0, 1, 2, 3]},
    },
}


def main() -> None:
    """Two NDv2 nodes: GPU 0 sends to GPU 1 of the other node. Then a sketch that forgets half of the GPUs."""
    ndv2 = named("ndv2", nodes=2, internode="all")
    for collective in ("allgather", "allreduce"):
        sketch = parse_sketch(json.dumps(TWO_NODES), "relay")
        result = solve(question(ndv2, collective, sketch=sketch))
        print(f"{collective}: {result.time * 1e6:g} us, bound {result.bound * 1e6:g} us, {result.ended.value}")
    try:
        solve(question(ndv2, "allgather", sketch=parse_sketch(json.dumps(NO_WAY_OUT), "forgetful")))
    except SynthesisError as error:
        print(error)


if __name__ == "__main__":
    main()
