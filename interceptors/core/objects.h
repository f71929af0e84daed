/* SPDX-License-Identifier: Apache-2.0 */
/*
 * objects.h: questions to the objects that are loaded, answered from their own tables, without a call to the dynamic linker's lookups.
 */
#ifndef HAMI_OBJECTS_H
#define HAMI_OBJECTS_H

#include <stdbool.h>
#include <stddef.h>

#include "internal.h"

/* The default version of function `name` in the first loaded object whose SONAME is in `sonames` (NULL-terminated). NULL: none has it. */
HAMI_HIDDEN void *hami_elf_function(const char *const *sonames, const char *name);
/*
 * A library is meant by its name up to ".so": what follows is the major version, which a table cannot know for every driver
 * release (libamdhip64.so.5, .6, .7). An object without a SONAME goes by its file's name.
 */
/* Whether `address` belongs to a loaded object that is the library `soname`. */
HAMI_HIDDEN bool hami_object_is(const void *address, const char *soname);
/* Copies the path under which the library `soname` is loaded. False: it is not. */
HAMI_HIDDEN bool hami_object_loaded(const char *soname, char *path, size_t length);

#endif
