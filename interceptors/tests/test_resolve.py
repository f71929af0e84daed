# SPDX-License-Identifier: Apache-2.0
"""dlsym and dlvsym once we are preloaded: every way to a made-up driver's functions, and nobody else's way disturbed."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

import compute_rig as rig

HERE = Path(__file__).parent
SOURCES = HERE / "resolve"
UNITS = ("resolve.c", "symbols.c", "objects.c", f"dlsym_{platform.machine()}.S")
VERSIONS = {"x86_64": ("GLIBC_2.2.5", "GLIBC_2.34"), "aarch64": ("GLIBC_2.17", "GLIBC_2.34")}[platform.machine()]
"""dlsym's version before and since it moved from libdl into libc."""


@dataclass(frozen=True)
class Toys:
    """What the tests built: the driver, our front end for it, and the programs that ask."""

    folder: Path
    front: Path
    program: Path
    plugin: Path

    def run(self, *arguments: str, program: Path | None = None, preload: tuple[Path, ...] | None = None, **env: str) -> str:
        preloaded = ":".join(map(str, (self.front,) if preload is None else preload))
        whole = {**os.environ, "LD_LIBRARY_PATH": str(self.folder), "TOY_PLUGIN": str(self.plugin), **env}
        done = subprocess.run(
            [program or self.program, *arguments], env={**whole, "LD_PRELOAD": preloaded}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.returncode == 0, (done.returncode, done.stdout, done.stderr)
        assert done.stderr == ""
        return done.stdout.strip()


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> Toys:
    folder = tmp_path_factory.mktemp("resolve")
    script = folder / "versions.map"
    script.write_text("TOY_1 { global: *; };\n")
    visible = "-fvisibility=default"
    rig.compiled(
        folder / "libtoyacc.so.1",
        visible,
        "-shared",
        "-Wl,-soname,libtoyacc.so.1",
        "-Wl,-Bsymbolic-functions",
        f"-Wl,--version-script={script}",
        str(SOURCES / "driver.c"),
    )
    core = [str(rig.CORE / unit) for unit in UNITS]
    front = rig.compiled(folder / "libhami_toy.so", "-O2", "-shared", "-Wl,-z,now", "-Wl,-z,nodelete", str(SOURCES / "front.c"), *core, *rig.sources())
    plugin = rig.compiled(folder / "plugin.so", visible, "-shared", str(SOURCES / "asker.c"))
    return Toys(folder, front, rig.compiled(folder / "asker", str(SOURCES / "asker.c")), plugin)


WAYS = [
    pytest.param("handle", "1002 1002 4 -1", id="an-explicit-handle-twice"),
    pytest.param("self", "3", id="the-driver-asks-for-its-own"),
    pytest.param("default", "-1 -1 -1 dlerror", id="RTLD_DEFAULT-without-a-driver"),
    pytest.param("next", "-1 -1 -1", id="RTLD_NEXT-without-a-driver"),
    pytest.param("program", "-1", id="the-program-handle-without-a-driver"),
    pytest.param("versioned", "1003 -1", id="dlvsym"),
    pytest.param("wrong-version", "-1", id="dlvsym-of-a-version-that-is-not"),
    pytest.param("resolver", "1001 1002 1003 1006 5 -1", id="the-driver's-resolver"),
    pytest.param("unknown", "5 2", id="an-unclassified-name"),
    pytest.param("unrelated", "libc found 0 dlerror", id="other-people's-names"),
    pytest.param("close", "1001 1001 1001 1001", id="a-driver-closed-and-opened-again"),
    pytest.param("fork", "0", id="fork"),
]


@pytest.mark.parametrize(("way", "answer"), WAYS)
@pytest.mark.parametrize("scope", ["", "plugin:"], ids=["program", "plugin"])
def test_every_way_to_ask(toys: Toys, scope: str, way: str, answer: str) -> None:
    assert toys.run(f"{scope}{way}") == answer


DEEP = [
    pytest.param("handle", "2 2 4 -1", id="an-explicit-handle-is-the-driver's"),
    pytest.param("resolver", "1 2 3 6 5 -1", id="and-so-is-its-resolver"),
    pytest.param("default", "1003 1003 -1000 no dlerror", id="RTLD_DEFAULT-finds-our-exports"),
    pytest.param("unrelated", "libc found 0 dlerror", id="other-people's-names"),
]


@pytest.mark.parametrize(("way", "answer"), DEEP)
def test_a_deepbound_plugin_goes_past_us_as_documented(toys: Toys, way: str, answer: str) -> None:
    """Its dlsym is bound in its own scope, that is to its libc's. The threat model has a row for it; the agent sees it in the driver's figures."""
    assert toys.run(f"deep:{way}") == answer


def test_another_namespace_has_no_hooks_as_documented(toys: Toys) -> None:
    source = toys.folder / "namespace.c"
    source.write_text(
        "#include <dlfcn.h>\n#include <stdio.h>\nint main(void) {\n"
        '    void *handle = dlmopen(LM_ID_NEWLM, "libtoyacc.so.1", RTLD_NOW);\n'
        '    int (*plain)(int) = handle == NULL ? NULL : (int (*)(int))dlsym(handle, "toyPlain");\n'
        '    printf("%d\\n", plain == NULL ? -1 : plain(0));\n    return 0;\n}\n'
    )
    assert toys.run(program=rig.compiled(toys.folder / "namespace", str(source))) == "4"


LOADED = [
    pytest.param("default", "1003 1003 -1 dlerror", id="RTLD_DEFAULT"),
    pytest.param("next", "1003 1003 -1", id="RTLD_NEXT"),
    pytest.param("program", "1001", id="the-program-handle"),
]


@pytest.mark.parametrize(("way", "answer"), LOADED)
@pytest.mark.parametrize("scope", ["", "plugin:"], ids=["program", "plugin"])
def test_pseudo_handles_find_a_driver_that_is_linked(toys: Toys, scope: str, way: str, answer: str) -> None:
    program = toys.folder / "linked_asker"
    rig.compiled(program, str(SOURCES / "asker.c"), "-Wl,--no-as-needed", f"-L{toys.folder}", "-l:libtoyacc.so.1")
    assert toys.run(f"{scope}{way}", program=program) == answer


@pytest.mark.parametrize("version", VERSIONS)
def test_both_versions_of_dlsym_are_ours(toys: Toys, version: str) -> None:
    program = rig.compiled(toys.folder / f"asker_{version}", f'-DDLSYM_VERSION="{version}"', str(SOURCES / "asker.c"))
    assert version in subprocess.run(["objdump", "-T", program], capture_output=True, text=True, check=True).stdout
    assert toys.run("handle", program=program) == "1002 1002 4 -1"
    assert toys.run("unrelated", program=program) == "libc found 0 dlerror"


@pytest.mark.parametrize("soname", ["libtoyacc.so.7", None], ids=["another-major-version", "no-soname"])
def test_a_driver_of_another_major_version_is_the_same_driver(toys: Toys, soname: str | None) -> None:
    other = toys.folder / (soname or "none") / (soname or "libtoyacc.so")
    other.parent.mkdir()
    rig.compiled(other, "-fvisibility=default", "-shared", *([f"-Wl,-soname,{soname}"] if soname else []), str(SOURCES / "driver.c"))
    code = f"import ctypes; d = ctypes.CDLL('{other}'); print(d.toyAlloc(0), d.toyPlain(0), hasattr(d, 'toyGone'))"
    assert toys.run("-c", code, program=Path(sys.executable), LD_LIBRARY_PATH=str(other.parent)) == "1001 4 False"


@pytest.mark.parametrize(("file", "found"), [("libtoyacc.so.2", True), ("libtoyacc.so.3", False)], ids=["a-name-of-the-table", "another"])
def test_a_driver_that_nobody_has_loaded_is_loaded_by_the_names_of_the_table(toys: Toys, file: str, found: bool) -> None:
    folder = toys.folder / f"only-{file}"
    folder.mkdir()
    rig.compiled(folder / file, "-fvisibility=default", "-shared", f"-Wl,-soname,{file}", str(SOURCES / "driver.c"))
    code = f"import ctypes; f = ctypes.CDLL('{toys.front}').toy_test_plain; f.restype = ctypes.c_void_p; print(f() is not None)"
    assert toys.run("-c", code, program=Path(sys.executable), LD_LIBRARY_PATH=str(folder)) == str(found)


def test_a_program_linked_against_the_driver_is_bound_to_us(toys: Toys) -> None:
    program = rig.compiled(toys.folder / "linked", "-DPROGRAM", str(SOURCES / "linked.c"), f"-L{toys.folder}", "-l:libtoyacc.so.1")
    assert toys.run(program=program) == "1001 4"


def test_ctypes_gets_the_hook(toys: Toys) -> None:
    code = "import ctypes; d = ctypes.CDLL('libtoyacc.so.1'); print(d.toyAlloc(0), d.toyPlain(0), hasattr(d, 'toyGone'), d.toyAlloc_v2(5))"
    assert toys.run("-c", code, program=Path(sys.executable)) == "1001 4 False 1007"


@pytest.mark.parametrize("order", ["before", "after"])
def test_an_allocator_that_asks_for_the_next_malloc_does_not_come_round(toys: Toys, order: str) -> None:
    interposer = rig.compiled(toys.folder / "interposer.so", "-fvisibility=default", "-fno-builtin", "-shared", str(SOURCES / "interposer.c"))
    preload = (interposer, toys.front) if order == "before" else (toys.front, interposer)
    assert toys.run("handle", "resolver", preload=preload) == "1002 1002 4 -1\n1001 1002 1003 1006 5 -1"


@pytest.mark.parametrize("runtime", ["libasan.so", "libtsan.so"])
def test_a_sanitizers_runtime_that_starts_before_libc_starts_with_us(toys: Toys, runtime: str) -> None:
    library = Path(subprocess.run(["gcc", f"-print-file-name={runtime}"], capture_output=True, text=True, check=True).stdout.strip())
    assert library.is_absolute(), f"gcc brings no {runtime}"
    assert toys.run(program=Path("/bin/true"), preload=(library, toys.front)) == ""


def test_what_others_look_up_is_the_same_with_and_without_us(toys: Toys) -> None:
    assert toys.run("unrelated", "plugin:unrelated") == toys.run("unrelated", "plugin:unrelated", preload=())


def test_nothing_is_exported_but_the_hooks_and_the_two_doors(toys: Toys) -> None:
    listed = subprocess.run(["nm", "-D", "--defined-only", toys.front], capture_output=True, text=True, check=True).stdout
    names = {line.split()[-1] for line in listed.splitlines()}
    own = {name for name in names if not name.startswith(("stub_", "call_", "hami_test_", "toy"))}
    assert own == {"dlsym", "dlvsym"}


def test_the_library_has_no_constructor(toys: Toys) -> None:
    relocated = [rig.CORE / unit for unit in (*UNITS, *rig.UNITS)]
    for source in relocated:
        assert "constructor" not in source.read_text().replace("constructors", "")
