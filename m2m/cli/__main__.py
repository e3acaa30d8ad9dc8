"""``python -m m2m.cli``: the command line of the checkout that one stands in, as DVC's stages and torchrun start it."""

from m2m.cli import main

if __name__ == "__main__":
    main()
