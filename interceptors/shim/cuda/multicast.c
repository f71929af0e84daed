/* SPDX-License-Identifier: Apache-2.0 */
/*
 * multicast.c: memory bound to a multicast object stays taken until it is unbound, also after its handle was released and its
 * mappings were undone. A binding is therefore one more reference, remembered by object and offset.
 */
#include "cuda_shim.h"

/* Device addresses and handles are far below the top bit, so that no mapping can have this key. */
static uint64_t place(uint64_t object, uint64_t offset) { return (1ull << 63) | ((object * 0x9E3779B97F4A7C15ull) ^ offset) >> 1; }

static void bound(uint64_t object, uint64_t offset, uint64_t handle) {
    struct hami_entry entry;
    if (hami_book_refer(HAMI_BOOK_HANDLE, handle, 1, &entry) <= 0) return;
    struct hami_hold nothing = {.device = HAMI_NO_DEVICE};
    (void)hami_book_keep(HAMI_BOOK_MAPPING, place(object, offset), &nothing, 0, handle);
}

static void bound_address(uint64_t object, uint64_t offset, uint64_t address) {
    struct hami_entry entry;
    if (hami_book_find(HAMI_BOOK_MAPPING, address, &entry)) bound(object, offset, entry.tag);
}

CUresult cuda_hook_cuMulticastBindMem(cuMulticastBindMem_fn real, CUmemGenericAllocationHandle object, size_t offset, CUmemGenericAllocationHandle memory, size_t from,
                                      size_t bytes, unsigned long long flags) {
    CUresult result = real(object, offset, memory, from, bytes, flags);
    if (result == CUDA_SUCCESS) bound(object, offset, memory);
    return result;
}

CUresult cuda_hook_cuMulticastBindMem_v2(cuMulticastBindMem_v2_fn real, CUmemGenericAllocationHandle object, CUdevice device, size_t offset,
                                         CUmemGenericAllocationHandle memory, size_t from, size_t bytes, unsigned long long flags) {
    CUresult result = real(object, device, offset, memory, from, bytes, flags);
    if (result == CUDA_SUCCESS) bound(object, offset, memory);
    return result;
}

CUresult cuda_hook_cuMulticastBindAddr(cuMulticastBindAddr_fn real, CUmemGenericAllocationHandle object, size_t offset, CUdeviceptr memory, size_t bytes,
                                       unsigned long long flags) {
    CUresult result = real(object, offset, memory, bytes, flags);
    if (result == CUDA_SUCCESS) bound_address(object, offset, memory);
    return result;
}

CUresult cuda_hook_cuMulticastBindAddr_v2(cuMulticastBindAddr_v2_fn real, CUmemGenericAllocationHandle object, CUdevice device, size_t offset, CUdeviceptr memory,
                                          size_t bytes, unsigned long long flags) {
    CUresult result = real(object, device, offset, memory, bytes, flags);
    if (result == CUDA_SUCCESS) bound_address(object, offset, memory);
    return result;
}

CUresult cuda_hook_cuMulticastUnbind(cuMulticastUnbind_fn real, CUmemGenericAllocationHandle object, CUdevice device, size_t offset, size_t bytes) {
    CUresult result = real(object, device, offset, bytes);
    struct hami_entry binding, memory;
    if (result != CUDA_SUCCESS || !hami_book_take(HAMI_BOOK_MAPPING, place(object, offset), &binding)) return result;
    if (hami_book_refer(HAMI_BOOK_HANDLE, binding.tag, -1, &memory) == 0) hami_give_back(&memory.hold);
    return result;
}
