"""`python -m vidmatte`."""

from vidmatte.cli import main

if __name__ == "__main__":
    main()
