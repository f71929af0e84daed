/* SPDX-License-Identifier: Apache-2.0 */
/*
 * arrays.c: how much an array takes at most, from its descriptor.
 *
 * The driver lays arrays out in blocks: rows are padded to 512 bytes, and the whole to 2 MiB pages from 1 MiB on, to 64 KiB
 * below. An array created for deferred or sparse mapping takes nothing: its memory comes from cuMemCreate.
 */
#include "cuda_shim.h"

struct extent {
    uint64_t width, height, depth;
    int format;
    unsigned int channels, flags;
};

/* Bits of one element; block-compressed and planar formats have less than a byte, or one and a half. */
static uint64_t element_bits(int format, unsigned int channels) {
    uint64_t one;
    if (format == 0x01 || format == 0x08) one = 8;                                        /* 8-bit integers */
    else if (format == 0x02 || format == 0x09 || format == 0x10) one = 16;                /* 16-bit integers, half */
    else if (format == 0x03 || format == 0x0a || format == 0x20) one = 32;                /* 32-bit integers, float */
    else if (format >= 0xc0 && format <= 0xcb) return 8ull << ((format - 0xc0) / 3 % 2) << (format - 0xc0) % 3; /* UNORM/SNORM INT8X1…INT16X4 */
    else if (format >= 0x91 && format <= 0x9e) return 8;                                  /* block-compressed: at most a byte an element */
    else if (format == 0xb0 || format == 0x53 || format == 0x59) return 12;               /* 4:2:0, 8 bit */
    else one = 64;                                                                        /* anything newer: the largest element there is, a bound */
    return one * (channels == 0 ? 1 : channels);
}

static uint64_t times(uint64_t a, uint64_t b) { return b != 0 && a > UINT64_MAX / b ? UINT64_MAX : a * b; }

static uint64_t level_bytes(const struct extent *e) {
    uint64_t row = times(e->width, element_bits(e->format, e->channels));
    row = cuda_round_up(row / 8 + (row % 8 != 0), 512);
    return times(times(row, e->height == 0 ? 1 : e->height), e->depth == 0 ? 1 : e->depth);
}

static uint64_t paged(uint64_t bytes) { return cuda_round_up(bytes, bytes < CUDA_MIB ? CUDA_MIB / 16 : 2 * CUDA_MIB); }

static bool mapped_later(unsigned int flags) { return (flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) != 0; }

static uint64_t array_bytes(struct extent e) { return mapped_later(e.flags) ? 0 : paged(level_bytes(&e)); }

uint64_t cuda_array_bytes(const CUDA_ARRAY_DESCRIPTOR *d) {
    return d == NULL ? 0 : array_bytes((struct extent){d->width, d->height, 0, d->format, d->channels, 0});
}

uint64_t cuda_array_bytes_v1(const CUDA_ARRAY_DESCRIPTOR_v1 *d) {
    return d == NULL ? 0 : array_bytes((struct extent){d->width, d->height, 0, d->format, d->channels, 0});
}

uint64_t cuda_array3d_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d) {
    return d == NULL ? 0 : array_bytes((struct extent){d->width, d->height, d->depth, d->format, d->channels, d->flags});
}

uint64_t cuda_array3d_bytes_v1(const CUDA_ARRAY3D_DESCRIPTOR_v1 *d) {
    return d == NULL ? 0 : array_bytes((struct extent){d->width, d->height, d->depth, d->format, d->channels, d->flags});
}

static uint64_t half(uint64_t size) { return size > 1 ? size / 2 : size; }

/* Every level halves the sides; the layers of a layered array and the faces of a cube map stay. */
uint64_t cuda_mipmap_bytes(const CUDA_ARRAY3D_DESCRIPTOR *d, unsigned int levels) {
    if (d == NULL || mapped_later(d->flags)) return 0;
    struct extent e = {d->width, d->height, d->depth, d->format, d->channels, d->flags};
    bool layers = (d->flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
    uint64_t total = 0;
    for (unsigned int level = 0; level < levels && level < 64; level++) {
        uint64_t bytes = level_bytes(&e);
        total = total > UINT64_MAX - bytes ? UINT64_MAX : total + bytes;
        if (e.width <= 1 && e.height <= 1 && (layers || e.depth <= 1)) break;
        e.width = half(e.width);
        e.height = half(e.height);
        if (!layers) e.depth = half(e.depth);
    }
    return paged(total);
}
