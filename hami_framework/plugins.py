# SPDX-License-Identifier: Apache-2.0
"""Finds, checks and holds the vendors' packages. Built-in vendors come in through the same door as a stranger's.

Each vendor has a plugin manager of its own, so that a hook is put to the owning vendor alone and no plugin has to guard
itself against questions about its neighbours' devices (`docs/decisions/0002-one-manager-per-vendor.md`). What cannot be
loaded is a `Problem` with a name, and the rest goes on.

The extender and the command line use this module directly. On a node only the vendor's worker process does.
"""

from __future__ import annotations

import difflib
import importlib.util
import inspect
import logging
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import msgspec
import pluggy

from hami_framework import hookspecs
from hami_framework.codec.resources import ResourceCatalog, clashes, malformed, renamed
from hami_framework.errors import ConfigError, PluginError
from hami_framework.hookspecs import GROUP, SPEC_VERSION
from hami_framework.model import DeviceClass, DeviceRequest, Machine, Offer, Rejection, ResourceNames, Value, VendorInfo
from hami_framework.quarantine import Guarded

log = logging.getLogger(__name__)

HOOKS: dict[str, tuple[str, ...]] = {
    name: tuple(inspect.signature(function).parameters) for name, function in vars(hookspecs).items() if name.startswith("hami_") and callable(function)
}
"""Every hook of the specification with its arguments."""

PARTITION_BUDGET_SECONDS = 0.1


class Problem(Value, frozen=True, kw_only=True):
    """A vendor that could not be taken in, or only in part, and why."""

    vendor: str
    package: str = ""
    what: str


class Source(Value, frozen=True, kw_only=True):
    """Where a vendor's plugin comes from: an entry point's module, or one file."""

    vendor: str
    target: str
    """Module name, or the path of the file."""
    package: str = ""
    version: str = ""
    is_file: bool = False


class LoadedVendor:
    """A vendor's plugin, checked and ready to be asked."""

    def __init__(self, source: Source, module: ModuleType) -> None:
        self.name = source.vendor
        self.source = source
        self.spec_version = str(getattr(module, "HAMI_SPEC_VERSION", ""))
        self._manager = pluggy.PluginManager(GROUP)
        self._manager.add_hookspecs(hookspecs)
        self._manager.register(module, name=source.vendor)
        self.hooks = tuple(name for name in HOOKS if getattr(self._manager.hook, name).get_hookimpls())
        self.resources = self._declared_resources()

    def call(self, hook: str, **arguments: object) -> Any:
        """The vendor's answer, or None when it does not implement the hook. Whatever it raises comes through."""
        answers = getattr(self._manager.hook, hook)(**arguments)
        return answers[0] if answers else None

    @property
    def info(self) -> VendorInfo:
        return VendorInfo(
            name=self.name, package=self.source.package, version=self.source.version, spec_version=self.spec_version, resources=self.resources, state="ready"
        )

    def _declared_resources(self) -> tuple[ResourceNames, ...]:
        declared = self.call("hami_resources")
        families = (declared,) if isinstance(declared, ResourceNames) else tuple(declared or ())
        for family in families:
            if not isinstance(family, ResourceNames):
                raise PluginError(self.name, "hami_resources", f"answered {type(family).__name__}, expected ResourceNames")
            if problems := malformed(self.name, family):
                raise PluginError(self.name, "hami_resources", "; ".join(problems))
        return families


def find_sources(allow: Sequence[str] | None = None, plugin_files: Sequence[Path] = ()) -> tuple[list[Source], list[Problem]]:
    """All plugins that are installed or named, without loading any. `allow` None takes every one installed."""
    from importlib_metadata import entry_points  # 66 ms: only those who look for plugins pay

    found: dict[str, list[Source]] = {}
    for entry in entry_points(group=GROUP):
        if allow is None or entry.name in allow:
            package, version = (entry.dist.metadata["Name"], entry.dist.version) if entry.dist else ("", "")
            source = Source(vendor=entry.name, target=entry.value, package=package, version=version)
            found.setdefault(entry.name, []).append(source)
    for path in dict.fromkeys(path.resolve() for path in plugin_files):  # settings and flags may name the same file
        source = Source(vendor=_file_vendor(path), target=str(path), package=path.name, is_file=True)
        found.setdefault(source.vendor, []).append(source)
    problems = [
        Problem(
            vendor=name,
            package=", ".join(s.package for s in sources),
            what=f"the vendor name {name!r} is registered {len(sources)} times: remove all but one package",
        )
        for name, sources in found.items()
        if len(sources) > 1
    ]
    missing = [name for name in allow or () if name not in found]
    problems += [Problem(vendor=name, what="is in the allow-list but no installed package registers it") for name in missing]
    return [sources[0] for sources in found.values() if len(sources) == 1], problems


