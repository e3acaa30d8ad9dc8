"""``python -m m2m.cli``: the command line where there is no console script, as under torchrun."""

from m2m.cli import main

if __name__ == "__main__":
    main()
