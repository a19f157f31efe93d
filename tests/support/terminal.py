"""A terminal small enough to check what stays on it."""

import re

_TOKEN = re.compile(r"\x1b\[([0-9;?]*)([A-Za-z])|\x1b\](?:[^\x1b\x07]*)(?:\x1b\\|\x07)|(.)", re.DOTALL)


class Terminal:
    """Replays output as rows of text, scrolled ones included, for what Rich sends: text, CR, LF, up, erase, colours."""

    def __init__(self, height: int) -> None:
        self.height = height
        self.rows = [""]
        self.row = self.column = 0

    def feed(self, output: str) -> "Terminal":
        for arguments, command, character in _TOKEN.findall(output):
            if command:
                self._control(arguments, command)
            elif character == "\r":
                self.column = 0
            elif character == "\n":
                self.row, self.column = self.row + 1, 0
                if self.row == len(self.rows):
                    self.rows.append("")
            elif character:
                line = self.rows[self.row].ljust(self.column)
                self.rows[self.row] = line[: self.column] + character + line[self.column + 1 :]
                self.column += 1
        return self

    def _control(self, arguments: str, command: str) -> None:
        if command == "A":
            top = max(len(self.rows) - self.height, 0)  # the cursor cannot go up into what has scrolled away
            self.row = max(self.row - int(arguments or 1), top)
        elif command == "K":
            assert arguments == "2", f"erase {arguments!r} is not known here"
            self.rows[self.row] = ""
        elif command not in "mhl":
            raise AssertionError(f"control {command!r} is not known here")

    def text(self) -> list[str]:
        """The rows without trailing blanks and empty rows at the end."""
        return "\n".join(row.rstrip() for row in self.rows).rstrip().split("\n")