def _file_vendor(path: Path) -> str:
    """The vendor name of a one-file plugin: the file's name, or its folder's where the file is a package's `__init__.py`."""
    return (path.resolve().parent.name if path.name == "__init__.py" else path.stem).removeprefix("hami_")


def load(source: Source) -> LoadedVendor:
    """Import and check one plugin. Raises `PluginError` with the reason in words."""
    try:
        module = _import_file(source) if source.is_file else importlib.import_module(source.target)
    except (Exception, SystemExit) as error:  # a module that calls sys.exit while it is imported must not end us
        raise PluginError(source.vendor, "(import)", f"{type(error).__name__}: {error}") from error
    _check_spec_version(source, module)
    _check_signatures(source, module)
    try:
        vendor = LoadedVendor(source, module)
        if not vendor.hooks:
            raise PluginError(source.vendor, "(hooks)", f"implements none; decorate its functions with @hookimpl, e.g. {', '.join(list(HOOKS)[:3])}")
        return vendor
    except PluginError:
        raise
    except Exception as error:
        raise PluginError(source.vendor, "hami_resources", f"{type(error).__name__}: {error}") from error


def _import_file(source: Source) -> ModuleType:
    name = f"hami_plugin_file_{source.vendor}"
    spec = importlib.util.spec_from_file_location(name, source.target)
    if spec is None or spec.loader is None:
        raise ConfigError(f"{source.target} is not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def _check_spec_version(source: Source, module: ModuleType) -> None:
    wanted = getattr(module, "HAMI_SPEC_VERSION", None)
    ours = SPEC_VERSION.split(".", maxsplit=1)[0]
    if wanted is None:
        raise PluginError(
            source.vendor, "HAMI_SPEC_VERSION", f'the module does not say which hook specification it was written for: add HAMI_SPEC_VERSION = "{ours}"'
        )
    if str(wanted).split(".", maxsplit=1)[0] != ours:
        raise PluginError(source.vendor, "HAMI_SPEC_VERSION", f"was written for hook specification {wanted}, this core speaks {SPEC_VERSION}")


def _check_signatures(source: Source, module: ModuleType) -> None:
    for name, function in inspect.getmembers(module, inspect.isfunction):
        marked = hasattr(function, f"{GROUP}_impl")
        if not marked and name in HOOKS and function.__module__ == module.__name__:
            raise PluginError(source.vendor, name, "is named like a hook but lacks the decorator @hookimpl")
        if not marked:
            continue
        if name not in HOOKS:
            raise PluginError(source.vendor, name, f"there is no such hook{_did_you_mean(name, HOOKS)}")
        for argument in inspect.signature(function).parameters:
            if argument not in HOOKS[name]:
                raise PluginError(source.vendor, name, f"takes {argument!r}; the hook has ({', '.join(HOOKS[name])}){_did_you_mean(argument, HOOKS[name])}")


def _did_you_mean(word: str, words: Iterable[str]) -> str:
    close = difflib.get_close_matches(word, list(words), n=1, cutoff=0.5)
    return f": did you mean {close[0]!r}?" if close else ""


class Registry:
    """The vendors that were taken in, and the problems with those that were not."""

    def __init__(self, vendors: Iterable[LoadedVendor], problems: Iterable[Problem], rename: Mapping[str, str] | None = None) -> None:
        self.problems = list(problems)
        self._renames = dict(rename or {})
        self.vendors = self._without_rivals({vendor.name: vendor for vendor in vendors})
        self._guards = {name: Guarded(name, "hami_partition", PARTITION_BUDGET_SECONDS) for name in self.vendors}
        self._partitions: dict[tuple[DeviceClass, DeviceRequest], tuple[Offer | Rejection, ...]] = {}

    def _without_rivals(self, vendors: dict[str, LoadedVendor]) -> dict[str, LoadedVendor]:
        """Two vendors that claim one resource name are both refused: guessing whose it is would hand out the wrong device."""
        quarrels = clashes((vendor.name, family) for vendor in vendors.values() for family in self._families(vendor))
        for clash in quarrels:
            for name in sorted(set(clash.vendors) & vendors.keys()):
                self.problems.append(Problem(vendor=name, package=vendors[name].source.package, what=clash.message))
        rivals = {name for clash in quarrels for name in clash.vendors}
        return {name: vendor for name, vendor in vendors.items() if name not in rivals}

    def _families(self, vendor: LoadedVendor) -> tuple[ResourceNames, ...]:
        return tuple(renamed(family, self._renames) for family in vendor.resources)

    def catalog(self) -> ResourceCatalog:
        """The resource names of all vendors, with the operator's renames, and the neutral family."""
        families = [(vendor.name, family) for vendor in self.vendors.values() for family in self._families(vendor)]
        return ResourceCatalog(families, vendors=self.vendors)

    def partition(self, device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
        """What the owning vendor offers; never raises, never waits longer than the budget.

        A vendor that is not installed here answers `vendor-missing`; one that raises, answers nonsense or overruns its
        budget is quarantined, answers `vendor-quarantined` with the reason, and is asked again after a while.
        """
        key = (device_class, request)
        known = self._partitions.get(key)
        if known is not None:
            return known
        vendor = self.vendors.get(device_class.vendor)
        if vendor is None:
            hint = f"install the package of vendor {device_class.vendor!r} beside the scheduler"
            return (_refusal("vendor-missing", hint=hint),)
        try:
            answer = self._guards[vendor.name].run(lambda: _within_terms(vendor, device_class, request))
        except PluginError as error:
            log.warning("%s", error)
            return (_refusal("vendor-quarantined", message=str(error)),)
        self._partitions[key] = answer
        return answer

    def quarantined(self) -> dict[str, str]:
        """Vendors whose `hami_partition` misbehaved and has not been forgiven yet, with the reason."""
        return {name: guard.reason for name, guard in self._guards.items() if guard.reason}

    def machines(self) -> dict[str, tuple[str, Machine]]:
        """The machines that the packages can play in the sandbox: name → (vendor, machine)."""
        return {machine.name: (vendor.name, machine) for vendor in self.vendors.values() for machine in vendor.call("hami_machines") or ()}

    def policies(self) -> list[Any]:
        """The placement policies that packages add."""
        return [policy for vendor in self.vendors.values() for policy in vendor.call("hami_policies") or ()]


def _refusal(reason: str, **details: str) -> Rejection:
    from hami_framework.model import Reason

    return Rejection(reason=Reason(reason), **details)


def _checked_offers(vendor: LoadedVendor, device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    answer = tuple(vendor.call("hami_partition", device_class=device_class, request=request) or ())
    for item in answer:
        if not isinstance(item, Offer | Rejection):
            raise TypeError(f"answered {type(item).__name__}, expected Offer or Rejection")
    return answer


def _within_terms(vendor: LoadedVendor, device_class: DeviceClass, request: DeviceRequest) -> tuple[Offer | Rejection, ...]:
    """The vendor's answer where the operator has left the choice of mode; otherwise what of it is in the node's one mode."""
    only = device_class.terms.only_mode
    if only is None:
        return _checked_offers(vendor, device_class, request)
    other = _refusal("mode-unsupported", hint=f"devices of this node are given out in mode {only!r} only: ask for that one, or leave the mode out")
    if request.mode not in (None, only):
        return (other,)
    # A profile has a mode of its own, which the vendor knows; everybody else is given the node's.
    asked = request if request.profile is not None else msgspec.structs.replace(request, mode=only)
    answer = _checked_offers(vendor, device_class, asked)
    return tuple(item for item in answer if not isinstance(item, Offer) or item.mode == only) or (other,)


def load_registry(allow: Sequence[str] | None = None, plugin_files: Sequence[Path] = (), rename: Mapping[str, str] | None = None) -> Registry:
    """Load every plugin that is installed (or in `allow`) and every file named; problems are in `Registry.problems`."""
    sources, problems = find_sources(allow, plugin_files)
    return Registry(*_load_all(sources, problems, load), rename=rename)


def _load_all(sources: Iterable[Source], problems: list[Problem], loader: Callable[[Source], LoadedVendor]) -> tuple[list[LoadedVendor], list[Problem]]:
    vendors = []
    for source in sources:
        try:
            vendors.append(loader(source))
        except PluginError as error:
            problems.append(Problem(vendor=source.vendor, package=source.package, what=f"{error.hook}: {error.problem}"))
    for problem in problems:
        log.warning("vendor %s (%s): %s", problem.vendor, problem.package or "no package", problem.what)
    return vendors, problems
