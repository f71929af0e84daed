/* SPDX-License-Identifier: Apache-2.0 */
/*
 * sizes.c: what memory really takes. The driver hands blocks below a MiB out of chunks of 2 MiB and rounds larger ones up to
 * pages of 2 MiB; rows are padded to at most 1 KiB, and images to tiles of at most 64 KiB. All of it errs upwards, so
 * that what is reserved before the driver is asked is never less than what it takes.
 */
#include "hip_hooks.h"

#include "../common/exchange.h"

enum { ROW = 1024, TILE = 65536, TILE_ROWS = 8 };

const struct hami_linear hip_linear = {.granule = 2u << 20, .small_below = 1u << 20, .chunk = 2u << 20};

static uint64_t rounded(uint64_t value, uint64_t unit) { return (value + unit - 1) / unit * unit; }
static uint64_t least_one(uint64_t value) { return value == 0 ? 1 : value; }

uint64_t hip_pitched_bound(size_t width, size_t rows) { return rounded(width, ROW) * rows; }

uint64_t hip_texels_bound(uint64_t element_bytes, size_t width, size_t height, size_t depth, unsigned int levels) {
    uint64_t sum = 0;
    for (unsigned int level = 0; level < least_one(levels) && level < 32; level++) {
        uint64_t row = rounded(least_one(width >> level) * element_bytes, ROW);
        sum += rounded(row * rounded(least_one(height >> level), TILE_ROWS) * least_one(depth >> level), TILE);
    }
    return sum;
}

static uint64_t format_bytes(int format) {
    switch (format) {
    case 0x01: case 0x08: return 1;
    case 0x02: case 0x09: case 0x10: return 2;
    default: return 4;
    }
}

uint64_t hip_descriptor_bound(const HIP_ARRAY_DESCRIPTOR *descriptor) {
    return descriptor == NULL ? 0 : hip_texels_bound(format_bytes(descriptor->format) * descriptor->channels, descriptor->width, descriptor->height, 1, 1);
}

uint64_t hip_descriptor3d_bound(const HIP_ARRAY3D_DESCRIPTOR *descriptor, unsigned int levels) {
    if (descriptor == NULL) return 0;
    return hip_texels_bound(format_bytes(descriptor->format) * descriptor->channels, descriptor->width, descriptor->height, descriptor->depth, levels);
}

uint64_t hip_external_bytes(const hipExternalMemoryHandleDesc *descriptor) {
    if (descriptor == NULL || !hami_imports_charged(hip_device())) return 0;
    if (descriptor->type == hipExternalMemoryHandleTypeOpaqueFd && hami_file_known(descriptor->handle.file)) return 0;
    return descriptor->size;
}
