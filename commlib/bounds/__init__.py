"""Lower bounds on the time of a collective, each with its certificate.

The times are those of ``commlib.topology.costs``: a transfer arrives after its link's latency, keeps the link and its
shared resources from others while they are busy, and is sent on only after it has arrived. Each bound holds for every
schedule of that model, duplicates, detours and all; none trusts a solver or floating-point arithmetic.
"""

from commlib.bounds.allreduce import TotalCertificate, allreduce_bounds
from commlib.bounds.api import bounds
from commlib.bounds.bound import Bound, Certificate, best_first
from commlib.bounds.crossing import CrossingCertificate
from commlib.bounds.cut import FlowArcs, cut_bounds
from commlib.bounds.distance import PathCertificate, distance_bound
from commlib.bounds.flow import FlowCertificate, LinearProgram, LinearSolver, flow_bound
from commlib.bounds.fluid import FluidCertificate, fluid_bounds
from commlib.bounds.groups import ingress_bounds
from commlib.bounds.growth import GrowthCertificate, growth_bound
from commlib.bounds.work import Work

__all__ = [
    "Bound",
    "Certificate",
    "CrossingCertificate",
    "FlowArcs",
    "FlowCertificate",
    "FluidCertificate",
    "GrowthCertificate",
    "LinearProgram",
    "LinearSolver",
    "PathCertificate",
    "TotalCertificate",
    "Work",
    "allreduce_bounds",
    "best_first",
    "bounds",
    "cut_bounds",
    "distance_bound",
    "flow_bound",
    "fluid_bounds",
    "growth_bound",
    "ingress_bounds",
]
