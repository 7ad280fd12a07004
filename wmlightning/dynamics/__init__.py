"""Dynamics, which step a latent state through time: one file for each graphical model, drawn in its docstring."""

from wmlightning.dynamics.dynamics import Dynamics
from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.dynamics.rnn import RNN
from wmlightning.dynamics.rssm import RSSM
from wmlightning.dynamics.ssm import SSM
from wmlightning.dynamics.state import State, stack_states

__all__ = ["MDNLSTM", "RNN", "RSSM", "SSM", "Dynamics", "State", "stack_states"]
