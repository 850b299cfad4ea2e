"""`python -m msdv`, which is also what `accelerate launch -m msdv` runs."""

from msdv.cli import main

if __name__ == "__main__":
    main()
