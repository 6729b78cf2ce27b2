"""Topologies: which rank can send to which, at what cost, and what the links share."""

from commlib.topology.costs import CostTable, cost_table
from commlib.topology.drawing import draw
from commlib.topology.json_form import topology_to_json, write_topology
from commlib.topology.load import load_node, load_topology, node_of, topology_of
from commlib.topology.machines import MACHINES, Machine, internode_link
from commlib.topology.model import Link, Resource, Topology, Unit
from commlib.topology.names import SHAPES, machine, named, named_node, shape
from commlib.topology.node import Fabric, Internode, Node
from commlib.topology.profile import Cost, Profile
from commlib.topology.shapes import DEFAULT_LINK, fully_connected, hypercube, line, mesh, nodes, ring, star, torus
from commlib.topology.switched import dragonfly, fat_tree
from commlib.topology.taccl_json import read_profile

__all__ = [
    "DEFAULT_LINK",
    "MACHINES",
    "SHAPES",
    "Cost",
    "CostTable",
    "Fabric",
    "Internode",
    "Link",
    "Machine",
    "Node",
    "Profile",
    "Resource",
    "Topology",
    "Unit",
    "cost_table",
    "dragonfly",
    "draw",
    "fat_tree",
    "fully_connected",
    "hypercube",
    "internode_link",
    "line",
    "load_node",
    "load_topology",
    "machine",
    "mesh",
    "named",
    "named_node",
    "node_of",
    "nodes",
    "read_profile",
    "ring",
    "shape",
    "star",
    "topology_of",
    "topology_to_json",
    "torus",
    "write_topology",
]
