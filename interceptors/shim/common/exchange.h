/* SPDX-License-Identifier: Apache-2.0 */
/*
 * exchange.h: memory that goes from one process to another, for every driver. Who shares a container shares its limit, so
 * an importer is charged only where the policy says so, and only for memory that no process of this container has exported. A file descriptor is another number in
 * every process: what names the memory is the file behind it.
 */
#ifndef HAMI_SHIM_EXCHANGE_H
#define HAMI_SHIM_EXCHANGE_H

#include <errno.h>
#include <sys/stat.h>
#include <unistd.h>

#include "hami_core.h"

static inline bool hami_imports_charged(int device) {
    const struct hami_policy_device *policy = hami_device_policy(device);
    return policy == NULL || (policy->flags & HAMI_DEVICE_FLAG_CHARGE_IMPORTS) != 0; /* without a record the reservation refuses */
}

static inline bool hami_file_name_(int file, uint64_t name[2], uint64_t *bytes) {
    struct stat found;
    int before = errno;
    bool ok = fstat(file, &found) == 0;
    if (ok) {
        name[0] = (uint64_t)found.st_dev;
        name[1] = (uint64_t)found.st_ino;
        *bytes = found.st_size > 0 ? (uint64_t)found.st_size : 0;
    }
    errno = before;
    return ok;
}

static inline void hami_export_file(int file, uint64_t bytes) {
    uint64_t name[2], size;
    if (hami_file_name_(file, name, &size)) hami_export_note(name, sizeof name, bytes);
}

/* Whether the memory behind this file is this container's own. */
static inline bool hami_file_known(int file) {
    uint64_t name[2], size;
    return hami_file_name_(file, name, &size) && hami_export_known(name, sizeof name);
}

/* What importing this file must be charged: 0 when it is this container's own. */
static inline uint64_t hami_import_file_bytes(int file) {
    uint64_t name[2], size = 0;
    return hami_file_name_(file, name, &size) && !hami_export_known(name, sizeof name) ? size : 0;
}

#endif
