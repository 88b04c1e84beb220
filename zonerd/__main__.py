"""`python -m zonerd`."""

from zonerd.cli import main

if __name__ == "__main__":
    main()
