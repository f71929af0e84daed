/* SPDX-License-Identifier: Apache-2.0 */
/* The fake CUDA driver: arrays and mipmapped arrays, rounded up to 64 KiB of physical memory. Sparse ones have none of their own. */
#include "fake_cuda.h"

/* CUarray and CUmipmappedArray alike. */
struct array {
    uint64_t bytes;
    struct CUctx_st *context;
    bool mipmap;
    unsigned levels;
    CUDA_ARRAY3D_DESCRIPTOR descriptor;
    struct array *of; /* a level's whole */
    struct array *next;
};

static struct array *arrays;

static unsigned format_bytes(int format)
{
    switch (format) {
    case 0x01: case 0x08: return 1;             /* 8 bit */
    case 0x02: case 0x09: case 0x10: return 2;  /* 16 bit, half */
    case 0x03: case 0x0a: case 0x20: return 4;  /* 32 bit, float */
    default: return 0;
    }
}

static uint64_t at_least_one(uint64_t extent) { return extent > 0 ? extent : 1; }

static uint64_t level_bytes(const CUDA_ARRAY3D_DESCRIPTOR *descriptor, unsigned level)
{
    bool layered = (descriptor->flags & (CUDA_ARRAY3D_LAYERED | CUDA_ARRAY3D_CUBEMAP)) != 0;
    uint64_t width = at_least_one(descriptor->width >> level), height = at_least_one(descriptor->height >> level);
    uint64_t depth = at_least_one(layered ? descriptor->depth : descriptor->depth >> level);
    return width * height * depth * format_bytes(descriptor->format) * descriptor->channels;
}

static CUresult create(void **out, const CUDA_ARRAY3D_DESCRIPTOR *descriptor, unsigned levels)
{
    struct CUctx_st *context;
    CUresult result = out == NULL ? CUDA_ERROR_INVALID_VALUE : fc_current(&context);
    if (result != CUDA_SUCCESS)
        return result;
    if (descriptor->width == 0 || format_bytes(descriptor->format) == 0 || (descriptor->channels != 1 && descriptor->channels != 2 && descriptor->channels != 4))
        return CUDA_ERROR_INVALID_VALUE;
    struct array *array = calloc(1, sizeof *array);
    *array = (struct array){.context = context, .mipmap = levels > 0, .levels = levels, .descriptor = *descriptor};
    for (unsigned level = 0; level < (levels > 0 ? levels : 1); level++)
        array->bytes += level_bytes(descriptor, level);
    array->bytes = fc_round(array->bytes, FC_ARRAY_GRANULE);
    if ((descriptor->flags & (CUDA_ARRAY3D_SPARSE | CUDA_ARRAY3D_DEFERRED_MAPPING)) != 0)
        array->bytes = 0;
    fc_lock();
    result = fc_code(card_take(fc_card(context->device), array->bytes, CARD_ARRAY));
    if (result != CUDA_SUCCESS) {
        free(array);
        return fc_unlock(result);
    }
    array->next = arrays;
    arrays = array;
    *out = array;
    return fc_unlock(CUDA_SUCCESS);
}

static void destroy(struct array **link)
{
    struct array *array = *link;
    *link = array->next;
    if (array->of == NULL)
        card_give(fc_card(array->context->device), array->bytes, CARD_ARRAY);
    free(array);
}

static CUresult destroy_one(const void *wanted, bool mipmap)
{
    CUresult result = fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct array **link = &arrays;
    while (*link != NULL && *link != wanted)
        link = &(*link)->next;
    if (*link == NULL || (*link)->mipmap != mipmap || (*link)->of != NULL)
        return fc_unlock(CUDA_ERROR_INVALID_HANDLE);
    destroy(link);
    for (link = &arrays; *link != NULL;) /* its levels go with it */
        if ((*link)->of == wanted)
            destroy(link);
        else
            link = &(*link)->next;
    return fc_unlock(CUDA_SUCCESS);
}

void fc_context_arrays_gone(struct CUctx_st *context)
{
    for (struct array **link = &arrays; *link != NULL;)
        if ((*link)->context == context)
            destroy(link);
        else
            link = &(*link)->next;
}

CUresult fake_cuArray3DCreate_v2(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR *descriptor)
{
    return descriptor == NULL ? CUDA_ERROR_INVALID_VALUE : create((void **)out, descriptor, 0);
}

CUresult fake_cuArrayCreate_v2(CUarray *out, const CUDA_ARRAY_DESCRIPTOR *given)
{
    if (given == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR descriptor = {.width = given->width, .height = given->height, .format = given->format, .channels = given->channels};
    return create((void **)out, &descriptor, 0);
}

CUresult fake_cuArrayCreate(CUarray *out, const CUDA_ARRAY_DESCRIPTOR_v1 *given)
{
    if (given == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR descriptor = {.width = given->width, .height = given->height, .format = given->format, .channels = given->channels};
    return create((void **)out, &descriptor, 0);
}

CUresult fake_cuArray3DCreate(CUarray *out, const CUDA_ARRAY3D_DESCRIPTOR_v1 *given)
{
    if (given == NULL)
        return CUDA_ERROR_INVALID_VALUE;
    CUDA_ARRAY3D_DESCRIPTOR descriptor = {.width = given->width, .height = given->height, .depth = given->depth, .format = given->format,
                                          .channels = given->channels, .flags = given->flags};
    return create((void **)out, &descriptor, 0);
}

CUresult fake_cuArrayDestroy(CUarray array) { return destroy_one(array, false); }

CUresult fake_cuMipmappedArrayCreate(CUmipmappedArray *out, const CUDA_ARRAY3D_DESCRIPTOR *descriptor, unsigned int levels)
{
    return descriptor == NULL || levels == 0 || levels > 32 ? CUDA_ERROR_INVALID_VALUE : create((void **)out, descriptor, levels);
}

CUresult fake_cuMipmappedArrayDestroy(CUmipmappedArray array) { return destroy_one(array, true); }

CUresult fake_cuMipmappedArrayGetLevel(CUarray *out, CUmipmappedArray given, unsigned int level)
{
    CUresult result = out == NULL ? CUDA_ERROR_INVALID_VALUE : fc_ready();
    if (result != CUDA_SUCCESS)
        return result;
    fc_lock();
    struct array *whole = arrays;
    while (whole != NULL && (void *)whole != (void *)given)
        whole = whole->next;
    if (whole == NULL || !whole->mipmap || level >= whole->levels)
        return fc_unlock(CUDA_ERROR_INVALID_VALUE);
    struct array *made = calloc(1, sizeof *made);
    *made = (struct array){.context = whole->context, .descriptor = whole->descriptor, .of = whole, .next = arrays};
    arrays = made;
    *out = (CUarray)made;
    return fc_unlock(CUDA_SUCCESS);
}
