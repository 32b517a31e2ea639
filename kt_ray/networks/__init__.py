"""Networks, where their blocks sit, and what blocks are made of."""

from kt_ray.networks import stacked
from kt_ray.networks.architecture import Architecture, PaperArchitecture, structure
from kt_ray.networks.chosen import AnyArchitecture, architecture_of, described
from kt_ray.networks.pairs import PAIRS, READ_STRIDE, BlockPair
from kt_ray.networks.sites import NetworkSites, SiteArchitecture, SitesArchitecture
from kt_ray.networks.stacked import State
