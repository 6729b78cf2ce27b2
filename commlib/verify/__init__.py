"""The verifier: proves an Algorithm, or says with a counterexample why it is wrong."""

from commlib.verify.check import FIFO_DEPTH, execute, require, synchronizing, unheard_stores, verify
from commlib.verify.contents import Contents
from commlib.verify.reference import Outcome, interpret
from commlib.verify.report import Finding, FindingKind, PlacementReport, Report

__all__ = [
    "FIFO_DEPTH",
    "Contents",
    "Finding",
    "FindingKind",
    "Outcome",
    "PlacementReport",
    "Report",
    "execute",
    "interpret",
    "require",
    "synchronizing",
    "unheard_stores",
    "verify",
]
