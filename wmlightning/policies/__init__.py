"""Policies: exploration without a model, and acting on the states of a world model."""

from wmlightning.policies.exploration import ConstantPolicy as ConstantPolicy
from wmlightning.policies.exploration import HeldActionsPolicy as HeldActionsPolicy
from wmlightning.policies.exploration import RandomNetworkPolicy as RandomNetworkPolicy
from wmlightning.policies.exploration import SmoothNoisePolicy as SmoothNoisePolicy
from wmlightning.policies.latent import LatentPolicy as LatentPolicy
from wmlightning.policies.planning import PlanningPolicy as PlanningPolicy
