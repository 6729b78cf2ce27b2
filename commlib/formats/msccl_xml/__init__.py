"""MSCCL XML, both dialects: microsoft/msccl and msccl-executor-nccl / RCCL."""

from commlib.formats.msccl_xml.names import Dialect, XmlInfo
from commlib.formats.msccl_xml.reader import parse_xml, read_xml, read_xml_with_info, xml_info
from commlib.formats.msccl_xml.writer import write_xml, xml_text

__all__ = ["Dialect", "XmlInfo", "parse_xml", "read_xml", "read_xml_with_info", "write_xml", "xml_info", "xml_text"]
