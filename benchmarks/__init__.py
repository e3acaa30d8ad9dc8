"""How fast m2m is, counted and timed against what one would otherwise do: ``make bench``."""
