# SPDX-License-Identifier: Apache-2.0
"""The SDK as a stranger has it: no dependency, a wheel that carries all it needs, and a build hook for a vendor's own wheel."""

from __future__ import annotations

import ast
import os
import subprocess
import sys
import sysconfig
import tomllib
import zipfile
from pathlib import Path

import pytest

from hami_interceptor import compilers, elf, native, project, spec
from hami_interceptor.errors import SpecError

ROOT = Path(__file__).parents[2]
PACKAGE = Path(native.__file__).parent
ACME = ROOT / "examples" / "interceptor-acme"
VENDORS = ("nvidia", "hygon", "ascend", "cambricon")
HOOK = '[tool.hatch.build.hooks.hami-interceptor]\napis = ["cuda"]\nlibrary = "hami_x/lib/libhami_x.so"\n'


@pytest.mark.parametrize("module", sorted(path.name for path in PACKAGE.glob("*.py")))
def test_nothing_but_the_standard_library_is_imported(module: str) -> None:
    tree = ast.parse((PACKAGE / module).read_text())
    names = {alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    strangers = {name.split(".")[0] for name in names} - sys.stdlib_module_names - {"hami_interceptor"}
    assert strangers == ({"hatchling"} if module == "hatch.py" else set())


@pytest.mark.parametrize("vendor", VENDORS)
def test_a_vendor_says_what_it_wants_built(vendor: str) -> None:
    wish = project.read(ROOT / "vendors" / vendor)
    assert wish.library == f"hami_{vendor}/lib/libhami_{vendor}.so"
    assert wish.apis


def test_no_two_vendors_stand_before_the_same_library() -> None:
    names = [api for vendor in VENDORS for api in project.read(ROOT / "vendors" / vendor).apis]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        pytest.param("", r"has no \[tool\.hatch\.build\.hooks\.hami-interceptor\]", id="no section"),
        pytest.param(HOOK.replace("apis", "api"), "unknown key 'api'; known: apis, library", id="unknown key"),
        pytest.param(HOOK.replace('["cuda"]', "[]"), "needs apis = a list", id="no api"),
        pytest.param(HOOK.replace('["cuda"]', '"cuda"'), "needs apis = a list", id="apis as a text"),
        pytest.param(HOOK.replace(".so", ".dll"), "needs library = where the shared object goes", id="no shared object"),
        pytest.param(HOOK.replace('"hami_x', '"../hami_x'), "needs library = where the shared object goes", id="outside the package"),
        pytest.param("[tool", "is not TOML", id="not TOML"),
    ],
)
def test_a_wish_that_cannot_be_granted(tmp_path: Path, text: str, wanted: str) -> None:
    (tmp_path / "pyproject.toml").write_text(text)
    with pytest.raises(SpecError, match=r"pyproject\.toml: ") as caught:
        project.read(tmp_path)
    assert caught.match(wanted)


def test_a_project_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(SpecError, match=r"pyproject\.toml: cannot be read: No such file"):
        project.read(tmp_path)


@pytest.mark.parametrize(
    ("portable", "target", "tag"),
    [
        pytest.param(True, "x86_64-linux-gnu", "py3-none-manylinux_2_17_x86_64", id="portable"),
        pytest.param(True, "aarch64-linux-gnu", "py3-none-manylinux_2_17_aarch64", id="portable for another machine"),
        pytest.param(False, "x86_64-linux-gnu", "py3-none-linux_x86_64", id="the host's own compiler"),
    ],
)
def test_the_tag_says_where_a_wheel_loads(portable: bool, target: str, tag: str) -> None:
    assert project.wheel_tag(compilers.Compiler(command=("cc",), portable=portable, target=target)) == tag


def test_the_portable_compiler_is_pinned_to_one_version_everywhere() -> None:
    extra = tomllib.loads((ROOT / "interceptors" / "pyproject.toml").read_text())["project"]["optional-dependencies"]["portable"]
    wanted = [line for line in (ROOT / "requirements" / "dev.in").read_text().splitlines() if line.startswith("ziglang")]
    locked = [line.split()[0] for line in (ROOT / "requirements" / "dev.txt").read_text().splitlines() if line.startswith("ziglang")]
    assert extra == wanted == locked


