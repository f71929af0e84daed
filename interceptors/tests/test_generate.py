# SPDX-License-Identifier: Apache-2.0
"""The generated C, driven: what each shape of wrapper asks of the core, in which order, and what its caller gets."""

from __future__ import annotations

import ctypes
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

from hami_interceptor import build, compilers, generate, native, spec
from hami_interceptor.table import Api

DATA = Path(__file__).parent / "data"
OK, OUT_OF_MEMORY, REFUSED, MISSING = 0, 2, 8, 9
OVER_LIMIT, NOT_PERMITTED = 1, 2


class Toy(NamedTuple):
    """The wrappers over a core that writes down what it is asked, before a fake driver."""

    library: ctypes.CDLL
    driver: ctypes.CDLL

    def set(self, *, verdict: int = 0, inside: bool = False, missing: bool = False, ours: bool = True, limited: bool = True, sample: bool = False) -> None:
        self.library.set(verdict, inside, missing, ours, limited, sample)

    def recorded(self) -> str:
        self.library.recorded.restype = ctypes.c_char_p
        return str(self.library.recorded().decode()).strip()

    def calls(self, symbol: str) -> int:
        return int(self.driver.toy_fake_calls(symbol.encode()))


@pytest.fixture(scope="module")
def api() -> Api:
    return spec.load(DATA / "spec" / "toy.toml")


