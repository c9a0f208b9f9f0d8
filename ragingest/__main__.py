"""`python -m ragingest`."""

from ragingest.cli import main

if __name__ == "__main__":
    main()
