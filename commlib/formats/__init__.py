"""Formats: our JSON and text forms, which hold everything, and MSCCL XML, which other tools and GPU runtimes read.

``load`` and ``save`` go by the file's content and name. Reading executes nothing, checks every size before anything
of it is allocated, and raises a FormatError (or LimitError) that names file and line or key.
"""

from commlib.formats.any_form import load, save
from commlib.formats.collective_json import collective_from_json, collective_to_json, read_collective
from commlib.formats.json_form import from_json, read_json, to_json, write_json
from commlib.formats.limits import DEFAULT_LIMITS, ReaderLimits
from commlib.formats.msccl_xml import XmlInfo, read_xml, read_xml_with_info, write_xml, xml_info
from commlib.formats.short_forms import matrix_demand, multi_root

__all__ = [
    "DEFAULT_LIMITS",
    "ReaderLimits",
    "XmlInfo",
    "collective_from_json",
    "collective_to_json",
    "from_json",
    "load",
    "matrix_demand",
    "multi_root",
    "read_collective",
    "read_json",
    "read_xml",
    "read_xml_with_info",
    "save",
    "to_json",
    "write_json",
    "write_xml",
    "xml_info",
]
