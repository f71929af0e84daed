# SPDX-License-Identifier: Apache-2.0
"""What the builder makes: only the intended symbols, loadable on an old glibc, once per content, and clear words when it cannot."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hami_interceptor import build, compilers, elf, native, project, spec
from hami_interceptor.errors import BuildError, InterceptorError
from hami_interceptor.table import Api

ROOT = Path(__file__).parents[2]
DATA = Path(__file__).parent / "data"
VENDORS = ("nvidia", "hygon", "ascend", "cambricon")
SYSTEM = {"libc.so.6", "libpthread.so.0", "libdl.so.2", "librt.so.1", "ld-linux-x86-64.so.2", "ld-linux-aarch64.so.1"}
RESOLVERS = {"dlsym", "dlvsym"}

needs_portable = pytest.mark.skipif(not compilers.portable_is_here(), reason="the pinned portable compiler (ziglang) is not installed")


@pytest.fixture(scope="module")
def toy() -> Api:
    return spec.load(DATA / "spec" / "toy.toml")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of this test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "hami" / "interceptors"


def results(cache: Path) -> list[Path]:
    """What has been built, without the object files it was built from."""
    return [path for path in cache.iterdir() if path.name != "objects"]


def test_the_library_exports_its_hooks_and_nothing_else(toy: Api, interceptor: Callable[..., Path]) -> None:
    library = elf.read(interceptor(toy))
    assert set(library.exported) == {row.symbol for row in toy.hooked} | RESOLVERS
    assert library.soname == "libhami_toy.so"
    assert set(library.needed) <= SYSTEM
    assert library.nodelete
    assert library.bound_at_start


def test_two_apis_in_one_library(toy: Api, interceptor: Callable[..., Path], tmp_path: Path) -> None:
    for part in ("spec", "shim"):
        (tmp_path / part).mkdir()
    text = (DATA / "spec" / "toy.toml").read_text().split("[exports]")[0].replace("toy", "joy").replace('["shim.c"]', "[]")
    (tmp_path / "spec" / "joy.toml").write_text(text + '[functions]\njoySteal = { class = "denied", args = "int from" }\n')
    (tmp_path / "shim" / "joy").mkdir()
    (tmp_path / "shim" / "joy" / "joy_api.h").write_text("typedef enum { TOY_NONE } joyResult;\n#define TOY_LOCAL 1\n")
    header = tmp_path / "shim" / "joy" / "joy_api.h"
    header.write_text("typedef int joyResult;\nenum { JOY_OK, JOY_OOM, JOY_NO, JOY_GONE };\n")
    table = tmp_path / "spec" / "joy.toml"
    for old, new in (("TOY_OK", "JOY_OK"), ("TOY_OUT_OF_MEMORY", "JOY_OOM"), ("TOY_REFUSED", "JOY_NO"), ("TOY_MISSING", "JOY_GONE")):
        table.write_text(table.read_text().replace(old, new))
    library = elf.read(interceptor(toy, spec.load(table)))
    assert set(library.exported) == {row.symbol for row in toy.hooked} | {"joySteal"} | RESOLVERS


def test_the_fake_is_the_driver_it_plays(toy: Api, fake_driver: Callable[..., Path]) -> None:
    library = elf.read(fake_driver(toy))
    assert library.soname == "libtoy.so.1"
    assert set(library.exported) == {row.symbol for row in toy.rows} | {"toy_fake_calls"}


def test_the_archive_has_the_core_and_no_front_end(core: Callable[[str], Path]) -> None:
    listed = subprocess.run(["nm", "--defined-only", core("release")], capture_output=True, text=True, check=True).stdout
    defined = {line.split()[-1] for line in listed.splitlines() if len(line.split()) == 3}
    assert {"hami_reserve", "hami_launch_begin", "hami_hook_for", "hami_enter"} <= defined
    assert not {"hami_libraries"} & defined


@pytest.mark.parametrize("variant", ["release", "testing", "asan", "ubsan", "tsan", "asan+testing"])
def test_every_variant_builds(toy: Api, cache: Path, tmp_path: Path, variant: str) -> None:
    fake = build.fake_driver(toy, tmp_path / "libtoy.so.1", variant=variant)
    assert fake.is_file()
    assert len(results(cache)) == 1


def test_a_second_build_compiles_nothing(toy: Api, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = build.fake_driver(toy, tmp_path / "a" / "libtoy.so.1").read_bytes()
    monkeypatch.setattr(compilers.Compiler, "run", lambda *_: pytest.fail("compiled again"))
    assert build.fake_driver(toy, tmp_path / "b" / "libtoy.so.1").read_bytes() == first
    assert len(results(cache)) == 1


def test_what_it_depends_on_names_it(toy: Api, cache: Path, tmp_path: Path) -> None:
    extra = tmp_path / "include"
    extra.mkdir()
    build.fake_driver(toy, tmp_path / "libtoy.so.1")
    build.fake_driver(toy, tmp_path / "libtoy.so.1", variant="testing")
    build.fake_driver(toy, tmp_path / "libtoy.so.2")
    build.fake_driver(toy, tmp_path / "libtoy.so.1", include=[extra])
    assert len(results(cache)) == 3
    (extra / "more.h").write_text("/* changed */\n")
    build.fake_driver(toy, tmp_path / "libtoy.so.1", include=[extra])
    assert len(results(cache)) == 4


def test_a_source_that_does_not_compile_is_shown_with_the_compilers_words(toy: Api, cache: Path, tmp_path: Path) -> None:
    copy = _copied(tmp_path)
    (copy / "fakes" / "toy" / "driver.c").write_text("int driver(void) { return nonsense; }\n")
    with pytest.raises(BuildError, match=r"libtoy\.so\.1: .*driver\.c does not compile \(with .*\n(.|\n)*nonsense"):
        build.fake_driver(spec.load(copy / "spec" / "toy.toml"), tmp_path / "libtoy.so.1")
    assert not results(cache)
    assert not (tmp_path / "libtoy.so.1").exists()


def test_a_source_that_is_not_there(cache: Path, tmp_path: Path) -> None:
    copy = _copied(tmp_path)
    (copy / "fakes" / "toy" / "driver.c").unlink()
    with pytest.raises(BuildError, match=r"toy\.toml: names the source 'driver\.c', and there is no "):
        build.fake_driver(spec.load(copy / "spec" / "toy.toml"), tmp_path / "libtoy.so.1")


@pytest.mark.parametrize(
    ("environment", "arguments", "wanted"),
    [
        pytest.param({"PATH": ""}, {}, "no C compiler found: install gcc, name one in CC", id="none"),
        pytest.param({"CC": "no-such-cc"}, {}, "'no-such-cc' cannot be run", id="CC names nothing"),
        pytest.param({}, {"compiler": "portable"}, "the portable compiler is needed as asked and is not installed", id="portable is missing"),
        pytest.param({}, {"target": "aarch64-linux-gnu"}, "needed to build for aarch64-linux-gnu", id="another machine"),
        pytest.param({}, {"target": "riscv64-linux-gnu"}, "unknown target 'riscv64-linux-gnu'", id="unknown machine"),
        pytest.param({}, {"variant": "fast"}, "unknown variant 'fast'", id="unknown variant"),
    ],
)
def test_what_it_cannot_build_with(
    toy: Api, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], arguments: dict[str, str], wanted: str
) -> None:
    monkeypatch.setattr(compilers, "portable_is_here", lambda: False)
    monkeypatch.setattr(compilers, "host_target", lambda: "x86_64-linux-gnu")
    monkeypatch.delenv("CC", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(BuildError, match=wanted):
        build.fake_driver(toy, tmp_path / "libtoy.so.1", **arguments)  # type: ignore[arg-type]  # texts, all of them


def test_a_library_of_no_api(tmp_path: Path) -> None:
    with pytest.raises(BuildError, match=r"libhami\.so: no API named"):
        build.shared_library([], tmp_path / "libhami.so")


def test_no_shared_object_at_all(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("hello")
    with pytest.raises(InterceptorError, match="is not a 64-bit little-endian ELF file"):
        elf.read(tmp_path / "text")


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_library_exports_its_hooks_and_nothing_else(vendor: str, built: Path) -> None:
    wish = project.read(ROOT / "vendors" / vendor)
    library = elf.read(wish.build(built / "vendors" / Path(wish.library).name))
    assert set(library.exported) == {row.symbol for api in wish.tables() for row in api.hooked} | RESOLVERS
    assert set(library.needed) <= SYSTEM
    assert library.nodelete
    assert library.bound_at_start


def test_a_build_says_the_same_twice(toy: Api, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    built = []
    for number in ("1", "2"):
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / number))
        built.append(build.fake_driver(toy, tmp_path / number / "libtoy.so.1").read_bytes())
    assert built[0] == built[1]


@needs_portable
@pytest.mark.slow
@pytest.mark.timeout(900)
@pytest.mark.parametrize("target", compilers.TARGETS)
@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendors_portable_library_asks_for_no_newer_glibc(vendor: str, target: str, tmp_path: Path) -> None:
    wish = project.read(ROOT / "vendors" / vendor)
    library = elf.read(wish.build(tmp_path / "lib.so", compilers.PORTABLE, target))
    assert library.machine == target.split("-")[0]
    assert library.glibc <= (2, 17), library.versions
    assert set(library.needed) <= SYSTEM
    assert set(library.exported) >= RESOLVERS


@needs_portable
@pytest.mark.slow
def test_a_program_starts_with_the_portable_library_before_it(toy: Api, tmp_path: Path) -> None:
    path = build.shared_library([toy], tmp_path / "libhami_toy.so", compiler=compilers.PORTABLE)
    driver = build.fake_driver(toy, tmp_path / "libtoy.so.1")
    program = f"import ctypes\ntoy = ctypes.CDLL({str(driver)!r})\nprint(toy.toySteal(0), toy.toy_fake_calls(b'toySteal'), toy.toySync())"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, env={**os.environ, "LD_PRELOAD": str(path)})
    assert (done.stdout.split(), done.stderr) == (["8", "0", "0"], ""), "toySteal is refused by the hook, toySync is the driver's own"


@needs_portable
@pytest.mark.slow
@pytest.mark.parametrize("target", compilers.TARGETS)
def test_the_portable_build_asks_for_no_newer_glibc(toy: Api, tmp_path: Path, target: str) -> None:
    path = build.shared_library([toy], tmp_path / "libhami_toy.so", compiler=compilers.PORTABLE, target=target)
    library = elf.read(path)
    assert library.machine == target.split("-")[0]
    assert library.glibc <= (2, 17), library.versions
    assert set(library.exported) == {row.symbol for row in toy.hooked} | RESOLVERS
    assert set(library.needed) <= SYSTEM
    assert library.nodelete


def test_the_command_line(tmp_path: Path, toy: Api) -> None:
    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {"PYTHONPATH": str(Path(compilers.__file__).parents[1]), "PATH": "/usr/bin:/bin", "XDG_CACHE_HOME": str(tmp_path / "cache")}
        return subprocess.run([sys.executable, "-m", "hami_interceptor", *arguments], capture_output=True, text=True, check=False, env=environment)

    built = run("fake", str(toy.path), "-o", str(tmp_path / "libtoy.so.1"))
    assert (built.returncode, built.stdout.strip()) == (0, str(tmp_path / "libtoy.so.1")), built.stderr
    written = run("generate", str(toy.path), "-d", str(tmp_path / "c"))
    assert {path.name for path in (tmp_path / "c").iterdir()} == {"toy_hooks.h", "toy_hooks.c", "toy_fake.h", "toy_fake.c"}
    assert written.returncode == 0
    refused = run("build", "no-such-api", "-o", str(tmp_path / "x.so"))
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "there is no API called 'no-such-api'" in refused.stderr
    assert run("build").returncode == 2
    assert run("core", "-o", str(tmp_path / "libhami_core.a")).returncode == 0
    assert run("root").stdout.strip() == str(native.root())
    assert "Traceback" not in run("layout", "--check").stderr
    assert {"layout", "build", "fake", "coverage", "unclassified"} <= set(run("--help").stdout.split())


def test_the_core_is_where_native_says() -> None:
    assert (native.core() / "layout.toml").is_file()


def _copied(folder: Path) -> Path:
    for path in DATA.rglob("*"):
        if path.is_file():
            (folder / "copy" / path.relative_to(DATA)).parent.mkdir(parents=True, exist_ok=True)
            (folder / "copy" / path.relative_to(DATA)).write_bytes(path.read_bytes())
    return folder / "copy"
