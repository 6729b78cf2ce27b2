"""Topologies: which rank can send to which, and at what cost."""

from commlib.topology.model import Link, Topology, fully_connected, nodes, ring, torus

__all__ = ["Link", "Topology", "fully_connected", "nodes", "ring", "torus"]
