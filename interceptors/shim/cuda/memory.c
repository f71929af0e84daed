/* SPDX-License-Identifier: Apache-2.0 */
/*
 * memory.c: linear memory: plain, pitched and managed.
 *
 * The driver takes 2 MiB pages: blocks of 1 MiB and more are rounded up to them, smaller ones share a page. A thread without
 * a context goes straight to the driver, whose own error then reaches the program.
 */
#include "cuda_shim.h"

const struct hami_linear cuda_linear = {.granule = 2 * CUDA_MIB, .small_below = CUDA_MIB, .chunk = 2 * CUDA_MIB};

#define PITCH_UNIT 512 /* no device pads a row further than this */

static bool make_room(int device) {
    bool pools = cuda_pools_release(device);
    return cuda_graph_memory_release(device) || pools;
}

enum hami_verdict cuda_reserve(int device, uint64_t bytes, struct hami_hold *hold) {
    enum hami_verdict verdict = hami_reserve(device, bytes, hold);
    if (HAMI_UNLIKELY(verdict == HAMI_OVER_LIMIT) && make_room(device)) verdict = hami_reserve(device, bytes, hold);
    return verdict;
}

static enum hami_verdict reserve_linear(int device, uint64_t bytes, struct hami_hold *hold) {
    enum hami_verdict verdict = hami_linear_reserve(&cuda_linear, device, bytes, hold);
    if (HAMI_UNLIKELY(verdict == HAMI_OVER_LIMIT) && make_room(device)) verdict = hami_linear_reserve(&cuda_linear, device, bytes, hold);
    return verdict;
}

static void put_back(CUdeviceptr pointer) {
    cuMemFree_v2_fn release = cuda_real_cuMemFree_v2();
    if (release != NULL) (void)release(pointer);
}

/* -- plain ---------------------------------------------------------------------------------------------------------- */

CUresult cuda_hook_cuMemAlloc_v2(cuMemAlloc_v2_fn real, CUdeviceptr *out, size_t bytes) {
    CUdevice device;
    if (!cuda_current(&device)) return real(out, bytes);
    struct hami_hold hold;
    enum hami_verdict verdict = reserve_linear(cuda_index(device), bytes, &hold);
    if (HAMI_UNLIKELY(verdict != HAMI_OK)) return cuda_refusal(verdict);
    CUresult result = real(out, bytes);
    if (HAMI_UNLIKELY(result != CUDA_SUCCESS)) {
        hami_give_back(&hold);
        return result;
    }
    (void)hami_linear_keep(&cuda_linear, *out, bytes, &hold);
    return result;
}

CUresult cuda_hook_cuMemAlloc(cuMemAlloc_fn real, CUdeviceptr_v1 *out, unsigned int bytes) {
    CUdevice device;
    if (out == NULL || !cuda_current(&device)) return real(out, bytes);
    struct hami_hold hold;
    enum hami_verdict verdict = reserve_linear(cuda_index(device), bytes, &hold);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = real(out, bytes);
    if (result != CUDA_SUCCESS) {
        hami_give_back(&hold);
        return result;
    }
    (void)hami_linear_keep(&cuda_linear, *out, bytes, &hold);
    return result;
}

/* Managed memory lies in its own book: under OVERSUBSCRIBE it is not charged as device memory. */
static bool take_managed(CUdeviceptr pointer, struct hami_entry *entry) { return hami_book_take(HAMI_BOOK_OTHER, pointer, entry); }

CUresult cuda_hook_cuMemFree_v2(cuMemFree_v2_fn real, CUdeviceptr pointer) {
    struct hami_entry entry;
    bool linear = hami_linear_take(&cuda_linear, pointer, &entry);
    bool managed = !linear && take_managed(pointer, &entry);
    CUresult result = real(pointer);
    if (HAMI_LIKELY(linear)) {
        if (HAMI_LIKELY(result == CUDA_SUCCESS)) hami_linear_freed(&cuda_linear, &entry);
        else hami_linear_return(&cuda_linear, &entry);
    } else if (managed) {
        if (result == CUDA_SUCCESS) hami_give_back(&entry.hold);
        else hami_book_return(HAMI_BOOK_OTHER, &entry);
    } else if (result == CUDA_SUCCESS) {
        cuda_pools_settle(); /* it may have come from a pool, and this call waits for it to be free */
    }
    return result;
}

