"""`python -m minires` is the `minires` command."""

from minires.cli import main

if __name__ == "__main__":
    main()
