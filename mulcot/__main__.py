"""`python -m mulcot`."""

from mulcot.cli import console

if __name__ == "__main__":
    console()
