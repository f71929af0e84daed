# SPDX-License-Identifier: Apache-2.0
"""Drives rows of cuda_rows.py or nvml_rows.py, each in a forked process of its own, with and without its hook; prints one JSON object.

Run as `python cuda_rows_program.py TABLE LIBRARY OFFSETS STATE [DENIED…]`: OFFSETS is a JSON file that says where in the driver's
file each symbol lies; the symbols at the end are refused by their hooks.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from pathlib import Path
from typing import Any

import cuda_rows
import nvml_rows
from cuda_bench import Bench
from cuda_rows import Drive

TABLES = {"cuda": cuda_rows.ROWS, "cuda imports": cuda_rows.UNCHARGED, "nvml memory": nvml_rows.MEMORY, "nvml lists": nvml_rows.LISTS, "nvml denied": {}}


def seen(bench: Bench, symbol: str, drive: Drive) -> Any:
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a row that hangs fails by itself
        try:
            answer = drive.show(bench, symbol)
        except BaseException as error:
            answer = f"{type(error).__name__}: {error}"
            if not bench.bypassed:
                traceback.print_exc()
        os.write(writer, json.dumps(answer).encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    status = os.waitpid(child, 0)[1]
    return json.loads(text) if text else f"ended with {status}"


def main(table: str, library: str, offsets: dict[str, int], state: Path, denied: list[str]) -> None:
    rows = {**TABLES[table], **{symbol: Drive(nvml_rows.denied, None) for symbol in denied}}
    bench = Bench(library, offsets, state)
    found: dict[str, dict[str, Any]] = {}
    for symbol, drive in rows.items():
        found[symbol] = {}
        for how, bypassed in (("with", ""), ("without", symbol)):
            bench.bypassed = bypassed
            found[symbol][how] = seen(bench, symbol, drive)
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], json.loads(Path(sys.argv[3]).read_text()), Path(sys.argv[4]), sys.argv[5:])
