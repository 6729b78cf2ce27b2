"""synth: collective algorithms synthesized from a topology and a sketch, with a proof of how good they are."""
