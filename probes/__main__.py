"""`python -m probes` is `probe`."""

from probes.cli import main

if __name__ == "__main__":
    main()
