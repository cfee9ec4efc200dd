"""`python -m memtoken_cli`, also under torchrun."""

from memtoken_cli.cli import main

if __name__ == "__main__":
    main()
