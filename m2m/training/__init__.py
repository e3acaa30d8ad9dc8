"""How the network learns: one loop for both variants, its state, and what it shows on the way."""