CUresult cuda_hook_cuMemFree(cuMemFree_fn real, CUdeviceptr_v1 pointer) {
    struct hami_entry entry;
    bool ours = hami_linear_take(&cuda_linear, pointer, &entry);
    CUresult result = real(pointer);
    if (!ours) return result;
    if (result == CUDA_SUCCESS) hami_linear_freed(&cuda_linear, &entry);
    else hami_linear_return(&cuda_linear, &entry);
    return result;
}

/* -- pitched: reserved for the widest row a device may make, charged for the row it made ---------------------------- */

static uint64_t pitched(uint64_t width, uint64_t height) {
    uint64_t row = cuda_round_up(width, PITCH_UNIT);
    return height != 0 && row > UINT64_MAX / height ? UINT64_MAX : row * height;
}

CUresult cuda_hook_cuMemAllocPitch_v2(cuMemAllocPitch_v2_fn real, CUdeviceptr *out, size_t *pitch, size_t width, size_t height, unsigned int element) {
    CUdevice device;
    if (out == NULL || pitch == NULL || !cuda_current(&device)) return real(out, pitch, width, height, element);
    struct hami_hold hold;
    enum hami_verdict verdict = reserve_linear(cuda_index(device), pitched(width, height), &hold);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = real(out, pitch, width, height, element);
    if (result != CUDA_SUCCESS) {
        hami_give_back(&hold);
        return result;
    }
    if (hami_linear_keep(&cuda_linear, *out, (uint64_t)*pitch * height, &hold) == HAMI_OK) return result;
    put_back(*out);
    hami_give_back(&hold);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

CUresult cuda_hook_cuMemAllocPitch(cuMemAllocPitch_fn real, CUdeviceptr_v1 *out, unsigned int *pitch, unsigned int width, unsigned int height, unsigned int element) {
    CUdevice device;
    if (out == NULL || pitch == NULL || !cuda_current(&device)) return real(out, pitch, width, height, element);
    struct hami_hold hold;
    enum hami_verdict verdict = reserve_linear(cuda_index(device), pitched(width, height), &hold);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = real(out, pitch, width, height, element);
    if (result != CUDA_SUCCESS) {
        hami_give_back(&hold);
        return result;
    }
    if (hami_linear_keep(&cuda_linear, *out, (uint64_t)*pitch * height, &hold) == HAMI_OK) return result;
    put_back(*out);
    hami_give_back(&hold);
    return CUDA_ERROR_OUT_OF_MEMORY;
}

/* -- managed -------------------------------------------------------------------------------------------------------- */

CUresult cuda_hook_cuMemAllocManaged(cuMemAllocManaged_fn real, CUdeviceptr *out, size_t bytes, unsigned int flags) {
    CUdevice current;
    if (!cuda_current(&current)) return real(out, bytes, flags);
    int device = cuda_index(current);
    uint64_t pages = cuda_round_up(bytes, cuda_linear.granule);
    struct hami_hold hold;
    enum hami_verdict verdict = cuda_flag(device, HAMI_DEVICE_FLAG_OVERSUBSCRIBE) ? hami_reserve_virtual(device, pages, &hold) : cuda_reserve(device, pages, &hold);
    if (verdict != HAMI_OK) return cuda_refusal(verdict);
    CUresult result = real(out, bytes, flags);
    if (result != CUDA_SUCCESS) hami_give_back(&hold);
    else (void)hami_book_keep(HAMI_BOOK_OTHER, *out, &hold, pages, bytes);
    return result;
}
