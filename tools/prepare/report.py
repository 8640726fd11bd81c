"""What people see of a preparation: failures with an exit code (docs/exit_codes.md), and progress."""

import sys
import time

CONFIG, DATA, IO, MEMORY, INTERRUPTED = 2, 3, 5, 7, 9


class Failure(Exception):
    """What was expected, what was found, what to do; and the exit code of the process."""

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


def duration(seconds):
    seconds = int(seconds)
    hours, minutes = seconds // 3600, seconds // 60 % 60
    return f"{hours}:{minutes:02}:{seconds % 60:02}" if hours else f"{minutes}:{seconds % 60:02}"


class Progress:
    """One changing line on a terminal, a line every ten seconds elsewhere."""

    def __init__(self, total_bytes, done_before):
        self.total, self.skipped = max(total_bytes, 1), done_before
        self.terminal = sys.stderr.isatty()
        self.began = self.shown = time.monotonic()

    def show(self, done_bytes, tokens):
        now = time.monotonic()
        if now - self.shown < (0.5 if self.terminal else 10):
            return
        self.shown = now
        rate = max(done_bytes - self.skipped, 0) / (now - self.began)
        left = duration((self.total - done_bytes) / rate) if rate > 0 else "?"
        line = (f"{100 * done_bytes / self.total:5.1f} % of {self.total / 1e6:,.0f} MB"
                f"  {rate / 1e6:.2f} MB/s  {tokens:,} tokens  {left} left")
        sys.stderr.write(f"\r\033[K{line}" if self.terminal else line + "\n")
        sys.stderr.flush()

    def close(self):
        if self.terminal:
            sys.stderr.write("\r\033[K")
