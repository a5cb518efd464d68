"""`python -m posttrain` is `posttrain`."""

from posttrain.cli import main

if __name__ == "__main__":
    main()
