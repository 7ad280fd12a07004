"""How one acts: exploration without knowledge, and acting on what a model knows."""

from wmlightning.policies.exploration import ConstantPolicy as ConstantPolicy
from wmlightning.policies.exploration import HeldActionsPolicy as HeldActionsPolicy
from wmlightning.policies.exploration import RandomNetworkPolicy as RandomNetworkPolicy
from wmlightning.policies.exploration import SmoothNoisePolicy as SmoothNoisePolicy
from wmlightning.policies.latent import LatentPolicy as LatentPolicy
from wmlightning.policies.planning import PlanningPolicy as PlanningPolicy