@pytest.fixture(scope="module")
def library(api: Api, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The toy's wrappers and shim, linked with the recording core instead of the real one."""
    folder = tmp_path_factory.mktemp("generated")
    for name, text in {**generate.everything(api), "libraries.c": generate.libraries([api])}.items():
        (folder / name).write_text(text)
    sources = [folder / "toy_hooks.c", folder / "libraries.c", api.shim / "shim.c", DATA / "recording_core.c"]
    flags = [*build.FLAGS, "-O2", "-shared", *(f"-iquote{path}" for path in (folder, DATA, native.core(), api.shim))]
    compilers.choose().run([*flags, *map(str, sources), "-o", str(folder / "libhami_toy.so"), "-ldl"], "toy")
    return folder / "libhami_toy.so"


@pytest.fixture
def toy(library: Path, api: Api, fake_driver: object, monkeypatch: pytest.MonkeyPatch) -> Iterator[Toy]:
    assert callable(fake_driver)
    path = fake_driver(api)
    monkeypatch.setenv("TOY_DRIVER", str(path))
    toy = Toy(ctypes.CDLL(str(library)), ctypes.CDLL(str(path)))
    toy.set()
    yield toy
    toy.set()


def test_an_allocation_is_reserved_before_and_kept_after(toy: Toy) -> None:
    out = ctypes.c_uint64()
    assert toy.library.toyAlloc(ctypes.byref(out), ctypes.c_size_t(5000)) == OK
    assert out.value
    assert toy.recorded() == "real(toyAlloc) enter find(uuid=TOY-0) granule 4096: linear_reserve(3, 5000)=0 linear_keep(key, 5000 of 5000) leave"


def test_an_allocation_that_is_refused_never_reaches_the_driver(toy: Toy) -> None:
    before = toy.calls("toyAlloc")
    for verdict, answer in ((OVER_LIMIT, OUT_OF_MEMORY), (NOT_PERMITTED, REFUSED)):
        toy.set(verdict=verdict)
        assert toy.library.toyAlloc(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(1)) == answer
        assert toy.recorded().endswith(f"linear_reserve(3, 1)={verdict} leave")
    assert toy.calls("toyAlloc") == before


def test_what_the_driver_refuses_is_given_back(toy: Toy) -> None:
    assert toy.library.toyAlloc(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(1 << 41)) == OUT_OF_MEMORY
    assert toy.recorded().endswith(f"linear_reserve(3, {1 << 41})=0 give_back({1 << 41}) leave")


def test_a_book_keeps_what_was_really_taken(toy: Toy) -> None:
    out = ctypes.c_uint64(4096 + 30)  # the generated fake leaves it as it is; 30 is what the array "took"
    assert toy.library.toyArray(ctypes.byref(out), (ctypes.c_size_t * 2)(6, 7)) == OK
    assert toy.recorded().endswith("reserve(3, 42)=0 keep(1, key, 30 of 42, tag 42) leave")


@pytest.mark.parametrize(
    ("pointer", "ours", "answer", "wanted"),
    [
        pytest.param(8192, True, OK, "linear_take(8192)=1 linear_freed(8192)", id="ours"),
        pytest.param(8192, False, OK, "linear_take(8192)=0", id="unknown goes to the driver"),
        pytest.param(8193, True, MISSING, "linear_take(8193)=1 linear_return(8193)", id="the driver refuses"),
    ],
)
def test_a_free(toy: Toy, pointer: int, ours: bool, answer: int, wanted: str) -> None:
    toy.set(ours=ours)
    assert toy.library.toyFree(ctypes.c_uint64(pointer)) == answer
    assert toy.recorded() == f"real(toyFree) enter {wanted} leave"


def test_a_free_from_a_book(toy: Toy) -> None:
    assert toy.library.toyArrayFree(ctypes.c_uint64(5)) == OK
    assert toy.recorded() == "real(toyArrayFree) enter 1:take(5)=1 give_back(77) leave"


def launch(toy: Toy, symbol: str = "toyLaunch", stream: int = 0) -> int:
    return int(getattr(toy.library, symbol)(ctypes.c_void_p(0x10), ctypes.c_uint(64), ctypes.c_void_p(stream)))


def test_a_launch_without_a_limit_asks_nothing_of_the_core(toy: Toy) -> None:
    toy.set(limited=False)
    before = toy.calls("toyLaunch")
    assert launch(toy) == OK
    assert toy.recorded() == "real(toyLaunch)"  # it is looked up each time, since this core does not keep it
    assert toy.calls("toyLaunch") == before + 1


def test_a_launch_whose_driver_function_is_known_goes_by_the_gate_alone(toy: Toy) -> None:
    toy.library.keep(1)
    toy.set(limited=False)
    before = toy.calls("toyLaunchAgain")
    assert [launch(toy, "toyLaunchAgain") for _ in range(3)] == [OK, OK, OK]
    assert toy.recorded() == "real(toyLaunchAgain)"
    toy.library.keep(0)
    toy.set(limited=True)
    assert launch(toy, "toyLaunchAgain") == OK
    assert toy.recorded().startswith("enter find(uuid=TOY-0) begin(")
    assert toy.calls("toyLaunchAgain") == before + 4


@pytest.mark.parametrize(
    ("symbol", "stream", "sample", "wanted"),
    [
        pytest.param("toyLaunch", 5, False, "begin(3, 16, 64, wait)=0", id="plain"),
        pytest.param("toyLaunch", 1, False, "begin(3, 16, 64, no wait)=0", id="capturing"),
        pytest.param("toyLaunch", 5, True, "begin(3, 16, 64, wait)=0 before(events, 16, stream 5, context 7) after(launched)", id="sampled"),
        pytest.param("toyLaunch_ptsz", 0, True, "begin(3, 16, 64, wait)=0 before(events, 16, stream 2, context 7) after(launched)", id="a twin's own stream"),
    ],
)
def test_a_limited_launch(toy: Toy, symbol: str, stream: int, sample: bool, wanted: str) -> None:
    toy.set(sample=sample)
    before = toy.calls(symbol)
    assert launch(toy, symbol, stream) == OK
    assert toy.recorded() == f"real({symbol}) enter find(uuid=TOY-0) {wanted} leave"
    assert toy.calls(symbol) == before + 1


def test_a_launch_that_is_refused(toy: Toy) -> None:
    before = toy.calls("toyLaunch")
    toy.set(verdict=NOT_PERMITTED)
    assert launch(toy) == REFUSED
    assert toy.calls("toyLaunch") == before


def test_the_driver_calling_itself_goes_straight_through(toy: Toy) -> None:
    toy.set(inside=True)
    assert toy.library.toyAlloc(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(1)) == OK
    assert launch(toy) == OK
    assert toy.library.toyForget(ctypes.c_uint64(1)) is not None
    assert toy.recorded() == "real(toyAlloc) real(toyLaunch) real(toyForget)"


def test_a_function_that_the_driver_lacks(toy: Toy) -> None:
    toy.set(missing=True)
    toy.library.toyName.restype = ctypes.c_char_p
    assert toy.library.toyAlloc(ctypes.byref(ctypes.c_uint64()), ctypes.c_size_t(1)) == MISSING
    assert launch(toy) == MISSING
    assert toy.library.toyReset() == MISSING
    assert toy.library.toyName(0, None) == b"none"
    assert toy.recorded() == ""


def test_a_denied_function_is_never_asked(toy: Toy) -> None:
    assert toy.library.toySteal(0) == REFUSED
    assert toy.recorded() == ""
    assert toy.calls("toySteal") == 0


@pytest.mark.parametrize("symbol", ["toyInfo", "toyInfo_ptsz"])
def test_twins_share_the_hand_hook_and_keep_their_own_driver_function(toy: Toy, symbol: str) -> None:
    free, total, before = ctypes.c_size_t(), ctypes.c_size_t(), toy.calls(symbol)
    assert getattr(toy.library, symbol)(ctypes.byref(free), ctypes.byref(total)) == OK
    assert (free.value, total.value) == (60, 103)
    assert toy.calls(symbol) == before + 1


def test_a_hand_hook_reaches_a_function_that_is_not_hooked(toy: Toy) -> None:
    before = toy.calls("toySync")
    assert toy.library.toyReset() == OK
    assert toy.recorded().startswith("real(toyReset) enter")
    assert toy.recorded().endswith("leave")
    assert toy.calls("toySync") == before


def test_the_drivers_resolver_hands_out_hooks(toy: Toy) -> None:
    address = ctypes.c_void_p()
    assert toy.library.toyGetProcAddress(b"toyAlloc", ctypes.byref(address)) == OK
    assert address.value == ctypes.cast(toy.library.toyAlloc, ctypes.c_void_p).value
    assert toy.library.toyGetProcAddress(b"toySync", ctypes.byref(address)) == OK
    assert address.value == ctypes.cast(toy.driver.toySync, ctypes.c_void_p).value
    assert "unknown(toySync)" in toy.recorded()


def test_the_fake_exports_every_row_and_answers(toy: Toy, api: Api) -> None:
    for row in api.rows:
        assert ctypes.cast(getattr(toy.driver, row.symbol), ctypes.c_void_p).value
    assert toy.driver.toyOld() == OK
    assert toy.driver.toyVersion() == 0
    assert toy.calls("toyOld") > 0
    assert toy.calls("no such symbol") == 0


def test_what_is_generated_depends_on_the_table_alone(api: Api) -> None:
    again = spec.load(DATA / "spec" / "toy.toml")
    assert generate.everything(api) == generate.everything(again)
    assert "/tmp" not in "".join(generate.everything(api).values())
    assert str(DATA) not in "".join(generate.everything(api).values())


def test_a_table_without_a_hook_compiles(tmp_path: Path) -> None:
    (tmp_path / "spec").mkdir()
    (tmp_path / "shim" / "toy").mkdir(parents=True)
    (tmp_path / "shim" / "toy" / "toy_api.h").write_text("typedef int toyResult;\n#define TOY_OK 0\n")
    head = (DATA / "spec" / "toy.toml").read_text().split("[exports]")[0]
    (tmp_path / "spec" / "toy.toml").write_text(head + '[functions]\ntoySync = { class = "inert" }\n')
    bare = spec.load(tmp_path / "spec" / "toy.toml")
    text = generate.wrappers(bare)
    (tmp_path / "toy_hooks.h").write_text(generate.hooks_header(bare).replace("TOY_OUT_OF_MEMORY", "2").replace("TOY_REFUSED", "8"))
    (tmp_path / "toy_hooks.c").write_text(text)
    includes = [f"-iquote{path}" for path in (tmp_path, native.core(), bare.shim)]
    compilers.choose().run([*build.FLAGS, "-O2", "-c", *includes, str(tmp_path / "toy_hooks.c"), "-o", str(tmp_path / "toy_hooks.o")], "bare")
