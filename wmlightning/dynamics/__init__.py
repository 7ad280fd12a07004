"""What steps through time: one file for each graphical model, drawn in its docstring."""

from wmlightning.dynamics.mdn_rnn import MDNLSTM
from wmlightning.dynamics.state import State, stack_states

__all__ = ["MDNLSTM", "State", "stack_states"]
