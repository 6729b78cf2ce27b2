"""Topologies: which rank can send to which, at what cost, and what the links share."""

from commlib.topology.costs import CostTable, cost_table
from commlib.topology.model import Link, Resource, Topology, Unit
from commlib.topology.shapes import fully_connected, nodes, ring, torus

__all__ = [
    "CostTable",
    "Link",
    "Resource",
    "Topology",
    "Unit",
    "cost_table",
    "fully_connected",
    "nodes",
    "ring",
    "torus",
]
