"""`python -m lenstrain`: the same as the command."""

from lens_cli.train.app import main

if __name__ == "__main__":
    main(prog_name="lenstrain")
