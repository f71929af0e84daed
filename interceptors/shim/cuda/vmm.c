/* SPDX-License-Identifier: Apache-2.0 */
/*
 * vmm.c: physical memory by handle (cuMemCreate) and where it is mapped.
 *
 * The memory is charged once, when the handle is created, and goes when the last of its references goes: the handle itself,
 * every retained copy of it, and every mapping. Address space costs nothing.
 */
#include "cuda_shim.h"

#define FOREIGN 1u /* tag of a handle whose creator is outside this container and which is charged where it is mapped */

static void drop(uint64_t handle) {
    struct hami_entry entry;
    if (hami_book_refer(HAMI_BOOK_HANDLE, handle, -1, &entry) == 0) hami_give_back(&entry.hold);
}

static bool refer(uint64_t handle) {
    struct hami_entry entry;
    return hami_book_refer(HAMI_BOOK_HANDLE, handle, 1, &entry) > 0;
}

CUresult cuda_hook_cuMemCreate(cuMemCreate_fn real, CUmemGenericAllocationHandle *out, size_t bytes, const CUmemAllocationProp *prop, unsigned long long flags) {
    if (prop == NULL || prop->location.type != CU_MEM_LOCATION_TYPE_DEVICE) return real(out, bytes, prop, flags);
    uint64_t pages = cuda_round_up(bytes, cuda_linear.granule);
    struct hami_hold hold;
    enum hami_verdict verdict = cuda_reserve(cuda_index(prop->location.id), pages, &hold);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = real(out, bytes, prop, flags);
    if (result != CUDA_SUCCESS) hami_give_back(&hold);
    else (void)hami_book_keep(HAMI_BOOK_HANDLE, *out, &hold, pages, 0);
    return result;
}

/* The reference goes after the driver's own has gone, so that what is charged is never less than what is taken. */
CUresult cuda_hook_cuMemRelease(cuMemRelease_fn real, CUmemGenericAllocationHandle handle) {
    struct hami_entry entry;
    int64_t left = hami_book_refer(HAMI_BOOK_HANDLE, handle, -1, &entry);
    CUresult result = real(handle);
    if (left < 0) return result;
    if (left == 0 && result == CUDA_SUCCESS) hami_give_back(&entry.hold);
    else if (left == 0) {
        entry.references = 1;
        hami_book_return(HAMI_BOOK_HANDLE, &entry);
    } else if (result != CUDA_SUCCESS) {
        (void)refer(handle);
    }
    return result;
}

CUresult cuda_hook_cuMemRetainAllocationHandle(cuMemRetainAllocationHandle_fn real, CUmemGenericAllocationHandle *out, void *address) {
    CUresult result = real(out, address);
    if (result == CUDA_SUCCESS) (void)refer(*out);
    return result;
}

/* -- mappings ------------------------------------------------------------------------------------------------------- */

/* A mapping of a foreign handle is charged itself; any other is a reference to its handle. */
static enum hami_verdict admit_mapping(uint64_t handle, uint64_t bytes, struct hami_hold *hold, bool *referred) {
    struct hami_entry entry;
    *hold = (struct hami_hold){.device = HAMI_NO_DEVICE};
    *referred = false;
    if (!hami_book_find(HAMI_BOOK_HANDLE, handle, &entry)) return HAMI_OK;
    *referred = refer(handle);
    if (entry.tag == FOREIGN) return cuda_reserve(cuda_current_index(), bytes, hold);
    hold->device = entry.hold.device;
    return HAMI_OK;
}

CUresult cuda_hook_cuMemMap(cuMemMap_fn real, CUdeviceptr address, size_t bytes, size_t offset, CUmemGenericAllocationHandle handle, unsigned long long flags) {
    struct hami_hold hold;
    bool referred;
    enum hami_verdict verdict = admit_mapping(handle, bytes, &hold, &referred);
    CUresult result = verdict == HAMI_OK ? real(address, bytes, offset, handle, flags) : cuda_refusal(verdict);
    if (!referred) return result;
    if (result == CUDA_SUCCESS) {
        (void)hami_book_keep(HAMI_BOOK_MAPPING, address, &hold, hold.bytes, handle);
    } else {
        if (verdict == HAMI_OK) hami_give_back(&hold);
        drop(handle);
    }
    return result;
}

#define AT_ONCE 128

struct range {
    uint64_t from, bytes;
    uint64_t handles[AT_ONCE];
    size_t count;
};

static bool in_range(const struct hami_entry *entry, void *context) {
    struct range *range = context;
    if (entry->key - range->from >= range->bytes || range->count == AT_ONCE) return false;
    range->handles[range->count++] = entry->tag;
    return true;
}

/* An unmapping may cover several mappings; most cover the one that begins there. */
static void unmapped(uint64_t from, uint64_t bytes) {
    struct range range = {.from = from, .bytes = bytes};
    do {
        range.count = 0;
        (void)hami_book_sweep(HAMI_BOOK_MAPPING, in_range, &range);
        for (size_t i = 0; i < range.count; i++) drop(range.handles[i]);
    } while (range.count == AT_ONCE);
}

CUresult cuda_hook_cuMemUnmap(cuMemUnmap_fn real, CUdeviceptr address, size_t bytes) {
    CUresult result = real(address, bytes);
    if (result == CUDA_SUCCESS) unmapped(address, bytes);
    return result;
}

/*
 * A sparse array's tiles are mapped in stream order, from pools of tiles that are made with cuMemCreate. When the unmapping has
 * taken place cannot be known here, so a tile pool that was ever mapped stays charged as long as the process lives.
 */
CUresult cuda_hook_cuMemMapArrayAsync(cuMemMapArrayAsync_fn real, CUarrayMapInfo *list, unsigned int count, CUstream stream) {
    CUresult result = real(list, count, stream);
    for (unsigned int i = 0; result == CUDA_SUCCESS && i < count; i++)
        if (list[i].operation == CU_MEM_OPERATION_TYPE_MAP) (void)refer(list[i].handle);
    return result;
}

void cuda_foreign_handle(CUmemGenericAllocationHandle handle) {
    struct hami_hold nothing = {.device = cuda_current_index()};
    (void)hami_book_keep(HAMI_BOOK_HANDLE, handle, &nothing, 0, FOREIGN);
}
