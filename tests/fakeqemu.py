#!/usr/bin/env python3
"""A QEMU for unit tests: replays a recorded console and ends as it is told, whatever its other arguments are.

FAKE_QEMU holds words: ``log=FILE`` prints a log with the nonce of its own command line in it, ``status=N`` is the exit
status, ``then=hang|flood|close`` what it does before that, ``stubborn`` makes it ignore SIGTERM and SIGHUP and start a
child that does too, ``pids=FILE`` takes their process ids, ``slow=SECONDS`` waits between lines, ``delay=SECONDS``
before the first, ``signal=N`` ends it by that signal, ``message=TEXT`` goes to stderr first (``_`` is a space),
``counted=FILE`` is the log in place of the other when instructions are to be counted, ``again=FILE`` that of all runs
but the first.
"""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

CHILD = "import signal,time\nfor s in (1,2,15): signal.signal(s, signal.SIG_IGN)\ntime.sleep(120)"


def main() -> int:
    words = dict(word.partition("=")[::2] for word in os.environ.get("FAKE_QEMU", "").split())
    if sys.argv[1:] == ["--version"]:
        print("QEMU emulator version 99.1")
        return 0
    if "counted" in words and "-icount" in sys.argv:
        words["log"] = words["counted"]
    if "again" in words:
        ran = Path(words["again"] + ".ran")
        if ran.exists():
            words["log"] = words["again"]
        ran.touch()
    pids = [os.getpid()]
    if "stubborn" in words:
        for number in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        pids.append(subprocess.Popen([sys.executable, "-c", CHILD]).pid)
    if "pids" in words:
        temporary = Path(words["pids"] + ".part")
        temporary.write_text(" ".join(map(str, pids)))
        temporary.rename(words["pids"])
    if "message" in words:
        print(words["message"].replace("_", " "), file=sys.stderr, flush=True)
    time.sleep(float(words.get("delay", "0")))
    if "log" in words:
        nonce = re.search(r"harness\.nonce=(\w+)", " ".join(sys.argv))
        text = Path(words["log"]).read_bytes()
        if nonce:
            text = text.replace(b"5ca1ab1e0ddba115", nonce[1].encode())
        for line in text.splitlines(keepends=True):
            sys.stdout.buffer.write(line)
            sys.stdout.buffer.flush()
            time.sleep(float(words.get("slow", "0")))
    if words.get("then") == "hang":
        time.sleep(120)
    if words.get("then") == "flood":
        while True:
            sys.stdout.write("x" * 4000 + "\n")
    if words.get("then") == "close":
        for fd in (0, 1, 2):
            os.close(fd)
        time.sleep(120)
    if "signal" in words:
        os.kill(os.getpid(), int(words["signal"]))
    return int(words.get("status", "0"))


if __name__ == "__main__":
    sys.exit(main())
