/* SPDX-License-Identifier: Apache-2.0 */
/*
 * resolve.h: what resolve.c (the doors dlsym and dlvsym) and symbols.c (tables and drivers) say to each other.
 */
#ifndef HAMI_RESOLVE_H
#define HAMI_RESOLVE_H

#include "internal.h"

/* The C library's own; NULL only while no object that has them is loaded. */
HAMI_HIDDEN void *(*hami_true_dlsym(void))(void *handle, const char *name);
HAMI_HIDDEN void *(*hami_true_dlvsym(void))(void *handle, const char *name, const char *version);
HAMI_HIDDEN void *(*hami_true_dlopen(void))(const char *file, int mode);

/* The driver's own `name` if the driver is loaded already; it is not loaded for the asking. */
HAMI_HIDDEN void *hami_loaded_driver_symbol(const struct hami_library *library, const char *name);
/* `address` is the driver's own function of this row: kept, and the driver is held loaded, so that the address stays good. */
HAMI_HIDDEN void hami_real_seen(const struct hami_library *library, const struct hami_symbol *symbol, void *address);
/* A name of the table, whether hooked or not. */
HAMI_HIDDEN bool hami_symbol_known(const struct hami_library *library, const char *name);
HAMI_HIDDEN void hami_count_unknown(void);

#endif
