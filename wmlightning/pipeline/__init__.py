"""An experiment of several stages: its file, its folder, its run and the tables at its end."""
