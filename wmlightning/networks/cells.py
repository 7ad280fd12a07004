"""Recurrent cells: one step, or a whole window in one fused call."""

import math

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional


class LSTM(nn.Module):
    """A long short-term memory with one bias vector, as TensorFlow counts it (PyTorch's has two that only add up).

        i, f, g, o = split(W_x x + W_h h + b)      c' = sigmoid(f) c + sigmoid(i) tanh(g)      h' = sigmoid(o) tanh(c')

    The forget gate's bias starts at 1, the others at 0; the weights are Glorot uniform over the joint matrix
    (input + hidden, 4 * hidden), as in TensorFlow's cell.

    Args:
        input_size: width of x.
        hidden_size: width of h and of c.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        bound = math.sqrt(6 / (input_size + hidden_size + 4 * hidden_size))
        self.input_weight = nn.Parameter(torch.empty(4 * hidden_size, input_size).uniform_(-bound, bound))
        self.hidden_weight = nn.Parameter(torch.empty(4 * hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(4 * hidden_size))
        with torch.no_grad():
            self.bias[hidden_size : 2 * hidden_size] = 1.0
        # The fused kernel takes two biases; this one is not a parameter and always zero.
        self.register_buffer("_no_bias", torch.zeros(4 * hidden_size), persistent=False)

    def step(
        self,
        projected: Float[Tensor, "rows gates"],
        hidden: Float[Tensor, "rows hidden"],
        cell: Float[Tensor, "rows hidden"],
    ) -> tuple[Float[Tensor, "rows hidden"], Float[Tensor, "rows hidden"]]:
        """One step of time: `project(x)` (N, 4 * hidden), h and c (N, hidden) to the next h and c."""
        gates = torch.addmm(projected, hidden, self.hidden_weight.t())
        enter, keep, new, leave = gates.chunk(4, -1)
        cell = keep.sigmoid() * cell + enter.sigmoid() * new.tanh()
        return leave.sigmoid() * cell.tanh(), cell

    def advance(
        self, inputs: Float[Tensor, "rows input"], memory: Float[Tensor, "rows two_hidden"]
    ) -> Float[Tensor, "rows two_hidden"]:
        """Does `project` and `step` without gradients: the same bits, in reused memory.

        Args:
            inputs: x, shape (N, input).
            memory: [h, c] side by side, shape (N, 2 * hidden).

        Returns:
            The next [h, c], shape (N, 2 * hidden).
        """
        hidden, cell = memory.chunk(2, -1)
        gates = self.project(inputs)
        # Autocast does not apply to in-place operations.
        gates.addmm_(hidden.to(gates.dtype), self.hidden_weight.t().to(gates.dtype))
        enter, keep, new, leave = gates.chunk(4, -1)
        after = torch.empty_like(memory)
        next_hidden, next_cell = after.chunk(2, -1)
        torch.mul(keep.sigmoid_(), cell, out=next_cell).add_(enter.sigmoid_().mul_(new.tanh_()))
        torch.mul(leave.sigmoid_(), next_cell.tanh(), out=next_hidden)
        return after

    def project(self, inputs: Float[Tensor, "*batch input"]) -> Float[Tensor, "*batch gates"]:
        """The part of the gates that does not depend on the memory: (..., input) to (..., 4 * hidden)."""
        return functional.linear(inputs, self.input_weight, self.bias)

    def forward(
        self,
        inputs: Float[Tensor, "batch time input"],
        hidden: Float[Tensor, "batch hidden"],
        cell: Float[Tensor, "batch hidden"],
        forget: Bool[Tensor, "batch time"],
    ) -> tuple[Float[Tensor, "batch time hidden"], Float[Tensor, "batch hidden"], Float[Tensor, "batch hidden"]]:
        """Steps through a whole window; after each `step`, h and c are set to exactly zero where `forget` is true.

        The fused kernel cannot reset, so the window is cut after every t at which some row forgets.

        Args:
            inputs: x, shape (B, T, input).
            hidden: h before the window, shape (B, hidden).
            cell: c before the window, shape (B, hidden).
            forget: where to forget, shape (B, T).

        Returns:
            h at every t, (B, T, hidden), and the last h and c. (The fused kernel does not give c at every t.)
        """
        any_forgets = forget.any(0).tolist()
        all_forget = forget.all(0).tolist()
        rows = inputs.transpose(0, 1)  # time first is the kernel's own order
        start = 0
        outputs = []
        for end in [t + 1 for t in range(len(rows)) if any_forgets[t] or t == len(rows) - 1]:
            if all_forget[end - 1] and end - 1 == start:
                piece = hidden[None]  # every row forgets this one step, so it need not be computed
            else:
                piece, hidden, cell = self._fused(rows[start:end], hidden, cell)
            if any_forgets[end - 1]:
                gone = forget[:, end - 1, None]
                hidden = hidden.masked_fill(gone, 0.0)
                cell = cell.masked_fill(gone, 0.0)
                outputs += [piece[:-1], hidden[None]]
            else:
                outputs.append(piece)
            start = end
        return (torch.cat(outputs) if len(outputs) > 1 else outputs[0]).transpose(0, 1), hidden, cell

    def _fused(self, inputs: Tensor, hidden: Tensor, cell: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        weights = [self.input_weight, self.hidden_weight, self.bias, self._no_bias]
        # The CPU's kernel does not support mixed precision.
        with torch.autocast(inputs.device.type, enabled=False):
            inputs, hidden, cell = (tensor.to(self.bias.dtype) for tensor in (inputs, hidden, cell))
            states = (hidden[None].contiguous(), cell[None].contiguous())
            # bias, layers, dropout, training, bidirectional, batch first
            outputs, hidden, cell = torch.lstm(inputs, states, weights, True, 1, 0.0, self.training, False, False)
        return outputs, hidden[0], cell[0]


class GRU(nn.Module):
    """A gated recurrent unit that resets its memory before the candidate is computed, as TensorFlow's block cell does.

        r, u = sigmoid(W_g [x, h] + b_g)        c = tanh(W_c [x, r * h] + b_c)        h' = u * h + (1 - u) * c

    The gates' biases start at 1, so that a fresh cell remembers; the candidate's at 0. Weights are Glorot uniform over
    the joint matrices (input + hidden, 2 * hidden) and (input + hidden, hidden). PyTorch's and Keras' cells apply the
    reset r after the product with h instead of before, and have a second bias there.

    Args:
        input_size: width of x.
        hidden_size: width of h.

    Source: TensorFlow 1's GRUBlockCell, which PlaNet's released code uses.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        joint = input_size + hidden_size
        gates, candidate = (math.sqrt(6 / (joint + width)) for width in (2 * hidden_size, hidden_size))
        drawn = [torch.empty(2 * hidden_size, joint).uniform_(-gates, gates)]
        drawn += [torch.empty(hidden_size, joint).uniform_(-candidate, candidate)]
        # x enters gates and candidate through one product; h cannot, because r comes between h and the candidate.
        self.input_weight = nn.Parameter(torch.cat([weight[:, :input_size] for weight in drawn]))
        self.gate_weight = nn.Parameter(drawn[0][:, input_size:].contiguous())
        self.candidate_weight = nn.Parameter(drawn[1][:, input_size:].contiguous())
        self.bias = nn.Parameter(torch.cat([torch.ones(2 * hidden_size), torch.zeros(hidden_size)]))

    def forward(
        self, inputs: Float[Tensor, "rows input"], hidden: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        """One step of time: x (N, input) and h (N, hidden) to the next h."""
        shares = functional.linear(inputs, self.input_weight, self.bias)
        gates, candidate = shares.split([2 * self.hidden_size, self.hidden_size], -1)
        reset, update = torch.addmm(gates, hidden, self.gate_weight.t()).sigmoid().chunk(2, -1)
        candidate = torch.tanh(torch.addmm(candidate, reset * hidden, self.candidate_weight.t()))
        # float32, also where mixed precision has computed candidate and update in fewer bits.
        return torch.lerp(candidate.float(), hidden.float(), update.float())


class KerasGRU(nn.Module):
    """A gated recurrent unit that resets after the product with its memory, as Keras' and PyTorch's cells do.

        r, u = sigmoid(W_g x + b_g + V_g h + d_g)   c = tanh(W_c x + b_c + r * (V_c h + d_c))   h' = u * h + (1 - u) * c

    Weights on x start Glorot uniform, those on h orthogonal, both biases zero.

    Args:
        input_size: width of x.
        hidden_size: width of h.

    Source: the code of Dreamer V1 in TensorFlow 2, which uses Keras' GRUCell. (Its first code, in TensorFlow 1, has
    `GRU`.)
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        self.from_input = nn.Linear(input_size, 3 * hidden_size)
        self.from_hidden = nn.Linear(hidden_size, 3 * hidden_size)
        nn.init.xavier_uniform_(self.from_input.weight)
        nn.init.orthogonal_(self.from_hidden.weight)
        for layer in (self.from_input, self.from_hidden):
            nn.init.zeros_(layer.bias)

    def forward(
        self, inputs: Float[Tensor, "rows input"], hidden: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        """One step of time: x (N, input) and h (N, hidden) to the next h."""
        sizes = [2 * self.hidden_size, self.hidden_size]
        (gates, candidate), (more, kept) = (
            shares.split(sizes, -1) for shares in (self.from_input(inputs), self.from_hidden(hidden))
        )
        reset, update = (gates + more).sigmoid().chunk(2, -1)
        candidate = torch.tanh(candidate + reset * kept)
        return torch.lerp(candidate.float(), hidden.float(), update.float())  # as in GRU


class LayerNormGRU(nn.Module):
    """A gated recurrent unit with a LayerNorm over all three gates, which at first updates slowly.

        r, c, u = split(LayerNorm(W [x, h] + b))        h' = u' * tanh(sigmoid(r) * c) + (1 - u') * h
                                                        u' = sigmoid(u - 1)

    One product for all three, normalised together; the reset gates the candidate after the product, and the update
    lets in what is NEW: at first sigmoid(-1) = 0.27 of it. Weights are Glorot uniform over the whole matrix
    (input + hidden, 3 * hidden).

    Args:
        input_size: width of x.
        hidden_size: width of h.

    Source: Hafner et al. 2021 (Dreamer V2); their code (common/nets.py), with Keras' epsilon of 1e-3.
    """

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.hidden_size = hidden_size
        bound = math.sqrt(6 / (input_size + hidden_size + 3 * hidden_size))
        self.input_weight = nn.Parameter(torch.empty(3 * hidden_size, input_size).uniform_(-bound, bound))
        self.hidden_weight = nn.Parameter(torch.empty(3 * hidden_size, hidden_size).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.zeros(3 * hidden_size))
        self.norm = nn.LayerNorm(3 * hidden_size, eps=1e-3)

    def forward(
        self, inputs: Float[Tensor, "rows input"], hidden: Float[Tensor, "rows hidden"]
    ) -> Float[Tensor, "rows hidden"]:
        """One step of time: x (N, input) and h (N, hidden) to the next h."""
        # Two products, added, rather than one of [x, h]: the graph would keep a copy of the concatenation.
        share = functional.linear(inputs, self.input_weight, self.bias)
        gates = torch.addmm(share, hidden, self.hidden_weight.T)
        # float32 from here on: under mixed precision only the products have fewer bits.
        reset, candidate, update = self.norm(gates.float()).chunk(3, -1)
        return torch.lerp(hidden.float(), torch.tanh(reset.sigmoid() * candidate), torch.sigmoid(update - 1))


CELLS = {"gru": GRU, "keras_gru": KerasGRU, "layer_norm_gru": LayerNormGRU}
"""Gated recurrent units by the name that a config gives them."""
