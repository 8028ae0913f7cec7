"""`python -m lenscache`: the same as the command."""

from lens_cli.cache.app import main

if __name__ == "__main__":
    main(prog_name="lenscache")
