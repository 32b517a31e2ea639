"""Networks, where their blocks sit, and what blocks are made of."""

from kt_ray.networks import stacked
from kt_ray.networks.architecture import (
    Architecture,
    PaperArchitecture,
    SiteArchitecture,
    architecture_of,
    described,
    structure,
)
from kt_ray.networks.pairs import PAIRS, READ_STRIDE, BlockPair
from kt_ray.networks.stacked import State