def test_the_example_is_read_as_the_documentation_says() -> None:
    api = spec.load(ACME / "spec" / "acme.toml")
    assert len(api.rows) == 6
    text = (ROOT / "docs" / "interceptor-sdk.md").read_text()
    assert all(row.symbol in text for row in api.rows)


# -- installed, as a stranger does ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stranger(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the SDK's wheel, built through its sdist, and the packager that is here; no network."""
    folder = tmp_path_factory.mktemp("stranger")
    subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(folder / "dist"), str(ROOT / "interceptors")], check=True, capture_output=True
    )
    subprocess.run([sys.executable, "-m", "venv", str(folder / "venv")], check=True)
    (wheel,) = (folder / "dist").glob("*.whl")
    subprocess.run([folder / "venv" / "bin" / "python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", str(wheel)], check=True)
    packages = Path(sysconfig.get_paths(vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")})["purelib"])
    (packages / "borrowed").mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if entry.name.split("-")[0] in ("hatchling", "build", "pyproject_hooks", "packaging", "pathspec", "pluggy", "tomlkit", "trove_classifiers", "ziglang"):
            (packages / "borrowed" / entry.name).symlink_to(entry)
    (packages / "borrowed.pth").write_text("borrowed\n")
    return folder


def run(stranger: Path, *arguments: str, directory: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "CC")}
    command = [str(stranger / "venv" / "bin" / "python"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=directory, env={**clean, "XDG_CACHE_HOME": str(stranger / "cache"), **environment}
    )


def copied(folder: Path) -> Path:
    for path in sorted(ACME.rglob("*")):
        if path.is_file() and path.suffix != ".so" and "__pycache__" not in path.parts:
            target = folder / "acme" / path.relative_to(ACME)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    return folder / "acme"


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
@pytest.mark.timeout(900)
def test_a_stranger_builds_a_front_end_of_his_own(stranger: Path, tmp_path: Path) -> None:
    acme = copied(tmp_path)
    covered = run(stranger, "-m", "hami_interceptor", "coverage", "spec/acme.toml", directory=acme)
    assert (covered.returncode, covered.stdout.split()[-7:]) == (0, ["acme", "1.0", "6", "6", "5", "5", "-"]), covered.stderr
    built = run(stranger, "-m", "build", "--no-isolation", "--outdir", str(tmp_path / "dist"), ".", directory=acme)
    assert built.returncode == 0, built.stdout + built.stderr
    (wheel,) = (tmp_path / "dist").glob("*.whl")
    portable = compilers.portable_is_here()
    assert wheel.name.endswith("-py3-none-manylinux_2_17_x86_64.whl" if portable else f"-py3-none-linux_{compilers.host_target().split('-')[0]}.whl")
    zipfile.ZipFile(wheel).extract("hami_acme_interceptor/lib/libhami_acme.so", tmp_path)
    library = elf.read(tmp_path / "hami_acme_interceptor" / "lib" / "libhami_acme.so")
    assert set(library.exported) == {"acmeMalloc", "acmeFree", "acmeLaunch", "acmeMemory", "acmeFunction", "dlsym", "dlvsym"}
    assert not portable or library.glibc <= (2, 17)


@pytest.mark.slow
@pytest.mark.xdist_group("packaging")
@pytest.mark.timeout(900)
def test_a_wheel_without_its_interceptor_says_so_or_is_not_built(stranger: Path, tmp_path: Path) -> None:
    acme = copied(tmp_path)

    def build(**environment: str) -> subprocess.CompletedProcess[str]:
        return run(stranger, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path / "dist"), ".", directory=acme, **environment)

    skipped = build(HAMI_INTERCEPTOR="skip")
    assert skipped.returncode == 0
    assert "this wheel carries no interceptor" in skipped.stdout + skipped.stderr
    assert [path.name for path in (tmp_path / "dist").glob("*.whl")] == ["hami_interceptor_acme-0.1.0-py3-none-any.whl"]
    wrong = build(HAMI_INTERCEPTOR="yes")
    assert wrong.returncode != 0
    assert "HAMI_INTERCEPTOR='yes' is unknown" in wrong.stdout + wrong.stderr
    (acme / "shim" / "acme" / "front.c").write_text("int nonsense = nothing;\n")
    broken = build()
    assert broken.returncode != 0
    assert "libhami_acme.so cannot be built into this wheel" in broken.stdout + broken.stderr
    assert "set HAMI_INTERCEPTOR=skip" in broken.stdout + broken.stderr
