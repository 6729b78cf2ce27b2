"""Load a topology from a file of any form, told apart by content; or from a name or a file, whichever a text is."""

from __future__ import annotations

import os

from commlib.errors import CommlibError, FormatError, TopologyError
from commlib.files.disk import decode, read_bounded
from commlib.files.json_fields import Json, parse_json
from commlib.topology.edges import graph_from_graphml, graph_from_node_link
from commlib.topology.json_form import topology_from_json
from commlib.topology.limits import MAX_BYTES
from commlib.topology.model import Topology
from commlib.topology.names import machine, named, named_node
from commlib.topology.nccl_xml import node_from_nccl
from commlib.topology.node import Internode, Node
from commlib.topology.nvidia_smi import is_nvidia_smi, node_from_nvidia_smi
from commlib.topology.profile import Cost, Profile
from commlib.topology.taccl_json import TELLTALES, custom_node, profile_from_json
from commlib.topology.xml_tree import parse_tree

_SUFFIXES = (".json", ".xml", ".graphml", ".txt")


def load_topology(
    path: str | os.PathLike[str], nodes: int = 1, cost: Cost = "exact", internode: Internode = "rail"
) -> Topology:
    """``nodes`` nodes of what a file describes; see ``load_node``.

    Raises:
        FormatError: none of the forms, or wrong in it; with file and line or key.
        LimitError: larger than the limits allow.
        TopologyError: several nodes of a file that says nothing of NICs.
    """
    return load_node(path, cost).cluster(nodes, internode)


def load_node(path: str | os.PathLike[str], cost: Cost = "exact") -> Node:
    """What a file describes, and its NICs where it has any.

    Forms: our JSON, TACCL's topology JSON (with matrices, or for the machine that its name begins with), networkx
    node-link JSON, GraphML, NCCL's topology XML, the text of ``nvidia-smi topo -m``. ``cost`` matters to TACCL's.
    Reading executes nothing. Raises as ``load_topology`` does.
    """
    file = os.fspath(path)
    content = read_bounded(file, MAX_BYTES)
    start = content[:4096].lstrip(b"\xef\xbb\xbf \t\r\n")
    if start.startswith(b"<") or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        return _from_xml(content, file)
    if start.startswith(b"{"):
        return _from_json(parse_json(decode(content, file), file), file, cost)
    text = decode(content, file)
    if not is_nvidia_smi(text):
        message = "neither JSON ({...) nor XML (<system>, <graphml>) nor the text of nvidia-smi topo -m"
        raise FormatError(f"{file}:1: {message}", file=file, line=1)
    return node_from_nvidia_smi(text, file)


def _from_xml(content: bytes, file: str) -> Node:
    root = parse_tree(content, file)
    if root.tag == "system":
        return node_from_nccl(root, file)
    if root.tag == "graphml":
        return Node(graph_from_graphml(root, file).topology())
    message = f"<{root.tag[:40]}> is neither NCCL's <system> nor <graphml>"
    raise FormatError(f"{file}:{root.line}: {message}", file=file, line=root.line)


def _from_json(value: Json, file: str, cost: Cost) -> Node:
    keys = value.keys() if isinstance(value, dict) else set()
    if "format" in keys:
        return Node(topology_from_json(value, file))
    if TELLTALES & keys:
        return _from_taccl(profile_from_json(value, file), file, cost)
    if "nodes" in keys:
        return Node(graph_from_node_link(value, file).topology())
    raise FormatError(
        f'{file}: its keys are neither those of our JSON ("format": "commlib-topology"), of TACCL\'s topology JSON '
        '("gpus_per_node", ...), nor of a node-link graph ("nodes", "links")',
        file=file,
    )


def _from_taccl(profile: Profile, file: str, cost: Cost) -> Node:
    try:
        if profile.links is not None:
            return custom_node(profile, cost)
        return machine(profile.name.split("_")[0]).node(profile, cost)
    except CommlibError as error:
        hint = "" if profile.links is not None else "; without matrices a file's name begins with a machine's"
        message = f"{file}: {error.message}{hint}"
        raise FormatError(message, **{"key": "name", **error.fields, "file": file}) from error


def is_file(text: str) -> bool:
    """Whether a text means a file rather than a name: it has a folder or a known suffix, or there is such a file."""
    return os.sep in text or text.lower().endswith(_SUFFIXES) or os.path.isfile(text)


def topology_of(
    text: str,
    nodes: int = 1,
    profile: Profile | None = None,
    cost: Cost = "exact",
    internode: Internode = "rail",
) -> Topology:
    """The topology that a user names or whose file a user gives: what ``--topology`` means.

    Raises:
        TopologyError: no such name, or a profile beside a file.
        FormatError: as ``load_topology``.
    """
    if is_file(text):
        return node_of(text, profile, cost).cluster(nodes, internode)
    return named(text, nodes, profile, cost, internode)


def node_of(text: str, profile: Profile | None = None, cost: Cost = "exact") -> Node:
    """One node of what a user names or whose file a user gives. Raises as ``topology_of`` does."""
    if not is_file(text):
        return named_node(text, profile, cost)
    if profile is not None:
        raise TopologyError(f"{text}: a profile gives the costs of a named machine; a file has its own")
    return load_node(text, cost)
