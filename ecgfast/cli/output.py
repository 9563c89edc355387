"""What commands print to the standard output."""


def show(text: object) -> None:
    """Print a result; names in it are shown, never obeyed by the terminal."""
    from ecgfast.log import show as show_lines  # brings rich, which --help need not wait for

    show_lines(text)
