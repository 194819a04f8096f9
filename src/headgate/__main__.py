"""What is `python -m headgate`? The `headgate` command."""

from headgate.cli.main import main

if __name__ == "__main__":
    main()
