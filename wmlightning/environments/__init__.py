"""Where one acts: any gymnasium environment as pictures and actions, many side by side, and the loop that plays."""
